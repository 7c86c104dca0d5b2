"""Figures of stage 2: the merge tree, the strip that makes flicker visible, what the memory knows."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidseg_core.workbook.figures import PALETTE, Drawing, blend, enlarge, legend, panel

Frames = UInt8[np.ndarray, "f H W 3"]
Cells = Integer[np.ndarray, "f h w"]


def show_clusters(
    frame: UInt8[np.ndarray, "H W 3"],
    clusters: Integer[np.ndarray, "h w"],
    segments: Integer[np.ndarray, "h w"],
    order: Integer[np.ndarray, "merges 2"],
    num_segments: int,
) -> Figure:
    """One frame's clusters, its segments after the cut, and the merge tree with the cut. Panels "clusters" and "segments"."""
    size = frame.shape[:2]
    figure = Drawing(figsize=(9, 3.1), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    panel(axes[0], blend(frame, enlarge(clusters, size)), f"{len(order) + 1} clusters", name="clusters")
    panel(axes[1], blend(frame, enlarge(segments, size)), f"cut at {num_segments}", name="segments")
    draw_tree(axes[2], order, num_segments)
    return figure


def draw_tree(axes: Axes, order: Integer[np.ndarray, "merges 2"], num_segments: int) -> None:
    """The merges from left (every cluster alone) to right (one segment): a line for each cluster in its segment's colour, which
    ends where another takes it in. The dashed line is the cut."""
    count = len(order) + 1
    groups, end = {k: [k] for k in range(count)}, {int(absorbed): count - n - 0.5 for n, (_, absorbed) in enumerate(order)}
    for kept, absorbed in order:
        groups[int(kept)] += groups.pop(int(absorbed))
    height = {cluster: n for n, cluster in enumerate(next(iter(groups.values())))}
    for cluster, y in height.items():
        axes.hlines(y, end.get(cluster, 0.5), count + 0.5, color=PALETTE[cluster] / 255, linewidth=2.5)
    for kept, absorbed in order:
        x, ends = end[int(absorbed)], sorted((height[int(kept)], height[int(absorbed)]))
        axes.vlines(x, *ends, color=PALETTE[absorbed] / 255, linewidth=2.5)
    axes.axvline(num_segments, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(count + 1, 0)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("segments left", fontsize=9)
    axes.set_title("merge tree", fontsize=10)


def show_flicker(
    frames: Frames, maps: Mapping[str, Cells], shown: Sequence[int], curves: Mapping[str, Float[np.ndarray, " g"]]
) -> Figure:
    """A strip of frames, a row for each way of labelling them, and below the share of cells that keep their label."""
    size, width = frames.shape[1:3], 8.6 / len(shown)
    rows = len(maps) + 1
    figure = Drawing(figsize=(9, rows * width * size[0] / size[1] + 2.8), layout="constrained")
    heights = [width * size[0] / size[1]] * rows + [1.9]
    grid = figure.add_gridspec(rows + 1, len(shown), height_ratios=heights)
    for k, n in enumerate(shown):
        panel(figure.add_subplot(grid[0, k]), frames[n], f"frame {n}")
        for row, (name, labels) in enumerate(maps.items(), 1):
            axes = figure.add_subplot(grid[row, k])
            panel(axes, blend(frames[n], enlarge(labels[n], size), 0.6), "")
            if k == 0:
                axes.text(-0.04, 0.5, name, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    below = figure.add_subplot(grid[-1, :])
    for (name, curve), style in zip(curves.items(), (":", "--", "-"), strict=False):
        below.plot(np.arange(1, len(curve) + 1), curve, style, color="black", label=name.replace("\n", " "), linewidth=1.8)
    below.set_ylim(0, 1.02)
    below.set_xlabel("frame", fontsize=9)
    below.set_ylabel("label kept", fontsize=9)
    below.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(curves), frameon=False)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.grid(alpha=0.3)
    return figure


def show_memory(
    frame: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "h w"],
    distance: Float[np.ndarray, "h w"],
    curves: Mapping[str, Float[np.ndarray, " f"]],
    window: int,
    number: int,
) -> Figure:
    """One frame, its labels and how far each cell is from what is remembered; below, that distance over the clip, with a
    dotted line where a window begins. Panel "frame"."""
    figure = Drawing(figsize=(9, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1))
    top, size = [figure.add_subplot(grid[0, k]) for k in range(3)], frame.shape[:2]
    panel(top[0], frame, f"frame {number}", name="frame")
    panel(top[1], blend(frame, enlarge(labels, size)), "label of the nearest memories")
    peak = max(float(np.nanmax(curve)) for curve in curves.values())
    panel(top[2], distance, "distance to them (black: 0)", size, cmap="magma", vmin=0, vmax=1.3 * peak)
    below = figure.add_subplot(grid[1, :])
    for (name, curve), style in zip(curves.items(), ("-", "--"), strict=False):
        below.plot(curve, style, color="black", label=name, linewidth=1.8)
    for start in range(0, len(curve), window):
        below.axvline(start - 0.5, color="grey", linestyle=":", linewidth=1)
    below.axvline(number, color="grey", linewidth=3, alpha=0.35)
    below.set_ylim(0, None)
    below.set_xlabel("frame", fontsize=9)
    below.set_ylabel("mean distance", fontsize=9)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


def show_named(
    frames: Mapping[str, UInt8[np.ndarray, "H W 3"]],
    maps: Mapping[str, Integer[np.ndarray, "h w"]],
    names: Mapping[int, str],
    chosen: int,
) -> Figure:
    """Frames with their segments under one legend of names, and the chosen segment alone. Every panel takes clicks; its name
    is its title."""
    columns = len(frames) + 1
    first = next(iter(frames))
    size = frames[first].shape[:2]
    figure = Drawing(figsize=(9, 9 / columns * size[0] / size[1] + 1.1), layout="constrained")
    axes = figure.subplots(1, columns)
    for k, (title, frame) in enumerate(frames.items()):
        panel(axes[k], blend(frame, enlarge(maps[title], size)), title, name=title)
    alone = np.where(enlarge(maps[first], size) == chosen, chosen, 255)
    faded = (frames[first] // 2 + 127).astype(np.uint8)
    panel(axes[-1], blend(faded, alone, 0.7), f"chosen: {names.get(chosen, f'segment {chosen}')}", name=first)
    legend(figure, list(maps.values()), names)
    return figure
