"""Stage 3: correspondences let frames vote.

The votes on a cell are those of all cells near by in space and time, weighed by the similarity of their features, as in label
propagation (Jabri et al. 2020). In the paper the cells along a track vote (VidSeg, section 3.3); a track chooses one cell a
frame and never corrects an error: see `tracks`, and `paper` for how the paper's code follows them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vidseg_core import paper
from vidseg_core.features import Features
from vidseg_core.settings import RefineSettings
from vidseg_core.tracks import find_tracks, track_vote


@dataclass(frozen=True, eq=False)
class Overlap:
    """Match features and labels of the frames before a window, whose cells vote on its first frames."""

    match: Float[Tensor, "r h w e"]
    labels: Int[Tensor, "r h w"]


@dataclass(frozen=True)
class Refined:
    """`labels` after the vote; `confidence` in (0, 1]: the winner's share of the votes."""

    labels: Int[Tensor, "f h w"]
    confidence: Float[Tensor, "f h w"]


def refine(features: Features, coarse: Int[Tensor, "f h w"], overlap: Overlap | None, settings: RefineSettings) -> Refined:
    """Let labels vote: those of a cell's neighbours, or those along its track. `overlap`: the last frames of the window before
    this one, whose cells are neighbours too. `method="none"` returns the coarse labels."""
    if settings.method == "neighbours":
        return neighbour_vote(features.match, coarse, overlap, settings)
    if settings.method == "tracks":
        return Refined(*track_vote(find_tracks(features.match, settings), coarse, settings.majority))
    if settings.method == "reference":
        return Refined(*paper.refine(features.match, coarse))
    return Refined(coarse, torch.ones(coarse.shape, device=coarse.device))


def neighbour_vote(
    match: Float[Tensor, "f h w e"], coarse: Int[Tensor, "f h w"], overlap: Overlap | None, settings: RefineSettings
) -> Refined:
    """The label with the most votes of the cells up to `radius` cells and `reach` frames away, each (the cell itself too) with
    weight exp((cosine - 1) / temperature); of equal sums the smallest label."""
    first = 0 if overlap is None else len(overlap.match)
    if overlap is not None:
        match, coarse = torch.cat([overlap.match, match]), torch.cat([overlap.labels, coarse])
    values, index = torch.unique(coarse, return_inverse=True)
    unit = F.normalize(match, dim=-1)
    ballots = F.one_hot(index, len(values)).to(unit.dtype)
    votes = torch.zeros_like(ballots)
    for here, there in _neighbours(coarse.shape, settings):
        cosine = (unit[here] * unit[there]).sum(-1, keepdim=True)
        votes[here] += ((cosine - 1) / settings.temperature).exp() * ballots[there]
    most, winner = votes[first:].max(-1)
    return Refined(values[winner], most / votes[first:].sum(-1))


def _neighbours(shape: tuple[int, ...], settings: RefineSettings) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each offset in time, down and across: the cells that have such a neighbour, and those neighbours."""
    furthest = (settings.reach, settings.radius, settings.radius)
    for offsets in product(*(range(-far, far + 1) for far in furthest)):
        if all(abs(step) < size for step, size in zip(offsets, shape, strict=True)):
            ends = list(zip(offsets, shape, strict=True))
            yield (
                tuple(slice(max(0, -step), size - max(0, step)) for step, size in ends),
                tuple(slice(max(0, step), size - max(0, -step)) for step, size in ends),
            )
