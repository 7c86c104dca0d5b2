"""Figures of stage 1: noise levels, queries as colours, similarity maps, tables of scores."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from vidseg_core.workbook.figures import Drawing, mark, panel

Pictures = Mapping[str, Sequence[np.ndarray]]


def show_grid(rows: Pictures, titles: Sequence[str], size: tuple[int, int]) -> Figure:
    """Rows of pictures ([h, w, 3], uint8 or floats in 0..1) under shared column titles, each row named at its left.

    `size` = (H, W) is the frame's: pictures made of cells are stretched to it.
    """
    width = 9 / len(titles)
    figure = Drawing(figsize=(9, len(rows) * (width * size[0] / size[1] + 0.05) + 0.35), layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for n, (axes, (name, pictures)) in enumerate(zip(grid, rows.items(), strict=True)):
        for k, picture in enumerate(pictures):
            panel(axes[k], picture, titles[k] if n == 0 else "", size)
        axes[0].text(-0.03, 0.5, name, transform=axes[0].transAxes, rotation=90, ha="right", va="center", fontsize=10)
    return figure


def show_similarity(
    frames: UInt8[np.ndarray, "f H W 3"],
    similarity: Float[np.ndarray, "f h w"],
    best: Sequence[tuple[int, int]],
    source: tuple[int, int, int],
    numbers: Sequence[int],
) -> Figure:
    """Frames above, below them how similar each cell is to the cell `source` = (frame, row, column), circled; a cross stands
    on the most similar cell of each frame. `numbers` are the frames' numbers in the clip. Panels "0", "1", ... take clicks."""
    size, cells = frames.shape[1:3], similarity.shape[1:]
    width = 9 / len(frames)
    figure = Drawing(figsize=(9, 2 * width * size[0] / size[1] + 0.9), layout="constrained")
    axes = figure.subplots(2, len(frames), squeeze=False)
    for k, frame in enumerate(frames):
        panel(axes[0, k], frame, f"frame {numbers[k]}", size, name=str(k))
        panel(axes[1, k], similarity[k], "", size, name=f"similarity {k}", cmap="magma", vmin=0, vmax=1)
        for row in axes[:, k]:
            mark(row, *best[k], cells, size, "x")
        if k == source[0]:
            mark(axes[0, k], *source[1:], cells, size)
            mark(axes[1, k], *source[1:], cells, size)
    bar = figure.colorbar(axes[1, 0].images[0], ax=axes[1], location="bottom", shrink=0.4, aspect=40, pad=0.02)
    bar.set_label("cosine similarity of the queries", fontsize=9)
    return figure


def show_table(
    values: Float[np.ndarray, "r c"], rows: Sequence[str], columns: Sequence[str], title: str, best: str = "column"
) -> Figure:
    """Numbers in a shaded table, darker where larger; framed is the largest of each `best`: "column", "row", or of "all"."""
    figure = Drawing(figsize=(min(9, 2.6 + 0.9 * len(columns)), 0.9 + 0.34 * len(rows)), layout="constrained")
    axes, low = figure.subplots(), np.nanmin(values)
    span = max(np.nanmax(values) - low, 0.05)
    axes.imshow(values, aspect="auto", cmap="Greys", vmin=low - 0.1 * span, vmax=low + 2 * span)
    for (r, c), value in np.ndenumerate(values):
        rivals = {"column": values[:, c], "row": values[r], "all": values}[best]
        frame = {"facecolor": "none", "edgecolor": "black"} if value == np.nanmax(rivals) else None
        axes.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=10, bbox=frame)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_visible(False)
    return figure
