"""What time is worth to a video model: features along true motion, with its sense of time whole and disturbed.

    python benchmarks/video_time.py [--model tiny-video] [--clips 5]

Generated clips (other cut-outs and ways for each seed), every third frame, one window of 14. In percent: moves found within a
cell; cosine of a point with itself a frame later; cells with their true class, named by the first mask; cells that keep their
class along the motion; and, where the middle half of the middle frame is lost in noise, cells there with their true class. In
brackets the difference from the model as it is, clip by clip ± its standard error. The image model `tiny` beside it.
"""

import argparse
from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import torch
from tqdm import tqdm

from vidseg_core import Settings, generated_clip, load_backbone
from vidseg_core.features import Features
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.models.backbone import Backbone
from vidseg_core.workbook.context import named_cells, read_features
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.motion import faster
from vidseg_core.workbook.temporal import without_time
from vidseg_core.workbook.video import hide, judge, lost_cells, shuffled

FRAMES = 14
COLUMNS = ("moves", "similar", "right", "kept", "right where a frame is lost")
Read = Callable[[np.ndarray], Features]


def scores(read: Read, clip: GeneratedClip) -> np.ndarray:
    """One clip's numbers, in the order of `COLUMNS`."""
    middle, frames = FRAMES // 2, clip.frames[:FRAMES]
    spoiled = hide(frames, middle, 0.5)
    cells = named_cells(read(spoiled), clip.labels[0], Settings())[middle]
    lost = lost_cells(frames, spoiled, middle, cells.shape)
    right = (cells == at_centres(clip.labels[middle][None], cells.shape)[0])[lost].mean()
    return np.array([*astuple(judge(read(frames), clip)), right])


def ways(video: Backbone, image: Backbone) -> dict[str, Read]:
    """The ways to read a window, by name; the first is the model as it is."""

    def silenced(what: str) -> Read:
        def read(frames: np.ndarray) -> Features:
            with video.edit(without_time(video, what)):
                return read_features(video, frames)

        return read

    name = video.model.name
    return {
        name: lambda frames: read_features(video, frames),
        f"{name}, frames shuffled": lambda frames: shuffled(video, frames),
        f"{name}, no attention over time": silenced("attention"),
        f"{name}, no temporal layer": silenced("all"),
        image.model.name: lambda frames: read_features(image, frames),
    }


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-video")
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found, rows = ways(load_backbone(options.model), load_backbone("tiny")), []
    for seed in tqdm(range(options.clips), unit="clip", disable=None):
        clip = faster(generated_clip(3 * FRAMES - 2, seed=seed), 3)
        rows.append([100 * scores(read, clip) for read in found.values()])
    table = np.array(rows)  # [clips, ways, scores]
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for n, name in enumerate(found):
        gain, error = table[:, n] - table[:, 0], (table[:, n] - table[:, 0]).std(0, ddof=1) / len(table) ** 0.5
        cells = [f"{m:.1f}" + (f" ({g:+.1f} ± {e:.1f})" if n else "")
                 for m, g, e in zip(table[:, n].mean(0), gain.mean(0), error, strict=True)]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
