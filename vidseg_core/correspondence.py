"""Stage 3: correspondences let frames vote.

The votes on a cell are those of all cells near by in space and time, weighed by the similarity of their features, as in label
propagation (Jabri et al. 2020). In the paper the cells along a track vote (VidSeg, section 3.3); a track chooses one cell a
frame and never corrects an error: see `tracks`, and `paper` for how the paper's code follows them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vidseg_core import paper
from vidseg_core.features import Features
from vidseg_core.settings import RefineSettings
from vidseg_core.tracks import find_tracks, track_vote


@dataclass(frozen=True, eq=False)
class Overlap:
    """Match features and shares of the frames before a window, whose cells vote on its first frames."""

    match: Float[Tensor, "r h w e"]
    shares: Float[Tensor, "r h w K"]


def refine(
    features: Features, coarse: Float[Tensor, "f h w K"], overlap: Overlap | None, settings: RefineSettings
) -> Float[Tensor, "f h w K"]:
    """Stage 3 for one window. `overlap`: the frames before it, for "neighbours". What a track votes for has the only share in
    its cells, that part of its votes. `method="none"` returns the coarse shares."""
    if settings.method == "neighbours":
        return neighbour_vote(features.match, coarse, overlap, settings)
    if settings.method == "none":
        return coarse
    if settings.method == "tracks":
        labels, confidence = track_vote(find_tracks(features.match, settings), coarse.argmax(-1), settings.majority)
    else:
        labels, confidence = paper.refine(features.match, coarse.argmax(-1))
    return F.one_hot(labels, coarse.shape[-1]) * confidence[..., None]


def neighbour_vote(
    match: Float[Tensor, "f h w e"], coarse: Float[Tensor, "f h w K"], overlap: Overlap | None, settings: RefineSettings
) -> Float[Tensor, "f h w K"]:
    """The mean of the shares of the cells up to `radius` cells and `reach` frames away, each (the cell itself too) with weight
    exp((cosine - 1) / temperature)."""
    first = 0 if overlap is None else len(overlap.match)
    if overlap is not None:
        match, coarse = torch.cat([overlap.match, match]), torch.cat([overlap.shares, coarse])
    unit = F.normalize(match, dim=-1)
    votes = torch.zeros_like(coarse)
    for here, there in _neighbours(coarse.shape[:3], settings):
        cosine = (unit[here] * unit[there]).sum(-1, keepdim=True)
        votes[here] += ((cosine - 1) / settings.temperature).exp() * coarse[there]
    return votes[first:] / votes[first:].sum(-1, keepdim=True)


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
