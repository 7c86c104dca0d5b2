"""An image and a video model side by side: features along true motion, what is hidden, seams of windows, first frames."""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

import ipywidgets
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from vidseg_core.common import enlarge
from vidseg_core.features import Features
from vidseg_core.io.overlay import Drawing, blend, panel
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.models.backbone import Backbone, Condition
from vidseg_core.models.video_backbone import VideoBackbone
from vidseg_core.settings import Settings
from vidseg_core.workbook.context import named_cells, read_features
from vidseg_core.workbook.figures import mark
from vidseg_core.workbook.motion import true_paths
from vidseg_core.workbook.steadiness import guess_lost, hide, judge_lost, lost_cells
from vidseg_core.workbook.widgets import STYLE, Drawn, Explorer, pick, slider

Frames = UInt8[np.ndarray, "f H W 3"]


def follow_point(
    models: Mapping[str, Float[torch.Tensor, "f h w e"]], clip: GeneratedClip, point: tuple[int, int]
) -> dict[str, Float[np.ndarray, " f"]]:
    """For each model's features the cosine between a point (y, x) of frame 0, in pixels, and the true place of that point in
    each frame; NaN where it is hidden."""
    curves = {}
    for name, match in models.items():
        unit, cells = torch.nn.functional.normalize(match, dim=-1), np.array(match.shape[1:3])
        path = true_paths(clip, np.array([point]), 0, len(match))[0]
        place = np.nan_to_num(path * cells // clip.labels.shape[1:]).astype(int).clip(0, cells - 1)
        own = torch.stack([unit[n, y, x] for n, (y, x) in enumerate(place)])
        curves[name] = np.where(np.isfinite(path[:, 0]), (own @ own[0]).numpy(), np.nan)
    return curves


def explore_point(models: Mapping[str, Float[torch.Tensor, "f h w e"]], clip: GeneratedClip) -> Explorer:
    """Click a point of frame 0: how similar its features stay to themselves along its true way, a curve for each model.
    `shown` has "curves" by model."""
    size = clip.labels.shape[1:]

    def draw(y: int, x: int) -> Drawn:
        curves = follow_point(models, clip, (y, x))
        figure = Drawing(figsize=(9, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        panel(left, clip.frames[0], "frame 0: click a point", size, name="0")
        mark(left, y, x, size, size)
        for (name, curve), style in zip(curves.items(), ("-", "--", ":"), strict=False):
            right.plot(curve, style, color="black", label=name)
        right.set(ylim=(-0.05, 1.05), xlabel="frame", ylabel="cosine with itself in frame 0")
        right.legend(fontsize=9, frameon=False)
        return figure, {"curves": curves}

    return Explorer(
        draw, lambda panel, x, y: pick(size, size, x, y) and {"y": int(y), "x": int(x)},
        y=slider("y", size[0] // 2, 0, size[0] - 1, live=True), x=slider("x", size[1] // 2, 0, size[1] - 1, live=True),
    )  # fmt: skip


def show_seam(curves: Mapping[str, Float[np.ndarray, " g"]], seams: Sequence[int]) -> Figure:
    """Similarity along the motion from frame to frame, a line for each model; dotted where a window ends."""
    figure = Drawing(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    for (name, curve), style in zip(curves.items(), ("-", "--", "-.", ":"), strict=False):
        axes.plot(np.arange(1, len(curve) + 1), curve, style, color="black", label=name)
    for seam in seams:
        axes.axvline(seam, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="frame", ylabel="cosine with the frame before")
    axes.legend(fontsize=9, frameon=False)
    return figure


def conditioned(backbone: VideoBackbone, frames: Frames, first: UInt8[np.ndarray, "H W 3"] | None) -> Features:
    """Features of the frames when the model is told another first frame, or none (the condition is zero)."""

    def condition(images: torch.Tensor, settings: object, seed: int) -> Condition:
        own = type(backbone).condition(backbone, images if first is None else other(images), settings, seed)
        if first is not None:
            return own
        return Condition(torch.zeros_like(own.embedding), own.frames, torch.zeros_like(own.first), own.numbers)

    def other(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([backbone.images(first[None], tuple(images.shape[2:])), images[1:]])

    backbone.condition = condition
    try:
        return read_features(backbone, frames)
    finally:
        del backbone.condition


def explore_hidden(models: Mapping[str, Backbone], clip: GeneratedClip, frames: int) -> Explorer:
    """How much of a frame is lost, and which frame: the classes that the context model finds there with each model's features.

    A pass over the window for each model and setting; what was seen is remembered. `shown` has "right" by model, the share of
    the lost cells that get their true class, and "guess", what the guesses of `guess_lost` get right there.
    """
    size, settings, shown = clip.labels.shape[1:], Settings(), clip.frames[:frames]

    @lru_cache(maxsize=64)
    def label(name: str, frame: int, lost: float) -> np.ndarray:
        return named_cells(read_features(models[name], hide(shown, frame, lost)), clip.labels[0], settings)[frame]

    def draw(frame: int, lost: float) -> Drawn:
        spoiled, figure, right = hide(shown, frame, lost), Drawing(figsize=(9, 2.7), layout="constrained"), {}
        first, *others = figure.subplots(1, len(models) + 1)
        for axes, name in zip(others, models, strict=True):
            cells = label(name, frame, lost)
            there = lost_cells(shown, spoiled, frame, cells.shape)
            right[name] = judge_lost(cells, clip.labels[frame], there).right
            guesses = guess_lost(clip.labels, frame, there)
            panel(axes, blend(spoiled[frame], enlarge(cells, size), 0.7), f"{name}: {right[name]:.0%} right there")
        guess = {name: judge_lost(cells, clip.labels[frame], there).right for name, cells in guesses.items()}
        panel(first, spoiled[frame], f"frame {frame}; the better guess: {max(guess.values()):.0%}")
        return figure, {"right": right, "guess": guess}

    return Explorer(
        draw, states=[{"frame": range(1, frames, 3)}, {"lost": (0.1, 0.3, 0.7, 1.0)}],  # each takes a pass of every model
        frame=slider("frame", frames // 2, 1, frames - 1),
        lost=ipywidgets.FloatSlider(
            value=0.5, min=0.1, max=1.0, step=0.1, description="lost", continuous_update=False, **STYLE
        ),
    )  # fmt: skip


def seconds_a_window(backbone: Backbone, frames: Frames) -> float:
    """What stage 1 takes for these frames, after a pass that warms up."""
    read_features(backbone, frames[:2])
    started = time.perf_counter()
    read_features(backbone, frames)
    return time.perf_counter() - started
