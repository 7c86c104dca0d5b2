"""The votes of stage 3 by hand, that of the neighbours and that of the tracks, against the exact answer."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.figure import Figure

from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.correspondence import Overlap, neighbour_vote
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.settings import RefineSettings
from vidseg_core.workbook.correspondence import METHODS, share_within, track_errors
from vidseg_core.workbook.motion import Window
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, levels, share, slider


def with_noise(coarse: Integer[np.ndarray, "f h w"], amount: float, seed: int = 0) -> Integer[np.ndarray, "f h w"]:
    """The labels with a share `amount` of cells set to another label at random, each frame anew: flicker to be voted away."""
    rng = np.random.default_rng(seed)
    hit, other = rng.random(coarse.shape) < amount, rng.integers(1, len(np.unique(coarse)), coarse.shape)
    values, index = np.unique(coarse, return_inverse=True)
    index = index.reshape(coarse.shape)
    return values[np.where(hit, (index + other) % len(values), index)]


def compare_votes(windows: dict[str, Window], settings: dict[str, RefineSettings]) -> Float[np.ndarray, "w s"]:
    """Share of right cells: a row for each window, a column for its labels before the vote and one for each of the settings."""
    rows = []
    for window in windows.values():
        after = [window.refine(s).labels.numpy() for s in settings.values()]
        rows.append([float((labels == window.truth).mean()) for labels in (window.coarse, *after)])
    return np.array(rows)


def compare_stability(windows: dict[str, Window], settings: dict[str, RefineSettings]) -> Float[np.ndarray, "w s"]:
    """Label stability, laid out as `compare_votes` does: the share of cells that keep their label from frame to frame, along
    the true motion."""
    rows = []
    for window in windows.values():
        after = [window.refine(s).labels.numpy() for s in settings.values()]
        rows.append([float(window.stable(labels).mean()) for labels in (window.coarse, *after)])
    return np.array(rows)


def cut_in_two(window: Window, settings: RefineSettings, tail: bool) -> tuple[float, float]:
    """The frames refined as two windows, the second knowing the last frames of the first only with `tail`: label stability
    over the seam, and the share of right cells in the first frame after it."""
    half, coarse = len(window.coarse) // 2, Votes.certain(torch.from_numpy(window.coarse).long())
    first = neighbour_vote(window.match[:half], coarse.shares[:half], None, settings)
    last = slice(half - settings.reach, half)
    overlap = Overlap(window.match[last], coarse.shares[last]) if tail else None
    second = neighbour_vote(window.match[half:], coarse.shares[half:], overlap, settings)
    labels = Votes(torch.cat([first, second]), coarse.numbers).labels.numpy()
    return float(window.stable(labels)[half - 1]), float((labels == window.truth)[half].mean())


def explore_neighbours(window: Window, settings: RefineSettings) -> Explorer:
    """The vote of the neighbours: radius, reach and temperature over its result.

    `shown` has "labels" and "confidence" [f, h, w], "before" and "after" (shares of right cells over the window) and
    "stability", the shares of cells that keep their label to the next frame (before, after).
    """
    truth, coarse = window.truth, Votes.certain(torch.from_numpy(window.coarse).long())

    @lru_cache(maxsize=64)
    def run(**changes: object) -> tuple[np.ndarray, np.ndarray]:
        shares = neighbour_vote(window.match, coarse.shares, None, replace(settings, **changes))
        refined = replace(coarse, shares=shares)
        return refined.labels.numpy(), refined.confidence.numpy()

    def draw(frame: int, **changes: object) -> Drawn:
        labels, confidence = run(**changes)
        maps = {"before the vote": window.coarse[frame], "after": labels[frame], "the truth": truth[frame]}
        both = np.stack([window.coarse[frame] != truth[frame], labels[frame] != truth[frame]])
        figure = show_vote(window.clip.frames[frame], maps, both, confidence[frame], window.clip.names)
        return figure, {
            "labels": labels, "confidence": confidence, "before": float((window.coarse == truth).mean()),
            "after": float((labels == truth).mean()),
            "stability": tuple(float(window.stable(m).mean()) for m in (window.coarse, labels)),
        }  # fmt: skip

    return Explorer(
        draw,
        radius=slider("radius", settings.radius, 0, 2),
        reach=slider("reach", settings.reach, 0, 3),
        temperature=levels("temperature", settings.temperature, sorted({0.02, 0.05, 0.1, 0.2, 0.5, 1.0, settings.temperature})),
        frame=slider("frame", len(window.coarse) - 1, 0, len(window.coarse) - 1, live=True),
    )


def explore_vote(window: Window, settings: RefineSettings) -> Explorer:
    """The settings of stage 3 over its result: labels before and after, the truth, what was repaired and spoiled.

    `shown` has "labels" and "confidence" [f, h, w], "before" and "after" (shares of right cells over the window), "tracks" (how
    many) and "within" (share of them within a cell of the truth in the last frame).
    """
    truth = window.truth

    @lru_cache(maxsize=64)
    def run(**changes: object) -> tuple[Votes, int, float]:
        changed = replace(settings, **changes)
        tracks = window.tracks(changed)
        return window.refine(changed), len(tracks.cells), share_within(track_errors(tracks, window.clip)[:, -1])

    def draw(frame: int, **changes: object) -> Drawn:
        refined, tracks, within = run(**changes)
        labels, wrong = refined.labels.numpy(), window.coarse[frame] != truth[frame]
        maps = {"before the vote": window.coarse[frame], "after": labels[frame], "the truth": truth[frame]}
        both = np.stack([wrong, labels[frame] != truth[frame]])
        figure = show_vote(window.clip.frames[frame], maps, both, refined.confidence[frame].numpy(), window.clip.names)
        return figure, {
            "labels": labels, "confidence": refined.confidence.numpy(), "before": float((window.coarse == truth).mean()),
            "after": float((labels == truth).mean()), "tracks": tracks, "within": within,
        }  # fmt: skip

    return Explorer(
        draw,
        max_jump=slider("max. jump", settings.max_jump, 0, 6),
        majority=share("majority", settings.majority),
        method=choice("tracks", "tracks", METHODS),
        frame=slider("frame", len(window.coarse) - 1, 0, len(window.coarse) - 1, live=True),
    )


def show_vote(
    frame: UInt8[np.ndarray, "H W 3"],
    maps: Mapping[str, Integer[np.ndarray, "h w"]],
    wrong: Bool[np.ndarray, "2 h w"],
    confidence: Float[np.ndarray, "h w"],
    names: Mapping[int, str],
) -> Figure:
    """Labels of one frame before and after the vote and the true ones; which cells it repaired (plus) and spoiled (cross), from
    `wrong` (before, after); the winner's share. Panels take clicks."""
    size, grid = frame.shape[:2], wrong.shape[1:]
    figure = Drawing(figsize=(9, 2 * 3 * size[0] / size[1] + 1.3), layout="constrained")
    axes = figure.subplots(2, 3)
    panel(axes[0, 0], frame, "the frame", name="frame")
    for place, (title, cells) in zip((axes[0, 1], axes[0, 2], axes[1, 0]), maps.items(), strict=True):
        panel(place, blend(frame, enlarge(cells, size)), title, name=title)
    faded = (frame // 2 + 100).astype(np.uint8)
    repaired, spoiled = wrong[0] & ~wrong[1], wrong[1] & ~wrong[0]
    panel(axes[1, 1], faded, f"+ repaired: {repaired.sum()}   x spoiled: {spoiled.sum()}")
    for cells, sign in ((repaired, "+"), (spoiled, "x")):
        y, x = ((p + 0.5) * s / g for p, s, g in zip(np.nonzero(cells), size, grid, strict=True))
        axes[1, 1].plot(x, y, sign, color="black", markersize=6, markeredgewidth=1.6)
    panel(axes[1, 2], confidence, "share of the winning vote (black: 0)", size, cmap="magma", vmin=0, vmax=1)
    legend(figure, list(maps.values()), names)
    return figure
