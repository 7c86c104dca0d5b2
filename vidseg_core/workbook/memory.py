"""What stage 2 remembers when the scene changes, in clips in which something happens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vidseg_core.common import enlarge
from vidseg_core.context import SceneContext, kmeans, nearest_references
from vidseg_core.io.overlay import Drawing, blend, panel
from vidseg_core.settings import ContextSettings
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, levels, slider

Frames = UInt8[np.ndarray, "f H W 3"]
Cells = Integer[np.ndarray, "f h w"]
KEEPS = {"the first window and the last": "anchored", "the last window (paper)": "window", "the first window for ever": "first"}


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
    first, labels, distances = context[:window].flatten(0, 2), [], []
    kept = replace(settings, memory="anchored" if keeps == "anchored" else "window")
    memory = SceneContext.begin(first, kmeans(first, settings, seed).labels, kept, seed)
    for part in context.split(window):
        labels.append(memory.predict(part).argmax(-1))
        squared, _ = nearest_references(part.flatten(0, 2), memory.tokens, 1)
        distances.append(squared.sqrt().reshape(part.shape[:3]))
        if keeps != "first":
            memory = memory.after(part, labels[-1])
    return Remembered(torch.cat(labels).numpy(), torch.cat(distances).numpy())


def quick(settings: ContextSettings) -> ContextSettings:
    """For sliders that answer soon: one run of K-means, and a memory of 1,024 tokens (the pipeline's holds 6,144)."""
    return replace(settings, max_context=1024, num_segments=None, restarts=1)


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
    small = quick(settings)

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


def _means(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of each frame over the cells that count; NaN for a frame without any."""
    count = where.sum((1, 2))
    return np.where(count > 0, (values * where).sum((1, 2)) / np.maximum(count, 1), np.nan)


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
