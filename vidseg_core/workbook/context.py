"""Stage 2 by hand: clusters and their merging, flicker, what is remembered when the scene changes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vidseg_core.common import InputError
from vidseg_core.context import Clusters, SceneContext, cut_merges, kmeans, merge_order, nearest_references
from vidseg_core.features import Features, extract_features
from vidseg_core.models.backbone import Backbone
from vidseg_core.scene import open_scene
from vidseg_core.settings import ContextSettings, Settings
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.pictures.context import show_clusters, show_flicker, show_memory
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, levels, slider

Frames = UInt8[np.ndarray, "f H W 3"]
Cells = Integer[np.ndarray, "f h w"]


def read_features(backbone: Backbone, frames: Frames) -> Features:
    """Stage 1 with the model's own settings at its native size, on the CPU, for the later stages' explorers."""
    images = backbone.images(frames, backbone.working_size(*frames.shape[1:3]))
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
        return found, merge_order(found)

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


@dataclass(frozen=True)
class Remembered:
    """`labels` [f, h, w] by k-NN; `distance` [f, h, w], Euclidean, to the nearest token that was remembered at that moment."""

    labels: Cells
    distance: Float[np.ndarray, "f h w"]


def run_memory(
    context: Float[Tensor, "f h w d"], settings: ContextSettings, window: int, keeps: str = "anchored", seed: int = 0
) -> Remembered:
    """Stage 2 alone, as the pipeline runs it: K-means on the first window fills the memory; each window is labelled from it.
    What it `keeps` then: "anchored" the first window and the last, "window" the last, "first" the first for ever."""
    memory = SceneContext(replace(settings, memory="anchored" if keeps == "anchored" else "window"), seed)
    first, labels, distances = context[:window].flatten(0, 2), [], []
    memory.open(first, kmeans(first, settings, seed).labels)
    for part in context.split(window):
        labels.append(memory.predict(part))
        squared, _ = nearest_references(part.flatten(0, 2), memory.tokens, 1)
        distances.append(squared.sqrt().reshape(part.shape[:3]))
        if keeps != "first":
            memory.update(part, labels[-1])
    return Remembered(torch.cat(labels).numpy(), torch.cat(distances).numpy())


def stability(labels: Cells, flow: Float[np.ndarray, "g H W 2"], visible: Bool[np.ndarray, "g H W"]) -> Float[np.ndarray, " g"]:
    """Share of cells that have, one frame later, the same label where they went. `flow` is (dy, dx) in pixels and exact; cells
    that are hidden or out of the picture then do not count."""
    cells, size = labels.shape[1:], flow.shape[1:3]
    rows, columns = ((2 * np.arange(n) + 1) * s // (2 * n) for n, s in zip(cells, size, strict=True))
    start = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    kept = []
    for n, (step, seen) in enumerate(zip(flow, visible, strict=True)):
        end = np.rint(start + step[rows][:, columns]).astype(int)
        y, x = (end[..., k].clip(0, size[k] - 1) * cells[k] // size[k] for k in range(2))
        kept.append((labels[n] == labels[n + 1][y, x])[seen[rows][:, columns]].mean())
    return np.array(kept)


def named_cells(features: Features, first_mask: Integer[np.ndarray, "H W"], settings: Settings) -> tuple[Cells, Cells]:
    """(clusters of frame 0 [1, h, w], classes of every cell [f, h, w]): the paper's protocol on one window, stage 2 alone."""
    found = kmeans(features.context.flatten(0, 2), settings.context, settings.seed)
    scene = open_scene(features, settings, first_mask, None)
    return found.labels.reshape(features.context.shape[:3])[:1].numpy(), scene.context.predict(features.context).numpy()


def agreement(labels: Cells, truth: Integer[np.ndarray, "f H W"]) -> Float[np.ndarray, "3 3"]:
    """Share of cells whose label is the true one, the truth shifted by (dy, dx) = -1, 0, 1 cells: entry [1, 1] is that in
    place, and the largest unless the labels are displaced."""
    wanted = at_centres(truth, labels.shape[1:])
    inside = (slice(None), slice(1, -1), slice(1, -1))
    shares = [(np.roll(wanted, (dy - 1, dx - 1), (1, 2)) == labels)[inside].mean() for dy, dx in np.ndindex(3, 3)]
    return np.array(shares).reshape(3, 3)


def explore_flicker(
    frames: Frames, context: Float[Tensor, "f h w d"], flow: Float[np.ndarray, "g H W 2"],
    visible: Bool[np.ndarray, "g H W"], settings: ContextSettings,
) -> Explorer:  # fmt: skip
    """K-means frame by frame against the context model: a strip of frames and the share of cells that keep their label.

    `shown` has "maps" and "stability", each with the keys "alone", "matched" and "model".
    """

    @lru_cache(maxsize=32)
    def label(num_clusters: int) -> tuple[dict, dict]:
        alone = replace(_quick(settings), num_clusters=num_clusters)
        raw, matched = frame_by_frame(context, alone)
        maps = {"alone": raw, "matched": matched, "model": run_memory(context, alone, len(context)).labels}
        return maps, {name: stability(m, flow, visible) for name, m in maps.items()}

    def draw(num_clusters: int, start: int) -> Drawn:
        maps, kept = label(num_clusters)
        names = {"alone": "K-means\nalone", "matched": "numbers\nmatched", "model": "context\nmodel"}
        shown = range(start, start + 5)
        figure = show_flicker(frames, {names[k]: m for k, m in maps.items()}, shown, {names[k]: c for k, c in kept.items()})
        return figure, {"maps": maps, "stability": kept}

    return Explorer(
        draw, num_clusters=slider("K", 8, 2, 20), start=slider("from frame", 0, 0, len(frames) - 5)
    )  # fmt: skip


@dataclass(frozen=True)
class Story:
    """A clip in which something happens: `new` [f, h, w] are the cells of what was not there at the start."""

    frames: Frames
    context: Float[Tensor, "f h w d"]
    new: Bool[np.ndarray, "f h w"]


def arrival(frames: Frames, context: Float[Tensor, "f h w d"], masks: Integer[np.ndarray, "f H W"], label: int) -> Story:
    """The story of an object, `label` in `masks`, that comes in late."""
    return Story(frames, context, at_centres(masks, tuple(context.shape[1:3])) == label)


def cut_to(
    before: Frames, context_before: Float[Tensor, "f h w d"], after: Frames, context_after: Float[Tensor, "g h w d"]
) -> Story:
    """Two clips one after the other: from the cut on, everything is new."""
    context = torch.cat([context_before, context_after])
    new = np.zeros(context.shape[:3], bool)
    new[len(before) :] = True
    return Story(np.concatenate([before, after]), context, new)


def there_and_back(
    here: Frames, context_here: Float[Tensor, "f h w d"], there: Frames, context_there: Float[Tensor, "g h w d"]
) -> Story:
    """A clip, another, and the first again: the other is what is new."""
    away = cut_to(here, context_here, there, context_there)
    new = np.concatenate([away.new, away.new[: len(here)]])
    return Story(np.concatenate([away.frames, here]), torch.cat([away.context, context_here]), new)


def explore_memory(stories: Mapping[str, Story], settings: ContextSettings) -> Explorer:
    """Window length, k, and what the memory keeps, for clips in which the scene changes.

    `shown` has "labels" and "distance" [f, h, w] and "curves": the mean distance over the clip of "what is new" and "the rest".
    """
    small = _quick(settings)

    @lru_cache(maxsize=64)
    def remember(story: str, window: int, keeps: str, neighbours: int) -> Remembered:
        return run_memory(stories[story].context, replace(small, neighbours=neighbours), window, keeps)

    def draw(story: str, window: int, neighbours: int, keeps: str, frame: int) -> Drawn:
        told, result = stories[story], remember(story, window, keeps, neighbours)
        curves = {"what is new": _means(result.distance, told.new), "the rest": _means(result.distance, ~told.new)}
        figure = show_memory(told.frames[frame], result.labels[frame], result.distance[frame], curves, window, frame)
        return figure, {"labels": result.labels, "distance": result.distance, "curves": curves}

    length = min(len(story.frames) for story in stories.values())
    return Explorer(
        draw,
        story=choice("story", next(iter(stories)), list(stories)),
        keeps=choice("memory", settings.memory, list(KEEPS.items())),
        window=slider("window", min(5, length // 2), 2, length // 2),
        neighbours=levels("k", settings.neighbours, (1, 2, 4, 8, 16)),
        frame=slider("frame", 0, 0, length - 1, live=True),
    )


KEEPS = {"the first window and the last": "anchored", "the last window (paper)": "window", "the first window for ever": "first"}


def _quick(settings: ContextSettings) -> ContextSettings:
    """For sliders that answer soon: one run of K-means, and a memory of 1,024 tokens (the pipeline's holds 4,096)."""
    return replace(settings, max_context=1024, num_segments=None, restarts=1)


def _means(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of each frame over the cells that count; NaN for a frame without any."""
    count = where.sum((1, 2))
    return np.where(count > 0, (values * where).sum((1, 2)) / np.maximum(count, 1), np.nan)
