"""What segments without a mask are worth: N of them, each named what most of its pixels are in the truth.

    python benchmarks/label_free.py --camvid DIR --davis DIR

Of each DAVIS clip the first 14 frames, of CamVid, whose frames are a second apart, every window of 14; two seeds of K-means.
mIoU over the classes of the truth and boundary F, void left out: mean over clips, and the difference from the first row clip by
clip ± its standard error. Masks of cells enlarged bilinearly: the last stage has no part in how clusters merge. Writes
benchmarks/results/label_free.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidseg_core import ContextSettings, Settings, VidSeg, load_backbone
from vidseg_core.common import VOID
from vidseg_core.evaluation.baselines import bilinear
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.labelled import AnyClip
from vidseg_core.evaluation.metrics import boundary_f, confusion, mean_iou
from vidseg_core.features import frame_features

RESULTS = Path(__file__).parent / "results"
WINDOW = 14


def majority_names(segments: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each segment number the class that most of its pixels have, void where it lies on void alone."""
    known = truth != VOID
    counts = np.zeros((int(segments.max()) + 1, VOID + 1), int)
    np.add.at(counts, (segments[known], truth[known]), 1)
    return np.where(counts.any(1), counts.argmax(1), VOID)


def score(cells: np.ndarray, truth: np.ndarray, classes: int) -> tuple[float, float]:
    """mIoU and F of segments of cells."""
    segments = bilinear(cells, truth.shape[1:])
    labels = majority_names(segments, truth)[segments]
    outlines = [np.nanmean(boundary_f(a, b, classes)) for a, b in zip(labels, truth, strict=True)]
    return mean_iou(confusion(labels, truth, classes)), float(np.mean(outlines))


def clips(name: str, root: str) -> tuple[list[AnyClip], int]:
    """The windows to be scored, each a clip of its own, and how many classes the set has."""
    dataset = open_dataset(name, root)
    if name == "camvid":
        return [c for c in dataset.restart(WINDOW).clips if len(c.labels) == WINDOW], len(dataset.classes)
    return [c.part(0, WINDOW) for c in dataset.clips], len(dataset.classes)


def measure(name: str, root: str, weights: list[float], segments: int, seeds: int) -> np.ndarray:
    """Scores [weights, clips, 2], mean over seeds."""
    backbone, (found, classes) = load_backbone("tiny"), clips(name, root)
    table = np.zeros((len(weights), len(found), 2))
    for n, clip in enumerate(tqdm(found, name)):
        frames = np.stack(list(clip.read(0)))
        truth = np.stack([clip.read_labels(i)[0] for i in range(len(frames))]).astype(int)
        features = frame_features(backbone, frames, Settings().resolve(backbone.model))  # its noise has one seed
        for seed in range(seeds):
            for row, weight in enumerate(weights):
                context = ContextSettings(num_segments=segments, size_weight=weight)
                vidseg = VidSeg(backbone, replace(Settings(), context=context, seed=seed), lambda _, known=features: known)
                window = next(vidseg.cells(frames))
                table[row, n] += np.array(score(window.refined, truth, classes)) / seeds
    return table


def markdown(name: str, weights: list[float], table: np.ndarray) -> str:
    """In percent, with the paired difference from the first row."""
    lines = [f"| {name}: size_weight | mIoU | F |", "|---|---|---|"]
    for weight, row in zip(weights, 100 * table, strict=True):
        gain = row - 100 * table[0]
        error = gain.std(0, ddof=1) / len(gain) ** 0.5
        cells = [f"{m:.1f} ({g:+.1f} ± {e:.1f})" for m, g, e in zip(row.mean(0), gain.mean(0), error, strict=True)]
        lines.append(f"| {weight:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", metavar="DIR"), parser.add_argument("--davis", metavar="DIR")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.0])
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    o = parser.parse_args()
    torch.set_num_threads(1)
    sets = {name: root for name in ("davis", "camvid") if (root := getattr(o, name))}
    tables = [markdown(name, o.weights, measure(name, root, o.weights, o.segments, o.seeds)) for name, root in sets.items()]
    given = " ".join(f"--{name} DIR" for name in sets)
    text = f"`python benchmarks/label_free.py {given}`, {o.segments} segments, in percent\n\n" + "\n\n".join(tables) + "\n"
    print(text)
    (RESULTS / "label_free.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
