"""Stage 3: correspondences let frames vote.

A cell's votes are added to those of its correspondences, the most similar cell near its place in each neighbouring frame,
weighted by similarity, as in label propagation (Jabri et al. 2020). In the paper the cells along a track vote (VidSeg, section
3.3), and an error in one hop spoils all later ones: see `tracks`, and `paper` for the authors' version.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vidseg_core import paper
from vidseg_core.features import Features
from vidseg_core.settings import RefineSettings
from vidseg_core.tracks import find_tracks, track_vote

TIE = 1e-6
"""Of cells whose cosines differ by less than this times the square of their distance, the nearer one corresponds."""


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
    """The mean of a cell's own shares and those of its correspondences, with weight exp((cosine - 1) / temperature): in each
    frame up to `reach` away the most similar of the cells up to `radius` away from its place."""
    first = 0 if overlap is None else len(overlap.match)
    if overlap is not None:
        match, coarse = torch.cat([overlap.match, match]), torch.cat([overlap.shares, coarse])
    unit, votes = F.normalize(match, dim=-1), coarse.clone()
    for step in range(1, min(settings.reach, len(coarse) - 1) + 1):
        later, earlier = slice(step, None), slice(None, -step)
        for here, there in ((later, earlier), (earlier, later)):
            cosine, cell = most_similar(unit[here], unit[there], settings.radius)
            cell = cell.flatten(1)[..., None].expand(-1, -1, coarse.shape[-1])
            heard = coarse[there].flatten(1, 2).gather(1, cell).view_as(coarse[here])
            votes[here] += ((cosine - 1) / settings.temperature).exp()[..., None] * heard
    return votes[first:] / votes[first:].sum(-1, keepdim=True)


def most_similar(
    here: Float[Tensor, "n h w e"], there: Float[Tensor, "n h w e"], radius: int
) -> tuple[Float[Tensor, "n h w"], Int[Tensor, "n h w"]]:
    """For each cell the largest cosine with a cell up to `radius` rows and columns from its place in the other frame, and that
    cell, y * w + x; of equal ones the nearest. Features are of unit length."""
    n, h, w, _ = here.shape
    steps = torch.arange(-radius, radius + 1, device=here.device)
    padded, rows = F.pad(there, (0, 0, radius, radius, radius, radius)), here.flatten(0, 1)
    bands = [torch.bmm(rows, padded[:, d : d + h].flatten(0, 1).mT) for d in range(len(steps))]  # all of a row with all
    cosine = torch.stack([torch.stack([b.diagonal(d, 1, 2) for d in range(len(steps))], -1) for b in bands], -2)
    y, x = (torch.arange(size, device=here.device)[:, None] + steps for size in (h, w))
    inside = ((y >= 0) & (y < h))[:, None, :, None] & ((x >= 0) & (x < w))[:, None, :]
    cosine = cosine.unflatten(0, (n, h)).where(inside, -2)  # below any
    best = (cosine - TIE * (steps[:, None] ** 2 + steps**2)).flatten(-2).argmax(-1)
    cell = (y[:, None, :, None] * w + x[:, None, :]).flatten(-2).expand(n, -1, -1, -1)
    return tuple(of.gather(-1, best[..., None])[..., 0] for of in (cosine.flatten(-2), cell))
