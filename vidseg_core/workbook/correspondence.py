"""Stage 3 by hand: one track and its votes, what a vote repairs, and where tracks fail, against the exact answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidseg_core.common import enlarge
from vidseg_core.io.masks import PALETTE
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.settings import RefineSettings
from vidseg_core.tracks import Tracks, find_moves
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.figures import mark
from vidseg_core.workbook.motion import Window, true_paths
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, pick, share, slider

Frames = UInt8[np.ndarray, "f H W 3"]


@dataclass(frozen=True)
class Hops:
    """Single hops from frame to frame against the exact motion: `within`, the share that end within a cell of the truth;
    `pace`, how much of the true motion they make (1: all; the slope of a regression through 0); `still`, the share of hops
    of which the true motion is below half a cell."""

    within: float
    pace: float
    still: float


def judge_hops(window: Window, anchor: bool = False, subcell: bool = True) -> Hops:
    """All hops of all cells whose centre is to be seen in the next frame; `anchor` and `subcell` as in `find_moves`."""
    (f, h, w), clip = window.coarse.shape, window.clip
    moves = find_moves(window.match, anchor, subcell)[0].numpy().reshape(f - 1, h, w, 2)
    side = np.array(clip.labels.shape[1:]) / (h, w)
    truth = np.stack([at_centres(clip.flow[: f - 1, ..., k], (h, w)) / side[k] for k in range(2)], -1)
    seen = at_centres(clip.visible[: f - 1], (h, w))
    moves, truth = moves[seen], truth[seen]
    within = (np.abs(moves - truth).max(-1) <= 1).mean()
    return Hops(
        float(within), float((moves * truth).sum() / np.square(truth).sum()), float((np.abs(truth).max(-1) < 0.5).mean())
    )


def track_errors(tracks: Tracks, clip: GeneratedClip) -> Float[np.ndarray, "t f"]:
    """Distance of each track from the truth in cells, the larger of the two axes, by hops since its start; NaN where the track
    has ended or its point is hidden. Only tracks that start in frame 0."""
    (h, w), frames = tracks.grid, tracks.cells.shape[1]
    cells = tracks.cells.numpy()[tracks.cells[:, 0].numpy() >= 0]
    side = np.array(clip.labels.shape[1:]) / (h, w)
    place = (np.stack([cells // w, cells % w], -1) + 0.5) * side - 0.5
    error = (np.abs(place - true_paths(clip, place[:, 0], 0, frames)) / side).max(-1)
    return np.where(cells >= 0, error, np.nan)


def share_within(errors: np.ndarray) -> float:
    """Share of the errors, in cells, that are 1 or less; NaN (ended, hidden) does not count."""
    known = errors[np.isfinite(errors)]
    return float((known <= 1).mean()) if len(known) else np.nan


def explore_track(window: Window, settings: RefineSettings) -> Explorer:
    """Click a point of a frame and follow it; see what its track votes.

    `shown` has "cells" [f, 2] (row, column; -1 where the track is not), "truth" [f, 2] in pixels, "votes" [f] (-1: none),
    "winner" (-1: no track is there), "share" and "error", the largest distance from the truth in cells.
    """
    f, h, w = window.coarse.shape
    size = np.array(window.clip.labels.shape[1:])

    find = lru_cache(maxsize=4)(lambda method: window.tracks(replace(settings, method=method)))

    def draw(frame: int, row: int, column: int, majority: float, method: str) -> Drawn:
        tracks, here = find(method), row * w + column
        owners = torch.nonzero(tracks.cells[:, frame] == here)[:, 0]
        track = owners[tracks.similarity[owners, frame].argmax()] if len(owners) else None
        flat = np.full(f, -1) if track is None else tracks.cells[track].numpy()
        cells = np.where((flat >= 0)[:, None], np.stack([flat // w, flat % w], -1), -1)
        start = int((flat >= 0).argmax())
        point = ((cells[start] + 0.5) * size / (h, w) - 0.5)[None]
        truth = true_paths(window.clip, point, start, f)[0]
        votes = np.where(flat >= 0, window.coarse.reshape(f, -1)[np.arange(f), flat.clip(min=0)], -1)
        values, counts = np.unique(votes[votes >= 0], return_counts=True)
        places = tuple(sorted({*np.linspace(0, f - 1, 5).astype(int).tolist(), frame}))[:6]
        figure = show_track(window.clip.frames, cells, truth, votes, places, (h, w), window.clip.names, majority)
        error = np.abs((cells + 0.5) * size / (h, w) - 0.5 - truth).max(-1) / (size / (h, w)).max()
        far = error[(flat >= 0) & np.isfinite(truth[:, 0])]
        return figure, {
            "cells": cells, "truth": truth, "votes": votes, "error": float(far.max()) if len(far) else np.nan,
            "winner": int(values[counts.argmax()]) if len(values) else -1,
            "share": float(counts.max() / counts.sum()) if len(values) else 0.0,
        }  # fmt: skip

    return Explorer(
        draw, lambda panel, x, y: {"frame": int(panel)} | pick((h, w), tuple(size.tolist()), x, y),
        row=slider("row", h // 2, 0, h - 1, live=True),
        column=slider("column", w // 2, 0, w - 1, live=True),
        frame=slider("in frame", 0, 0, f - 1, live=True),
        majority=share("majority", settings.majority),
        method=choice("tracks", "tracks", [("ours", "tracks"), ("the paper's code", "reference")]),
    )  # fmt: skip


def show_track(
    frames: Frames,
    cells: Integer[np.ndarray, "f 2"],
    truth: Float[np.ndarray, "f 2"],
    votes: Integer[np.ndarray, " f"],
    shown: Sequence[int],
    grid: tuple[int, int],
    names: Mapping[int, str],
    majority: float,
) -> Figure:
    """One track: where it is (circle; `cells` are row and column, -1 where it is not) and where it ought to be (plus; `truth`
    is (y, x) in pixels, NaN where hidden), the label of each cell it visits, and the votes. Panels "0", "1", ..."""
    size = frames.shape[1:3]
    height = 9 / len(shown) * size[0] / size[1] + 0.4
    figure = Drawing(figsize=(9, height + 1.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(height, 1.5))
    for axes, n in zip(above.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        panel(axes, frames[n], f"frame {n}", name=str(n))
        if np.isfinite(truth[n, 0]):
            axes.plot(truth[n, 1], truth[n, 0], "+", color="black", markersize=14, markeredgewidth=4)
            axes.plot(truth[n, 1], truth[n, 0], "+", color="white", markersize=12, markeredgewidth=2)
        if cells[n, 0] >= 0:
            mark(axes, *cells[n].tolist(), grid, size)
    strip, bars = below.subplots(1, 2)
    _draw_votes(strip, votes)
    _draw_count(bars, votes[votes >= 0], names, majority)
    return figure


def _draw_votes(axes: Axes, votes: Integer[np.ndarray, " f"]) -> None:
    colours = np.where((votes >= 0)[:, None], PALETTE[votes.clip(min=0)] / 255, 1.0)
    axes.imshow(colours[None], aspect="auto", extent=(-0.5, len(votes) - 0.5, 0, 1))
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("frame", fontsize=9)
    axes.set_title("the label of each cell on the track", fontsize=10)


def _draw_count(axes: Axes, votes: Integer[np.ndarray, " v"], names: Mapping[int, str], majority: float) -> None:
    values, counts = np.unique(votes, return_counts=True)
    called = [names.get(v, f"segment {v}") for v in values.tolist()]
    axes.barh(called, counts / max(counts.sum(), 1), color=PALETTE[values] / 255, height=0.6)
    axes.axvline(majority, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.tick_params(labelsize=9)
    axes.set_title("share of the votes; dashed: majority needed", fontsize=10)


def failures(window: Window, tracks: Tracks) -> dict[str, Float[np.ndarray, " g"]]:
    """Share of tracks within a cell of the truth after 1, 2, ... hops, by where they start: on a thing that moves, within two
    cells of its outline, or elsewhere. Of the tracks that are still there and whose point is still to be seen."""
    errors, truth = track_errors(tracks, window.clip), window.truth[0]
    near = np.zeros(truth.shape, bool)
    for dy, dx in np.ndindex(5, 5):
        near |= np.roll(truth, (dy - 2, dx - 2), (0, 1)) != truth
    kinds = {"ground, far from things": ~near & (truth == 0), "inside a thing": ~near & (truth > 0), "near an outline": near}
    starts = tracks.cells.numpy()[tracks.cells[:, 0].numpy() >= 0, 0]
    return {name: np.array([share_within(errors[kind.ravel()[starts], n]) for n in range(1, errors.shape[1])])
            for name, kind in kinds.items()}  # fmt: skip


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
