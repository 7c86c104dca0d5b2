"""Tracks: a cell followed from frame to frame by the similarity of its features.

In the paper the labels that a cell has along its track vote, and the winner is written back (VidSeg, section 3.3, after DIFT,
Tang et al. 2023). Where a hop leads depends on the cell alone, so all hops are computed at once and tracks are chains of
look-ups. By default neighbours vote instead (`correspondence`), and tracks are for looking at.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vidseg_core.settings import RefineSettings

ROWS = 1024
"""Cells compared with a frame at once; bounds the similarity matrix."""


@dataclass(frozen=True)
class Tracks:
    """`cells` [t, f]: the cell y * w + x of each track in each frame, -1 where it is not; `similarity` [t, f]: the weakest
    hop (cosine, 1 at the start) that led there; `grid` = (h, w)."""

    cells: Int[Tensor, "t f"]
    similarity: Float[Tensor, "t f"]
    grid: tuple[int, int]


def find_moves(
    match: Float[Tensor, "f h w e"], anchor: bool = False, subcell: bool = True
) -> tuple[Float[Tensor, "g n 2"], Float[Tensor, "g n"]]:
    """For each frame q but the last and each of its n = h * w cells: the way (dy, dx) in cells to the most similar cell of
    frame q + 1, and its cosine.

    `anchor` (the paper's code) maximises q/(q+1) cos(source, frame q+1) + 1/(q+1) cos(source, frame 0) over cells instead.
    `subcell` moves the maximum to the top of the parabola through it and its neighbours, along each axis: without it, motion
    of less than half a cell a frame is no motion at all, however long it lasts.
    """
    f, h, w, _ = match.shape
    unit = torch.nn.functional.normalize(match.flatten(1, 2), dim=-1)
    here = torch.arange(h * w, device=match.device)
    moves, cosines = match.new_zeros(f - 1, h * w, 2), match.new_zeros(f - 1, h * w)
    for q in range(f - 1):
        for rows in here.split(ROWS):
            cosine = unit[q, rows] @ unit[q + 1].T
            score = q / (q + 1) * cosine + unit[q, rows] @ unit[0].T / (q + 1) if anchor else cosine
            best = score.argmax(1)
            place = torch.stack([best // w, best % w], dim=1).to(match.dtype)
            if subcell:
                place = place + _peak(score, best, (h, w))
            moves[q, rows] = place - torch.stack([rows // w, rows % w], dim=1)
            cosines[q, rows] = cosine.gather(1, best[:, None])[:, 0]
    return moves, cosines


def _peak(score: Float[Tensor, "r n"], best: Int[Tensor, " r"], grid: tuple[int, int]) -> Float[Tensor, "r 2"]:
    """Offset (dy, dx) in -0.5..0.5 of the top of the parabola through the best score and its two neighbours; 0 at borders."""
    h, w = grid
    offsets = []
    for size, stride, index in ((h, w, best // w), (w, 1, best % w)):
        inside = (index > 0) & (index < size - 1)
        step = stride * inside.long()  # at a border the cell is its own neighbour, and the parabola is flat
        before, top, after = (score.gather(1, (best + d)[:, None])[:, 0] for d in (-step, 0, step))
        bend = before - 2 * top + after
        offset = (before - after) / (2 * torch.where(bend < 0, bend, -1))
        offsets.append(torch.where(bend < 0, offset.clamp(-0.5, 0.5), 0))
    return torch.stack(offsets, dim=1)


def find_tracks(match: Float[Tensor, "f h w e"], settings: RefineSettings) -> Tracks:
    """Chains of moves through the window, from every cell of frame 0 and from each later cell that no track reaches; a move of
    more than `max_jump` cells along an axis ends its track."""
    f, h, w, _ = match.shape
    moves, cosines = find_moves(match)
    allowed = (moves.abs() <= settings.max_jump).all(-1)
    here = torch.arange(h * w, device=match.device)
    centres = torch.stack([here // w, here % w], dim=1).to(match.dtype)
    cell, point, weakest = here, centres, match.new_ones(h * w)
    columns, strengths = [cell], [weakest]
    for q in range(f - 1):
        at = cell.clamp(min=0)
        stays = (cell >= 0) & allowed[q][at]
        point = point + moves[q][at]
        y, x = (point[:, axis].round().long().clamp(0, size - 1) for axis, size in enumerate((h, w)))
        cell, weakest = torch.where(stays, y * w + x, -1), torch.minimum(weakest, cosines[q][at])
        reached = torch.zeros(h * w + 1, dtype=torch.bool, device=match.device)
        reached[cell] = True  # index -1 lands on the spare last entry
        new = (~reached[:-1]).nonzero()[:, 0]
        cell, point = torch.cat([cell, new]), torch.cat([point, centres[new]])
        weakest = torch.cat([weakest, match.new_ones(len(new))])
        columns.append(cell)
        strengths.append(weakest)
    # tracks that begin later have shorter columns before
    return Tracks(pad_sequence(columns, padding_value=-1), pad_sequence(strengths), (h, w))


def track_vote(
    tracks: Tracks, coarse: Int[Tensor, "f h w"], majority: float
) -> tuple[Int[Tensor, "f h w"], Float[Tensor, "f h w"]]:
    """Each track writes its most common label (of equal counts the smallest) on the cells it visits, if the label's share of
    the votes is `majority` or more; of two tracks on one cell, the more similar hop's. Cells without a track keep their label,
    with confidence 1."""
    f, h, w = coarse.shape
    labels, confidence = coarse.flatten().clone(), torch.ones(f * h * w, device=coarse.device)
    visited = tracks.cells >= 0
    values, index = torch.unique(coarse, return_inverse=True)
    place = tracks.cells + torch.arange(f, device=coarse.device) * h * w
    seen = index.flatten()[place.clamp(min=0)]
    counts = torch.zeros(len(seen), len(values), dtype=torch.long, device=coarse.device)
    counts.scatter_add_(1, seen, visited.long())
    most, winner = counts.max(1)
    owner = _owners(tracks, place, visited, f * h * w)
    owned = owner >= 0
    confidence[owned] = (most / visited.sum(1))[owner[owned]]
    clear = owned & (confidence >= majority)
    labels[clear] = values[winner[owner[clear]]]
    return labels.reshape(f, h, w), confidence.reshape(f, h, w)


def _owners(tracks: Tracks, place: Tensor, visited: Tensor, cells: int) -> Int[Tensor, " cells"]:
    """The track that may write on each cell of the window, -1 for none: the one that came there most surely."""
    number = torch.arange(len(place), device=place.device)[:, None].expand_as(place)[visited]
    by_strength = tracks.similarity[visited].sort(stable=True).indices
    rank = torch.empty_like(number)
    rank[by_strength] = torch.arange(len(number), device=place.device)
    owner = torch.full((cells,), -1, device=place.device)
    owner.scatter_reduce_(0, place[visited], rank, "amax")
    return torch.where(owner >= 0, number[by_strength[owner.clamp(min=0)]], -1)
