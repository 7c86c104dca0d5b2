"""Stage 3 by hand: tracks, their votes, the settings of both, and where tracks fail, against the exact answer."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from matplotlib.figure import Figure
from torch import Tensor

from vidseg_core.correspondence import Refined, Tracks, find_moves, refine
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.settings import RefineSettings
from vidseg_core.workbook.context import stability
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.pictures.correspondence import show_track, show_tracks, show_vote
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, pick, share, slider


@dataclass(frozen=True)
class Window:
    """One window of a clip of which everything is known: its features for matching, its labels before the vote."""

    clip: GeneratedClip
    match: Float[Tensor, "f h w e"]
    coarse: Integer[np.ndarray, "f h w"]

    @property
    def truth(self) -> Integer[np.ndarray, "f h w"]:
        """The true label at each cell's centre."""
        return at_centres(self.clip.labels[: len(self.coarse)], self.coarse.shape[1:])

    def refine(self, settings: RefineSettings) -> Refined:
        """Stage 3 on this window."""
        return refine(self.match, torch.from_numpy(self.coarse).long(), settings)

    def stable(self, labels: Integer[np.ndarray, "f h w"]) -> Float[np.ndarray, " g"]:
        """For each frame but the last, the share of cells that have the same label where they are in the next."""
        return stability(labels, self.clip.flow[: len(labels) - 1], self.clip.visible[: len(labels) - 1])


def faster(clip: GeneratedClip, step: int) -> GeneratedClip:
    """Every `step`-th frame of the clip, its flow and visibility put together from those of the hops between."""
    size = clip.labels.shape[1:]
    pixels = np.indices(size).reshape(2, -1).T
    flow, visible = [], []
    for n in range(0, len(clip.frames) - step, step):
        end = true_paths(clip, pixels, n, n + step + 1)[:, -1]
        visible.append(np.isfinite(end[:, 0]).reshape(size))
        flow.append(np.nan_to_num(end - pixels).reshape(*size, 2).astype(np.float32))
    kept = slice(0, len(flow) * step + 1, step)
    return GeneratedClip(clip.frames[kept], clip.labels[kept], np.stack(flow), np.stack(visible), clip.names)


def true_paths(clip: GeneratedClip, points: Shaped[np.ndarray, "n 2"], start: int, frames: int) -> Float[np.ndarray, "n f 2"]:
    """Where the points (y, x), in pixels of frame `start`, are in each of the first `frames` frames by the exact flow; NaN
    before `start` and from the frame on in which they are hidden or out of the picture."""
    paths, size = np.full((len(points), frames, 2), np.nan), np.array(clip.labels.shape[1:])
    paths[:, start] = at = points.astype(float)
    for n in range(start, frames - 1):
        pixel = np.nan_to_num(np.rint(at)).astype(int).clip(0, size - 1)
        seen = np.isfinite(at[:, 0]) & clip.visible[n][pixel[:, 0], pixel[:, 1]]
        at = np.where(seen[:, None], at + clip.flow[n][pixel[:, 0], pixel[:, 1]], np.nan)
        paths[:, n + 1] = at
    return paths


def track_errors(tracks: Tracks, clip: GeneratedClip) -> Float[np.ndarray, "t f"]:
    """Distance of each track from the truth in cells, the larger of the two axes, by hops since its start; NaN where the track
    has ended or its point is hidden. Only tracks that start in frame 0."""
    (h, w), frames = tracks.grid, tracks.cells.shape[1]
    cells = tracks.cells.numpy()[tracks.cells[:, 0].numpy() >= 0]
    side = np.array(clip.labels.shape[1:]) / (h, w)
    place = (np.stack([cells // w, cells % w], -1) + 0.5) * side - 0.5
    error = (np.abs(place - true_paths(clip, place[:, 0], 0, frames)) / side).max(-1)
    return np.where(cells >= 0, error, np.nan)


def draw_tracks(window: Window, refined: Refined, shown: tuple[int, ...], every: int = 2) -> Figure:
    """Tracks that start in frame 0, in every second row and column, in the colour of the class that won their vote there."""
    (h, w), cells = refined.tracks.grid, refined.tracks.cells.numpy()
    first = cells[:, 0]
    cells = cells[(first >= 0) & (first // w % every == 0) & (first % w % every == 0)]
    side = np.array(window.clip.labels.shape[1:]) / (h, w)
    paths = (np.stack([cells // w, cells % w], -1) + 0.5) * side
    paths[cells < 0] = np.nan
    labels = refined.labels[0].numpy().ravel()[cells[:, 0]]
    return show_tracks(window.clip.frames, paths, labels, shown)


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


def share_within(errors: np.ndarray) -> float:
    """Share of the errors, in cells, that are 1 or less; NaN (ended, hidden) does not count."""
    known = errors[np.isfinite(errors)]
    return float((known <= 1).mean()) if len(known) else np.nan


@dataclass(frozen=True)
class Hops:
    """Single hops from frame to frame against the exact motion: `within`, the share that end within a cell of the truth;
    `pace`, how much of the true motion they make (1: all; the slope of a regression through 0); `still`, the share of hops
    of which the true motion is below half a cell."""

    within: float
    pace: float
    still: float


def judge_hops(window: Window, settings: RefineSettings) -> Hops:
    """All hops of all cells whose centre is to be seen in the next frame."""
    (f, h, w), clip = window.coarse.shape, window.clip
    moves = find_moves(window.match, settings)[0].numpy().reshape(f - 1, h, w, 2)
    side = np.array(clip.labels.shape[1:]) / (h, w)
    truth = np.stack([at_centres(clip.flow[: f - 1, ..., k], (h, w)) / side[k] for k in range(2)], -1)
    seen = at_centres(clip.visible[: f - 1], (h, w))
    moves, truth = moves[seen], truth[seen]
    within = (np.abs(moves - truth).max(-1) <= 1).mean()
    return Hops(
        float(within), float((moves * truth).sum() / np.square(truth).sum()), float((np.abs(truth).max(-1) < 0.5).mean())
    )


def compare_votes(windows: dict[str, Window], settings: dict[str, RefineSettings]) -> Float[np.ndarray, "w s"]:
    """Share of right cells: a row for each window, a column for its labels before the vote and one for each of the settings."""
    rows = []
    for window in windows.values():
        after = [window.refine(s).labels.numpy() for s in settings.values()]
        rows.append([float((labels == window.truth).mean()) for labels in (window.coarse, *after)])
    return np.array(rows)


def explore_track(window: Window, settings: RefineSettings) -> Explorer:
    """Click a point of a frame and follow it; see what its track votes.

    `shown` has "cells" [f, 2] (row, column; -1 where the track is not), "truth" [f, 2] in pixels, "votes" [f] (-1: none),
    "winner", "share" and "error", the largest distance from the truth in cells.
    """
    f, h, w = window.coarse.shape
    size = np.array(window.clip.labels.shape[1:])

    @lru_cache(maxsize=32)
    def find(anchor: str, precision: str) -> Refined:
        return window.refine(replace(settings, anchor=anchor, precision=precision, majority=0.0))

    def draw(frame: int, row: int, column: int, majority: float, anchor: str, precision: str) -> Drawn:
        tracks, here = find(anchor, precision).tracks, row * w + column
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
            "cells": cells, "truth": truth, "votes": votes, "winner": int(values[counts.argmax()]),
            "share": float(counts.max() / counts.sum()), "error": float(far.max()) if len(far) else np.nan,
        }  # fmt: skip

    return Explorer(
        draw, lambda panel, x, y: {"frame": int(panel)} | pick((h, w), tuple(size.tolist()), x, y),
        row=slider("row", h // 2, 0, h - 1, live=True),
        column=slider("column", w // 2, 0, w - 1, live=True),
        frame=slider("in frame", 0, 0, f - 1, live=True),
        majority=share("majority", settings.majority),
        anchor=choice("anchor", settings.anchor, ["none", "frame0"]),
        precision=choice("precision", settings.precision, ["subcell", "cell"]),
    )  # fmt: skip


def explore_vote(window: Window, settings: RefineSettings) -> Explorer:
    """The settings of stage 3 over its result: labels before and after, the truth, what was repaired and spoiled.

    `shown` has "labels" and "confidence" [f, h, w], "before" and "after" (shares of right cells over the window), "tracks" (how
    many) and "within" (share of them within a cell of the truth in the last frame).
    """
    truth = window.truth

    @lru_cache(maxsize=64)
    def run(**changes: object) -> tuple[Refined, float]:
        refined = window.refine(replace(settings, **changes))
        return refined, share_within(track_errors(refined.tracks, window.clip)[:, -1])

    def draw(frame: int, **changes: object) -> Drawn:
        refined, within = run(**changes)
        labels, wrong = refined.labels.numpy(), window.coarse[frame] != truth[frame]
        maps = {"before the vote": window.coarse[frame], "after": labels[frame], "the truth": truth[frame]}
        both = np.stack([wrong, labels[frame] != truth[frame]])
        figure = show_vote(window.clip.frames[frame], maps, both, refined.confidence[frame].numpy(), window.clip.names)
        return figure, {
            "labels": labels, "confidence": refined.confidence.numpy(), "before": float((window.coarse == truth).mean()),
            "after": float((labels == truth).mean()), "tracks": len(refined.tracks.cells), "within": within,
        }  # fmt: skip

    return Explorer(
        draw,
        max_jump=slider("max. jump", settings.max_jump, 0, 6),
        majority=share("majority", settings.majority),
        on_jump=choice("on a jump", settings.on_jump, ["cut", "drop"]),
        anchor=choice("anchor", settings.anchor, ["none", "frame0"]),
        precision=choice("precision", settings.precision, ["subcell", "cell"]),
        start=choice("tracks start", settings.start, ["uncovered", "frame0"]),
        frame=slider("frame", len(window.coarse) - 1, 0, len(window.coarse) - 1, live=True),
    )


def with_noise(coarse: Integer[np.ndarray, "f h w"], amount: float, seed: int = 0) -> Integer[np.ndarray, "f h w"]:
    """The labels with a share `amount` of cells set to another label at random, each frame anew: flicker to be voted away."""
    rng = np.random.default_rng(seed)
    hit, other = rng.random(coarse.shape) < amount, rng.integers(1, len(np.unique(coarse)), coarse.shape)
    values, index = np.unique(coarse, return_inverse=True)
    index = index.reshape(coarse.shape)
    return values[np.where(hit, (index + other) % len(values), index)]
