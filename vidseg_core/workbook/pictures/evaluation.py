"""Figures of the evaluation: label maps with their errors, failures, bars of classes, gains with their errors."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vidseg_core.evaluation.metrics import VOID
from vidseg_core.workbook.figures import PALETTE, Drawing, blend, legend, panel

Frame = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "H W"]
GROUPS = ("stages", "clusters", "neighbours", "strength", "passes", "position", "normalise", "blocks", "timestep")
"""Groups of the ablation's rows, in the order of the figure."""


def with_errors(frame: Frame, labels: Labels, truth: Labels) -> Frame:
    """The overlay with wrong pixels black; where the truth is void nothing is wrong."""
    picture = blend(frame, labels, 0.6)
    picture[(labels != truth) & (truth != VOID)] = 0
    return picture


def show_named_ways(frame: Frame, truth: Labels, maps: Mapping[str, Labels], names: Mapping[int, str]) -> Figure:
    """The truth of a frame and label maps beside it, three to a row, wrong pixels black."""
    rows = -(-(len(maps) + 2) // 3)
    figure = Drawing(figsize=(9, rows * (3 * frame.shape[0] / frame.shape[1] + 0.3) + 0.4), layout="constrained")
    axes = figure.subplots(rows, 3).ravel()
    panel(axes[0], frame, "the frame")
    panel(axes[1], blend(frame, truth), "the truth")
    for place, (title, labels) in zip(axes[2:], maps.items(), strict=False):
        panel(place, with_errors(frame, labels, truth), title)
    for unused in axes[2 + len(maps) :]:
        unused.set_axis_off()
    legend(figure, [truth], names)
    return figure


def show_scores(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> Figure:
    """Scores in percent, a column of horizontal bars for each measure, its values written at them; NaN is a dash."""
    figure = Drawing(figsize=(9, 0.9 + 0.32 * len(rows)), layout="constrained")
    grid, at = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], np.arange(len(rows))[::-1]
    for axes, column in zip(grid, columns, strict=True):
        values = 100 * np.array([row[column] for row in rows.values()])
        axes.barh(at, np.nan_to_num(values), color="0.75", height=0.8)
        for y, value in zip(at, values, strict=True):
            axes.text(3, y, "–" if np.isnan(value) else f"{value:.1f}", va="center", fontsize=9)
        axes.set_title(column, fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xticks([])
        axes.set_yticks(at, list(rows), fontsize=9)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def show_class_bars(
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]], classes: Mapping[str, Sequence[str]]
) -> Figure:
    """IoU of each class in percent: a panel for each set, a group of bars for each method, a colour for each class."""
    figure = Drawing(figsize=(9, 2.5 * len(scores)), layout="constrained")
    for axes, (name, of) in zip(figure.subplots(len(scores), 1, squeeze=False)[:, 0], scores.items(), strict=True):
        count = len(classes[name])
        for k, title in enumerate(classes[name]):
            x = np.arange(len(of)) + (k - (count - 1) / 2) * 0.8 / count
            bars = axes.bar(x, [100 * iou[k] for iou in of.values()], 0.8 / count, color=PALETTE[k] / 255, label=title)
            axes.bar_label(bars, fmt="%.0f", fontsize=8)
        axes.set_xticks(range(len(of)), list(of), fontsize=9)
        axes.set_ylabel("IoU, %", fontsize=9)
        axes.set_ylim(0, 112)
        axes.set_title(name, fontsize=10)
        axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def show_gallery(entries: Sequence[tuple[str, Frame, Labels, Labels]]) -> Figure:
    """Failures side by side, (title, frame, labels, truth) each: above the truth, below the labels, wrong ones black."""
    width, (height, side) = 9 / len(entries), entries[0][1].shape[:2]
    figure = Drawing(figsize=(9, 2 * width * height / side + 0.6), layout="constrained")
    for column, (title, frame, labels, truth) in zip(figure.subplots(2, len(entries), squeeze=False).T, entries, strict=True):
        panel(column[0], blend(frame, truth, 0.25), title)
        panel(column[1], with_errors(frame, labels, truth), "")
    return figure


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

    Below a measure of each method over the labelled frames, the chosen one thick, `place` marked. Panel "curve" takes clicks,
    x in numbers of labelled frames."""
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
        style = ("-", "--", ":", "-.", (0, (1, 3)))[k % 5]
        chosen = name == method
        axes.plot(100 * np.array(values), style, color="black" if chosen else "0.55", linewidth=2.5 if chosen else 1.2,
                  marker="o", markersize=4, label=name)  # fmt: skip
    axes.axvline(place, color="black", linewidth=0.8)
    axes.set_xticks(range(len(next(iter(curves.values())))))
    axes.set_xlabel("labelled frame (click to choose)", fontsize=9)
    axes.set_ylabel(f"{metric}, %", fontsize=9)
    axes.legend(fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(curves))
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, [truth], names)
    return figure


def show_gains(tables: Mapping[str, Sequence[Mapping[str, str | float]]], metric: str, otherwise: str) -> Figure:
    """What each row of the ablation gains over the row it is compared with, clip by clip, in percent points: mean and standard
    error over clips, a column for each set. Without tables, the sentence `otherwise`."""
    if not tables:
        figure = Drawing(figsize=(9, 0.8), layout="constrained")
        figure.text(0.5, 0.5, otherwise.replace(": ", ":\n", 1), ha="center", va="center", fontsize=10)
        return figure
    first = next(iter(tables.values()))
    keys = [(g, line["row"]) for g in GROUPS for line in first if line["group"] == g and line["row"] != "coarse cells"]
    figure = Drawing(figsize=(9, 1.2 + 0.23 * len(keys)), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, len(tables), sharey=True, squeeze=False)[0], tables.items(), strict=True):
        _gains(axes, {(line["group"], line["row"]): line for line in table}, keys, metric)
        axes.set_title(name, fontsize=10)
    figure.supxlabel(f"gain in {metric}, percent points ± standard error", fontsize=9)  # once: two do not fit side by side
    return figure


def _gains(axes: Axes, lines: Mapping, keys: Sequence[tuple[str, str]], metric: str) -> None:
    at = np.arange(len(keys))[::-1]
    for y, key in zip(at, keys, strict=True):
        line = lines.get(key, {})
        gain, error = (100 * float(line.get(f"{metric} gain{end}", np.nan)) for end in ("", " error"))
        if np.isnan(gain):
            axes.plot(0, y, "o", color="0.2", markersize=5, markerfacecolor="white")  # a row that is compared with itself
        else:
            axes.errorbar(gain, y, xerr=np.nan_to_num(error), fmt="o", color="0.2", markersize=4, capsize=2, linewidth=1.2)
    starts = [i for i in range(1, len(keys)) if keys[i][0] != keys[i - 1][0]]
    for i in starts:
        axes.axhline(at[i] + 0.5, color="0.8", linewidth=0.8)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_yticks(at, [_short(group, row) for group, row in keys], fontsize=9)
    axes.set_ylim(-0.7, len(keys) - 0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _short(group: str, row: str) -> str:
    row = "default: both of the last" if row.startswith("default: ") and "," in row else row
    row = row.replace("clusters named, K", "K").replace("lambda", "λ") if group in ("clusters", "strength") else row
    return re.sub("_blocks?|entions", "", row)
