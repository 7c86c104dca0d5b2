"""Where labels are wrong: the worst frames of each method, and how all fare from frame to frame."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.figure import Figure

from vidseg_core.common import VOID
from vidseg_core.evaluation.metrics import boundary_f, confusion, mean_iou, pixel_accuracy
from vidseg_core.io.masks import PALETTE
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.workbook.evaluation import Judged, with_errors
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, slider

Frame = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "H W"]
METRICS = ("accuracy", "mIoU", "F")
LINES = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e")
"""Colours of curves (ColorBrewer's Dark2): not those of the classes."""


def frame_scores(judged: Judged, frame: int) -> dict[str, float]:
    """Accuracy, mIoU and boundary F of one labelled frame, as shares."""
    labels, truth, count = judged.labels[frame], judged.clip.labels[frame], len(judged.classes)
    counts = confusion(labels, truth, count)
    return {
        "accuracy": pixel_accuracy(counts), "mIoU": mean_iou(counts), "F": float(np.nanmean(boundary_f(labels, truth, count))),
    }  # fmt: skip


def worst_frames(results: Mapping[str, Mapping[str, Judged]], count: int) -> list[tuple[str, str, int, float]]:
    """(set, method, frame, accuracy) of the scored frames with the lowest accuracy, of each set and method the worst only."""
    found = []
    for name, of in results.items():
        for method, judged in of.items():
            shares = {n: frame_scores(judged, n)["accuracy"] for n in judged.scored}
            frame = min(shares, key=shares.get)
            found.append((name, method, frame, shares[frame]))
    return sorted(found, key=lambda entry: entry[-1])[:count]


def gallery(results: Mapping[str, Mapping[str, Judged]], count: int) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """`worst_frames` as `show_gallery` takes them."""
    entries = []
    for name, method, frame, share in worst_frames(results, count):
        judged = results[name][method]
        labels, truth = judged.labels[frame], judged.clip.labels[frame]
        entries.append((f"{name}, {method}: {share:.1%}", judged.clip.images[frame], labels, truth))
    return entries


def show_gallery(entries: Sequence[tuple[str, Frame, Labels, Labels]]) -> Figure:
    """Failures side by side, (title, frame, labels, truth) each: above the truth, below the labels, wrong ones black."""
    width, (height, side) = 9 / len(entries), entries[0][1].shape[:2]
    figure = Drawing(figsize=(9, 2 * width * height / side + 0.6), layout="constrained")
    for column, (title, frame, labels, truth) in zip(figure.subplots(2, len(entries), squeeze=False).T, entries, strict=True):
        panel(column[0], blend(frame, truth, 0.25), title)
        panel(column[1], with_errors(frame, labels, truth), "")
    return figure


def explore_failures(results: Mapping[str, Mapping[str, Judged]]) -> Explorer:
    """Clip, method, measure and frame: where the labels are wrong, and how all methods fare from frame to frame. A click on
    the curve chooses a frame. `shown` has "wrong" [H, W], "frame" and "curves", the measure of each method on scored frames."""

    def draw(clip: str, method: str, metric: str, place: int) -> Drawn:
        judged = results[clip][method]
        place = min(place, len(judged.scored) - 1)
        frame = judged.scored[place]
        curves = {name: [frame_scores(j, n)[metric] for n in j.scored] for name, j in results[clip].items()}
        truth, names = judged.clip.labels[frame], dict(enumerate(judged.classes))
        wrong = (judged.labels[frame] != truth) & (truth != 255)
        figure = show_failure(judged.clip.images[frame], judged.labels[frame], truth, curves, method, metric, place, names)
        return figure, {"wrong": wrong, "frame": frame, "curves": curves}

    first = next(iter(results.values()))
    length = max(len(j.scored) for of in results.values() for j in of.values())
    return Explorer(
        draw, lambda panel, x, y: {"place": int(np.clip(round(x), 0, length - 1))},
        clip=choice("clip", next(iter(results)), list(results)), method=choice("method", next(iter(first)), list(first)),
        metric=choice("measure", METRICS[0], METRICS), place=slider("frame shown", length - 1, 0, length - 1, live=True),
    )  # fmt: skip


def show_failure(
    frame: Frame,
    labels: Labels,
    truth: Labels,
    curves: Mapping[str, Sequence[float]],
    method: str,
    metric: str,
    place: int,
    names: Mapping[int, str],
) -> Figure:
    """A frame's truth, its labels, and its wrong pixels in the dark colour of their true class.

    Below a measure of each method over the labelled frames, the chosen one thick and black, `place` marked. Panel "curve" takes
    clicks, x in numbers of labelled frames."""
    figure = Drawing(figsize=(9, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1))
    faded = (frame // 4 + 170).astype(np.uint8)
    wrong = (labels != truth) & (truth != VOID)
    pictures = blend(frame, truth), blend(frame, labels), np.where(wrong[..., None], PALETTE[truth] // 2, faded)
    titles = "the truth", method, f"{wrong.mean():.1%} wrong"
    for k, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        panel(figure.add_subplot(grid[0, k]), picture.astype(np.uint8), title)
    axes = figure.add_subplot(grid[1, :])
    axes.set_gid("curve")
    for k, (name, values) in enumerate(curves.items()):
        how = {"color": "black", "linewidth": 2.5} if name == method else {"color": LINES[k % 5], "linewidth": 1.5}
        marker, size = "osD^v"[k % 5], 9 - 2 * (k % 3)  # hollow, of several sizes: equal curves do not hide each other
        axes.plot(100 * np.array(values), marker=marker, markersize=size, fillstyle="none", label=name, **how)
    axes.axvline(place, color="black", linewidth=0.8)
    axes.set_xticks(range(len(next(iter(curves.values())))))
    axes.set_xlabel("labelled frame (click to choose)", fontsize=9)
    axes.set_ylabel(f"{metric}, %", fontsize=9)
    columns = len(curves) if sum(map(len, curves)) < 50 else 2  # long names in a row would leave the pictures no room
    axes.legend(fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, handlelength=4)
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, [truth], names)
    return figure
