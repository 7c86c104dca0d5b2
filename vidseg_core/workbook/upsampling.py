"""Stage 4 by hand: pictures of one mask's way, of borders close up, and of the winner's lead."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import ndimage

from vidseg_core.common import enlarge
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.workbook.widgets import Drawn, Explorer, slider

Frame = UInt8[np.ndarray, "H W 3"]
Pixels = Integer[np.ndarray, "H W"]
Colours = Float[np.ndarray, "a b 3"]
Map = Float[np.ndarray, "H W"]


def show_modulation(
    frame: Frame,
    chosen: Bool[np.ndarray, "h w"],
    plus: Colours,
    minus: Colours,
    response: Float[np.ndarray, "a b"],
    score: Float[np.ndarray, "c d"],
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
    panel(axes[1, 0], response, "the response (black: 0)", size, cmap="magma", vmin=0)
    panel(axes[1, 1], score, "its score", cmap="magma", vmin=0, vmax=1)
    panel(axes[1, 2], blend(frame, labels), "the largest score takes the pixel")
    legend(figure, [labels], names)
    return figure


def near_borders(truth: Pixels, distance: int) -> np.ndarray:
    """Bool [H, W]: pixels within `distance` of a true border."""
    inside = [ndimage.distance_transform_edt(truth == name) for name in np.unique(truth)]
    return np.max(inside, axis=0) <= distance


def explore_borders(frame: Frame, maps: Mapping[str, Pixels], truth: Pixels) -> Explorer:
    """Several label maps of one frame close up, wrong pixels in black: click into the frame, or use the sliders.

    `shown` has "view" (top, left, height, width) and "right", the share of right pixels of each map in it.
    """
    size = frame.shape[:2]

    def draw(row: int, column: int, width: int) -> Drawn:
        height = width * size[0] // size[1]
        top, left = (int(np.clip(p - s // 2, 0, n - s)) for p, s, n in zip((row, column), (height, width), size, strict=True))
        cut = np.s_[top : top + height, left : left + width]
        right = {name: float((labels[cut] == truth[cut]).mean()) for name, labels in maps.items()}
        view = (top, left, height, width)
        return show_borders(frame, maps, truth, view, right), {"view": view, "right": right}

    return Explorer(
        draw, lambda panel, x, y: {"row": int(y), "column": int(x)},
        row=slider("y", size[0] // 2, 0, size[0] - 1), column=slider("x", size[1] // 2, 0, size[1] - 1),
        width=slider("width", size[1] // 4, size[1] // 10, size[1]),
    )  # fmt: skip


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
