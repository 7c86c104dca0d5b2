"""What time is worth to a video model: features along true motion, with its sense of time whole and disturbed.

    python benchmarks/video_time.py [--model tiny-video] [--clips 5]
    python benchmarks/video_time.py --model OUT/model --quick      # weights that a training run has just written

Generated clips (other cut-outs and ways for each seed), every third frame, one window of 14. How far moves over two frames end
from the truth, in hundredths of a cell; then in percent: those within half a cell; the share of the true motion that they
make (pace); cosine of a point with itself a frame later; cells, frame 0 left out, with their true class, named by the first
mask; cells that keep their class along the motion; and, where the middle half of the middle frame is lost in noise, cells
there with their true class, of all and as a mean over classes. Mean over clips ± standard error; in brackets the difference
from the model as it is, clip by clip ± its standard error. Beside it the image model `tiny` and answers that look at nothing:
"nothing moves", and for what is lost the class that is most common there.
"""

import argparse
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidseg_core import Settings, generated_clip, load_backbone
from vidseg_core.features import Features
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.models.backbone import Backbone
from vidseg_core.workbook.context import named_cells, read_features
from vidseg_core.workbook.motion import faster
from vidseg_core.workbook.steadiness import guess_lost, hide, judge, judge_lost, judge_still, lost_cells, shuffled
from vidseg_core.workbook.temporal import without_time

FRAMES, MIDDLE = 14, 7
COLUMNS = ("cells/100 away", "moves found", "pace", "similar", "right", "kept", "lost: right", "lost: by class")
GUESSES = ("nothing moves", "the most common class")
Read = Callable[[np.ndarray], Features]


def scores(clip: GeneratedClip, ways: dict[str, Read]) -> np.ndarray:
    """One clip's numbers, a row for each way and for each of `GUESSES`, in the order of `COLUMNS`."""
    frames, truth = clip.frames[:FRAMES], clip.labels[MIDDLE]
    spoiled, rows = hide(frames, MIDDLE, 0.5), []
    for read in ways.values():
        features = read(frames)
        cells = named_cells(read(spoiled), clip.labels[0], Settings())[MIDDLE]
        lost = lost_cells(frames, spoiled, MIDDLE, cells.shape)
        rows.append([*astuple(judge(features, clip)), *astuple(judge_lost(cells, truth, lost))])
    guesses = guess_lost(clip.labels, MIDDLE, lost)
    rows.append([*astuple(judge_still(features, clip)), *astuple(judge_lost(guesses["first mask"], truth, lost))])
    rows.append([np.nan] * (len(COLUMNS) - 2) + [*astuple(judge_lost(guesses["most common class"], truth, lost))])
    return np.array(rows)


def ways_to_read(video: Backbone, image: Backbone, name: str, quick: bool) -> dict[str, Read]:
    """The ways to read a window, by name; the first is the model as it is. `quick`: the most important ones."""

    def silenced(what: str) -> Read:
        def read(frames: np.ndarray) -> Features:
            with video.edit(without_time(video, what)):
                return read_features(video, frames)

        return read

    ways: dict[str, Read] = {name: lambda frames: read_features(video, frames)}
    if not quick:
        ways[f"{name}, frames shuffled"] = lambda frames: shuffled(video, frames)
        ways[f"{name}, no attention over time"] = silenced("attention")
    ways[f"{name}, no temporal layer"] = silenced("all")
    return ways | {image.model.name: lambda frames: read_features(image, frames)}


def entry(own: np.ndarray, first: np.ndarray) -> str:
    """Mean ± error of a score over clips, and of its difference from the first way's, if it is another."""
    if np.isnan(own).any():
        return ""
    mean, gain = (f"{v.mean():{sign}.1f} ± {v.std(ddof=1) / len(v) ** 0.5:.1f}" for v, sign in ((own, ""), (own - first, "+")))
    return mean if (own == first).all() else f"{mean} ({gain})"


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-video", help="a video model's name or folder")
    parser.add_argument("--clips", type=int, default=5, help="at least 2")
    parser.add_argument("--quick", action="store_true", help="three clips; not shuffled, attention not silenced alone")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = ways_to_read(load_backbone(options.model), load_backbone("tiny"), Path(options.model).name, options.quick)
    rows = []
    for seed in tqdm(range(3 if options.quick else options.clips), unit="clip", disable=None):
        rows.append(scores(faster(generated_clip(3 * FRAMES - 2, seed=seed), 3), ways))
    table = 100 * np.array(rows).transpose(1, 2, 0)  # [ways, scores, clips]
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, own in zip([*ways, *GUESSES], table, strict=True):
        print(f"| {name} | {' | '.join(entry(*pair) for pair in zip(own, table[0], strict=True))} |")


if __name__ == "__main__":
    main()
