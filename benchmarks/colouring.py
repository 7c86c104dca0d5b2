"""Masks that share a pass against each mask alone: passes, and pixels with the same label, with the embedded model.

    python benchmarks/colouring.py [--camvid DIR] [--davis DIR] [--model tiny-video] [--schedules]

The first window of each clip, label-free with K = 20: the refined cells are the same for every row. "Near borders": pixels
within 4 of a border between cells. Colouring a frame at a time is what image models do, a window at a time what video models
need. `--schedules` adds the two other strategies of stage 4, which take minutes a clip: "guided", the paper's schedule with our
scores, and "reference", the paper's code. The same for mIoU and boundary F: the rows "passes" of `ablation.py`.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from vidseg_core import ContextSettings, Settings, VidSeg, load_backbone
from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.evaluation.baselines import bilinear
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.labelled import AnyClip
from vidseg_core.models.backbone import Backbone
from vidseg_core.modulation import plan
from vidseg_core.upsample import upsample

NEAR = 4
ALONE = "each mask alone"
WAYS = {"0 cells apart": (0, False), "1 cell apart": (1, False), "2 cells apart": (2, False), "4 cells apart": (4, False),
        "1 cell apart, one colouring a window": (1, True), ALONE: (None, False)}  # fmt: skip
Cells = np.ndarray
Row = dict[str, float]


def cells_of(backbone: Backbone, frames: np.ndarray, settings: Settings) -> Cells:
    """Refined cells [f, h, w] of a label-free run, without its stage 4."""
    return np.concatenate([window.refined for window in VidSeg(backbone, settings).cells(frames)])


def near_borders(cells: Cells, size: tuple[int, int]) -> np.ndarray:
    """Pixels [f, H, W] within `NEAR` of a border between cells."""
    return np.stack([_near(enlarge(frame, size)) for frame in cells])


def _near(labels: np.ndarray) -> np.ndarray:
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return distance_transform_edt(~border) <= NEAR


def compare(
    backbone: Backbone, frames: np.ndarray, cells: Cells, settings: Settings, schedules: bool = False
) -> dict[str, Row]:
    """For each way to share passes: passes a frame, and the share of pixels with the label that each mask alone gives."""
    size, tokens = frames.shape[1:3], torch.from_numpy(cells)
    coupled, made, passes = copy.copy(backbone), {}, {}
    coupled.coupled = True

    def run(by: Backbone, **changes: object) -> np.ndarray:
        changed = replace(settings, upsample=replace(settings.upsample, **changes)).resolve(backbone.model)
        return upsample(by, frames, Votes.certain(tokens), changed).numpy()

    for name, (separation, window) in WAYS.items():
        if not (window and backbone.coupled):  # for a video model every colouring is one a window
            made[name] = run(coupled if window else backbone, separation=separation, strategy="direct")
            passes[name] = len(plan(tokens, separation, window or backbone.coupled)) / len(cells)
    for strategy in ("guided", "reference") if schedules else ():
        made[strategy], passes[strategy] = run(backbone, strategy=strategy), float("nan")
    made["bilinear, no pass"], passes["bilinear, no pass"] = bilinear(cells, size), 0
    near = near_borders(cells, size)
    same = {name: labels == made[ALONE] for name, labels in made.items()}
    return {name: {"passes": passes[name], "same": s.mean(), "near": s[near].mean()} for name, s in same.items()}


def clips(options: argparse.Namespace) -> Iterator[AnyClip]:
    """The sample clips, and those of the folders given."""
    for name in ("cup", "box", "camvid", "davis"):
        root = getattr(options, name, None)
        if root or name in ("cup", "box"):
            dataset = open_dataset(name, root)
            yield from (dataset.restart(14) if name == "camvid" else dataset).clips


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", metavar="DIR")
    parser.add_argument("--davis", metavar="DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--schedules", action="store_true")
    parser.add_argument("--clusters", type=int, default=20)
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings, backbone = (
        Settings(context=ContextSettings(num_clusters=options.clusters, num_segments=None)),
        load_backbone(options.model, device="cpu"),
    )
    found = []
    for clip in tqdm(list(clips(options)), unit="clip", disable=None):
        frames = np.stack([frame for frame, _ in zip(clip.read(0), range(options.frames), strict=False)])
        found.append(compare(backbone, frames, cells_of(backbone, frames, settings), settings, options.schedules))
    print(f"K = {options.clusters}, {len(found)} clips, first {options.frames} frames: mean over clips (lowest)\n")
    print(f"| | passes a frame | pixels as {ALONE}, % | near borders, % |\n|---|---|---|---|")
    for name in found[0]:
        passes, same, near = (np.array([rows[name][key] for rows in found]) for key in ("passes", "same", "near"))
        print(f"| {name} | {passes.mean():.1f} | {100 * same.mean():.1f} ({100 * same.min():.1f}) "
              f"| {100 * near.mean():.1f} ({100 * near.min():.1f}) |")  # fmt: skip


if __name__ == "__main__":
    main()
