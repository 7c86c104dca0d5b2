"""Figures of stage 4: one mask's two predictions, borders seen closely, confidence, what is replayed."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from vidseg_core.workbook.figures import Drawing, blend, enlarge, legend, panel

Frame = UInt8[np.ndarray, "H W 3"]
Colours = Float[np.ndarray, "a b 3"]
Map = Float[np.ndarray, "H W"]


def show_modulation(
    frame: Frame,
    chosen: Bool[np.ndarray, "h w"],
    plus: Colours,
    minus: Colours,
    response: Float[np.ndarray, "a b"],
    score: Float[np.ndarray, "a b"],
    labels: Integer[np.ndarray, "H W"],
    names: Mapping[int, str],
) -> Figure:
    """One mask on its way: its cells, the predictions with +lambda and -lambda (RGB in 0..1, at the working size), their
    distance, its score, and the labels that all masks together give. Panel "cells" takes clicks."""
    size = frame.shape[:2]
    figure = Drawing(figsize=(9, 6 * size[0] / size[1] + 1.3), layout="constrained")
    axes = figure.subplots(2, 3)
    inside = enlarge(chosen.astype(np.int64), size) == 1
    panel(axes[0, 0], np.where(inside[..., None], frame, frame // 4 + 160).astype(np.uint8), "the mask, in cells", name="cells")
    panel(axes[0, 1], plus, "prediction with +λ", size)
    panel(axes[0, 2], minus, "prediction with -λ", size)
    panel(axes[1, 0], response, "their distance (black: 0)", size, cmap="magma", vmin=0)
    panel(axes[1, 1], score, "blurred, scaled, damped", cmap="magma", vmin=0, vmax=1)
    panel(axes[1, 2], blend(frame, labels), "the largest score takes the pixel")
    legend(figure, [labels], names)
    return figure


def show_borders(
    frame: Frame,
    maps: Mapping[str, Integer[np.ndarray, "H W"]],
    truth: Integer[np.ndarray, "H W"],
    view: tuple[int, int, int, int],
    right: Mapping[str, float],
) -> Figure:
    """The frame with a rectangle, `view` = (top, left, height, width) in pixels, and what is in it: the true outline in white,
    then each map, wrong pixels in black, with the share of right ones in its title. Panel "frame" takes clicks."""
    top, left, height, width = view
    figure = Drawing(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    panel(axes[0], frame, "click to look elsewhere", name="frame")
    axes[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="black", linewidth=3.5))
    axes[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white", linewidth=1.5))
    cut = np.s_[top : top + height, left : left + width]
    panel(axes[1], blend(frame[cut], truth[cut], 0.0), "the true outline")
    for place, (name, labels) in zip(axes[2:], maps.items(), strict=False):
        picture = blend(frame[cut], labels[cut], 0.6)
        picture[labels[cut] != truth[cut]] = 0
        panel(place, picture, f"{name}: {right[name]:.1%} right")
    for unused in axes[2 + len(maps) :]:
        unused.set_axis_off()
    return figure


def show_confidence(frame: Frame, labels: Integer[np.ndarray, "H W"], margin: Map, wrong: Bool[np.ndarray, "H W"]) -> Figure:
    """Labels, by how much the winner beat the runner-up, and the pixels that are wrong (black)."""
    figure = Drawing(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    panel(axes[0], blend(frame, labels), "labels")
    panel(axes[1], margin, "lead of the winner (black: 0)", cmap="magma", vmin=0, vmax=1)
    faded = (frame // 4 + 170).astype(np.uint8)
    panel(axes[2], np.where(wrong[..., None], 0, faded).astype(np.uint8), "wrong pixels")
    return figure


def show_colouring(
    frame: Frame,
    cells: Integer[np.ndarray, "h w"],
    passes: Integer[np.ndarray, "h w"],
    labels: Integer[np.ndarray, "H W"],
    other: Bool[np.ndarray, "H W"],
    curve: Float[np.ndarray, "n 2"],
) -> Figure:
    """The masks of a frame, the pass that each is modulated in, the labels, the pixels that get another label if each mask is
    modulated alone (black), and `curve`, (passes, share of the other pixels) of several ways to share passes."""
    size, count = frame.shape[:2], int(passes.max()) + 1
    figure = Drawing(figsize=(9, 6 * size[0] / size[1] + 0.9), layout="constrained")
    axes = figure.subplots(2, 3)
    panel(axes[0, 0], frame, "the frame")
    panel(axes[0, 1], blend(frame, enlarge(cells, size)), f"{len(np.unique(cells))} masks, in cells")
    panel(axes[0, 2], enlarge(passes, size), f"the pass of each: {count} passes", cmap="gray", vmin=-1, vmax=max(count - 1, 1))
    panel(axes[1, 0], blend(frame, labels), "labels")
    faded = (frame // 4 + 170).astype(np.uint8)
    panel(axes[1, 1], np.where(other[..., None], 0, faded).astype(np.uint8), f"otherwise than each alone: {other.mean():.1%}")
    axes[1, 2].plot(curve[:, 0], 100 * curve[:, 1], "o-", color="black", markersize=4)
    axes[1, 2].plot(
        count, 100 - 100 * other.mean(), "o", color="black", markersize=11, markerfacecolor="none", markeredgewidth=2
    )
    axes[1, 2].set_xlabel("passes", fontsize=9)
    axes[1, 2].set_title("% of pixels as with each alone", fontsize=10)
    axes[1, 2].grid(alpha=0.3)
    return figure


def show_replay(parts: Sequence[tuple[str, float, bool]], masks: int) -> Figure:
    """Where the time of a UNet pass goes, from left to right in the order of running: `parts` are (module, seconds, whether it
    runs before the modulated layer). Above one pass for the frame, below one for each mask and sign, `masks` of them."""
    figure = Drawing(figsize=(9, 2.6), layout="constrained")
    axes, at = figure.subplots(), 0.0
    total = sum(seconds for _, seconds, _ in parts)
    for name, seconds, before in parts:
        width = 100 * seconds / total
        axes.barh(1, width, left=at, color="0.75" if before else "0.35", edgecolor="white", height=0.62)
        if before:
            axes.barh(0, width, left=at, color="none", edgecolor="0.75", linestyle=":", height=0.62)
        else:
            axes.barh(0, width, left=at, color="0.35", edgecolor="white", height=0.62)
        short, colour = re.sub("_blocks?|entions", "", name), "black" if before else "white"
        if width > 0.9 * len(short):
            axes.text(at + width / 2, 1, short, ha="center", va="center", fontsize=8, color=colour)
        at += width
    later = sum(seconds for _, seconds, before in parts if not before) / total
    axes.set_yticks([1, 0], ["once for the frame", f"{2 * masks} times: each\nmask and sign"], fontsize=9)
    axes.set_xlabel("share of the time of a UNet pass, %", fontsize=9)
    axes.set_xlim(0, 100)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    labels = "before the modulated layer: recorded, and replayed", f"after it: {later:.0%} of a pass"
    handles = [Patch(color=c, label=label) for c, label in zip(("0.75", "0.35"), labels, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure
