"""Clips whose motion is known exactly: windows of them, faster ones, true paths, and what is stable along them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from vidseg_core import paper
from vidseg_core.context import Votes
from vidseg_core.correspondence import refine
from vidseg_core.features import Features
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.settings import RefineSettings
from vidseg_core.tracks import Tracks, find_tracks
from vidseg_core.workbook.features import at_centres

Cells = Integer[np.ndarray, "f h w"]


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

    def refine(self, settings: RefineSettings) -> Votes:
        """Stage 3 on this window."""
        coarse = Votes.certain(torch.from_numpy(self.coarse).long())
        return replace(coarse, shares=refine(Features(self.match, self.match), coarse.shares, None, settings))

    def tracks(self, settings: RefineSettings) -> Tracks:
        """Its tracks: ours or, with method "reference", those of the paper's code."""
        return paper.find_tracks(self.match) if settings.method == "reference" else find_tracks(self.match, settings)

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
