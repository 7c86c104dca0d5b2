"""Stage 2 by hand: clusters and their merging, flicker, the paper's protocol on cells."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vidseg_core.common import InputError, enlarge
from vidseg_core.context import Clusters, kmeans
from vidseg_core.features import Features, extract_features, working_images
from vidseg_core.io.masks import PALETTE
from vidseg_core.io.overlay import Drawing, blend, panel
from vidseg_core.merging import cut_merges, merge_order
from vidseg_core.models.backbone import Backbone
from vidseg_core.scene import open_scene
from vidseg_core.settings import ContextSettings, Settings
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.widgets import Drawn, Explorer, slider

Frames = UInt8[np.ndarray, "f H W 3"]
Cells = Integer[np.ndarray, "f h w"]


def read_features(backbone: Backbone, frames: Frames) -> Features:
    """Stage 1 with the model's own settings at its native size, on the CPU, for the later stages' explorers."""
    images = working_images(backbone, frames, Settings())
    features = extract_features(backbone, images, Settings().resolve(backbone.model))
    return Features(features.context.cpu(), features.match.cpu())


def part(features: Features, frames: slice) -> Features:
    """The features of some of the frames."""
    return Features(features.context[frames], features.match[frames])


def explore_clusters(frames: Frames, context: Float[Tensor, "f h w d"], settings: ContextSettings) -> Explorer:
    """K, seed and granularity of the clusters of one window, frame by frame.

    K and seed run K-means once (the pipeline keeps the best of `restarts` runs), the cut is a look-up.
    `shown` has "clusters" and "segments" [f, h, w] and "inertia", the sum of squared distances.
    """

    @lru_cache(maxsize=64)
    def cluster(num_clusters: int, seed: int) -> tuple[Clusters, np.ndarray]:
        found = kmeans(context.flatten(0, 2), replace(settings, num_clusters=num_clusters, num_segments=None, restarts=1), seed)
        return found, merge_order(found, settings.size_weight)[0]

    def draw(num_clusters: int, seed: int, num_segments: int, frame: int) -> Drawn:
        if num_segments > num_clusters:
            raise InputError(
                f"{num_segments} segments cannot be cut from {num_clusters} clusters: lower one or raise the other"
            )
        found, order = cluster(num_clusters, seed)
        clusters = found.labels.reshape(context.shape[:3]).numpy()
        segments = cut_merges(order, num_segments)[clusters]
        figure = show_clusters(frames[frame], clusters[frame], segments[frame], order, num_segments)
        return figure, {"clusters": clusters, "segments": segments, "inertia": found.inertia}

    return Explorer(
        draw,
        num_clusters=slider("K", settings.num_clusters, 2, 40),
        num_segments=slider("segments", 8, 1, 40, live=True),
        seed=slider("seed", 0, 0, 9),
        frame=slider("frame", 0, 0, len(frames) - 1, live=True),
    )


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


def frame_by_frame(context: Float[Tensor, "f h w d"], settings: ContextSettings, seed: int = 0) -> tuple[Cells, Cells]:
    """K-means of each frame alone: labels as they come, and renumbered so that each cluster overlaps most with its namesake
    in the frame before (Hungarian method, Kuhn 1955). Both [f, h, w]."""
    raw = np.stack([kmeans(f.flatten(0, 1), settings, seed + n).labels.reshape(f.shape[:2]) for n, f in enumerate(context)])
    matched = raw.copy()
    for n in range(1, len(raw)):
        overlap = np.zeros((settings.num_clusters,) * 2)
        np.add.at(overlap, (raw[n], matched[n - 1]), 1)
        matched[n] = linear_sum_assignment(-overlap)[1][raw[n]]
    return raw, matched


def named_cells(features: Features, first_mask: Integer[np.ndarray, "H W"], settings: Settings) -> Cells:
    """Class of every cell [f, h, w]: the paper's protocol on one window, stage 2 alone."""
    scene = open_scene(features, settings, first_mask, None)
    return scene.named(scene.predict(features)).labels.numpy()


def clustered_cells(features: Features, settings: Settings) -> Cells:
    """Cluster of every cell [f, h, w] of one window."""
    found = kmeans(features.context.flatten(0, 2), settings.context, settings.seed)
    return found.labels.reshape(features.context.shape[:3]).numpy()


def agreement(labels: Cells, truth: Integer[np.ndarray, "f H W"]) -> Float[np.ndarray, "3 3"]:
    """Share of cells whose label is the true one, the truth shifted by (dy, dx) = -1, 0, 1 cells: entry [1, 1] is that in
    place, and the largest unless the labels are displaced."""
    wanted = at_centres(truth, labels.shape[1:])
    inside = (slice(None), slice(1, -1), slice(1, -1))
    shares = [(np.roll(wanted, (dy - 1, dx - 1), (1, 2)) == labels)[inside].mean() for dy, dx in np.ndindex(3, 3)]
    return np.array(shares).reshape(3, 3)


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
