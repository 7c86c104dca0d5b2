"""Stage 3: correspondences let frames vote.

In the paper a cell is followed from frame to frame by cosine similarity of its features; the labels that the cell has along
its track vote, and the winner is written back (VidSeg, section 3.3, after DIFT, Tang et al. 2023). Where a hop leads depends on
the cell alone, so all hops are computed at once and tracks are chains of look-ups. Tracks choose one cell a frame and never
correct an error; by default the votes are therefore those of all cells near by in space and time, weighed by similarity, as
in label propagation (Jabri et al. 2020), and tracks are for looking at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidseg_core.settings import RefineSettings

ROWS = 1024
"""Cells compared with a frame at once; bounds the similarity matrix."""
Tail = tuple[Tensor, Tensor]
"""Match features [r, h, w, e] and labels [r, h, w] of the frames before a window."""


@dataclass(frozen=True)
class Tracks:
    """`cells` [t, f]: the cell y * w + x of each track in each frame, -1 where it is not; `similarity` [t, f]: the weakest
    hop (cosine, 1 at the start) that led there; `grid` = (h, w)."""

    cells: Int[Tensor, "t f"]
    similarity: Float[Tensor, "t f"]
    grid: tuple[int, int]

    def cpu(self) -> "Tracks":
        """The same tracks in the CPU's memory."""
        return Tracks(self.cells.cpu(), self.similarity.cpu(), self.grid)


@dataclass(frozen=True)
class Refined:
    """`labels` [f, h, w] after the vote, `confidence` [f, h, w] in (0, 1]: the winner's share of the votes."""

    labels: Int[Tensor, "f h w"]
    confidence: Float[Tensor, "f h w"]
    tracks: Tracks


def refine(
    match: Float[Tensor, "f h w e"], coarse: Int[Tensor, "f h w"], settings: RefineSettings, before: Tail | None = None
) -> Refined:
    """Let labels vote: those of a cell's neighbours, or those along its track. `before`: the last frames of the window before
    this one, whose cells are neighbours too. `method="none"` returns the coarse labels, without tracks."""
    if settings.method == "none":
        cells = torch.full((0, len(coarse)), -1, device=coarse.device)
        tracks = Tracks(cells, cells.float(), tuple(coarse.shape[1:]))
    else:
        tracks = find_tracks(match, settings)
    if settings.method == "neighbours":
        labels, confidence = neighbour_vote(match, coarse, settings, before)
    else:
        labels, confidence = vote(tracks, coarse, settings)
    return Refined(labels, confidence, tracks)


def neighbour_vote(
    match: Float[Tensor, "f h w e"], coarse: Int[Tensor, "f h w"], settings: RefineSettings, before: Tail | None = None
) -> tuple[Int[Tensor, "f h w"], Float[Tensor, "f h w"]]:
    """The label with the most votes of the cells up to `radius` cells and `reach` frames away, each (the cell itself too) with
    weight exp((cosine - 1) / temperature), and its share of the votes; of equal sums the smallest label."""
    first = 0 if before is None else len(before[0])
    if before is not None:
        match, coarse = torch.cat([before[0], match]), torch.cat([before[1], coarse])
    values, index = torch.unique(coarse, return_inverse=True)
    unit = torch.nn.functional.normalize(match, dim=-1)
    ballots = torch.nn.functional.one_hot(index, len(values)).to(unit.dtype)
    votes = torch.zeros_like(ballots)
    for here, there in _neighbours(coarse.shape, settings):
        cosine = (unit[here] * unit[there]).sum(-1, keepdim=True)
        votes[here] += ((cosine - 1) / settings.temperature).exp() * ballots[there]
    most, winner = votes[first:].max(-1)
    return values[winner], most / votes[first:].sum(-1)


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


def find_moves(
    match: Float[Tensor, "f h w e"], settings: RefineSettings
) -> tuple[Float[Tensor, "g n 2"], Float[Tensor, "g n"]]:
    """For each frame q but the last and each of its n = h * w cells: the way (dy, dx) in cells to the most similar cell of
    frame q + 1, and its cosine.

    anchor="frame0" (FIELD) maximises q/(q+1) cos(source, frame q+1) + 1/(q+1) cos(source, frame 0) over cells instead.
    precision="subcell" moves the maximum to the top of the parabola through it and its neighbours, along each axis: without
    it, motion of less than half a cell a frame is no motion at all, however long it lasts.
    """
    f, h, w, _ = match.shape
    unit = torch.nn.functional.normalize(match.flatten(1, 2), dim=-1)
    here = torch.arange(h * w, device=match.device)
    moves, cosines = match.new_zeros(f - 1, h * w, 2), match.new_zeros(f - 1, h * w)
    for q in range(f - 1):
        for rows in here.split(ROWS):
            cosine = unit[q, rows] @ unit[q + 1].T
            score = cosine if settings.anchor == "none" else q / (q + 1) * cosine + unit[q, rows] @ unit[0].T / (q + 1)
            best = score.argmax(1)
            place = torch.stack([best // w, best % w], dim=1).to(match.dtype)
            if settings.precision == "subcell":
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


def allowed_moves(moves: Float[Tensor, "g n 2"], settings: RefineSettings) -> Bool[Tensor, "g n"]:
    """Which moves stay within `max_jump` cells along each axis; "signed" forgets the absolute value, as the paper's code."""
    return ((moves.abs() if settings.jump == "absolute" else moves) <= settings.max_jump).all(-1)


def find_tracks(match: Float[Tensor, "f h w e"], settings: RefineSettings) -> Tracks:
    """Chains of moves through the window, from every cell of frame 0 and, with start="uncovered", from each later cell
    that no track reaches; a move that is not allowed ends its track ("cut") or removes it altogether ("drop")."""
    f, h, w, _ = match.shape
    moves, cosines = find_moves(match, settings)
    allowed = allowed_moves(moves, settings)
    here = torch.arange(h * w, device=match.device)
    centres = torch.stack([here // w, here % w], dim=1).to(match.dtype)
    cell, point, weakest = here, centres, match.new_ones(h * w)
    dropped = torch.zeros(h * w, dtype=torch.bool, device=match.device)
    columns, strengths = [cell], [weakest]
    for q in range(f - 1):
        alive, at = cell >= 0, cell.clamp(min=0)
        stays = alive if settings.on_jump == "drop" else alive & allowed[q][at]
        dropped |= alive & ~allowed[q][at]
        point = point + moves[q][at]
        y, x = (point[:, axis].round().long().clamp(0, size - 1) for axis, size in enumerate((h, w)))
        cell, weakest = torch.where(stays, y * w + x, -1), torch.minimum(weakest, cosines[q][at])
        if settings.start == "uncovered":
            reached = torch.zeros(h * w + 1, dtype=torch.bool, device=match.device)
            reached[cell] = True  # index -1 lands on the spare last entry
            new = (~reached[:-1]).nonzero()[:, 0]
            cell, point = torch.cat([cell, new]), torch.cat([point, centres[new]])
            weakest = torch.cat([weakest, match.new_ones(len(new))])
            dropped = torch.cat([dropped, torch.zeros_like(new, dtype=torch.bool)])
        columns.append(cell)
        strengths.append(weakest)
    kept = ~dropped if settings.on_jump == "drop" else torch.ones_like(dropped)
    return Tracks(_columns(columns, -1)[kept], _columns(strengths, 0.0)[kept], (h, w))


def _columns(columns: list[Tensor], missing: float) -> Tensor:
    """Columns of growing length as one matrix; the rows that begin later are filled with `missing`."""
    rows = len(columns[-1])
    return torch.stack([torch.nn.functional.pad(c, (0, rows - len(c)), value=missing) for c in columns], dim=1)


def vote(
    tracks: Tracks, coarse: Int[Tensor, "f h w"], settings: RefineSettings
) -> tuple[Int[Tensor, "f h w"], Float[Tensor, "f h w"]]:
    """Each track writes its most common label (of equal counts the smallest) on the cells it visits, if the label's share of
    the votes is `majority` or more; cells without a track keep their label, with confidence 1. Two tracks on one cell:
    `collision` decides."""
    f, h, w = coarse.shape
    labels, confidence = coarse.flatten().clone(), torch.ones(f * h * w, device=coarse.device)
    visited = tracks.cells >= 0
    if not visited.any():
        return coarse.clone(), confidence.reshape(f, h, w)
    values, index = torch.unique(coarse, return_inverse=True)
    place = tracks.cells + torch.arange(f, device=coarse.device) * h * w
    seen = index.flatten()[place.clamp(min=0)]
    counts = torch.zeros(len(seen), len(values), dtype=torch.long, device=coarse.device)
    counts.scatter_add_(1, seen, visited.long())
    most, winner = counts.max(1)
    share = most / visited.sum(1)
    owner = _owners(tracks, place, visited, f * h * w, settings.collision)
    owned = owner >= 0
    confidence[owned] = share[owner[owned]]
    clear = owned & (confidence >= settings.majority)
    labels[clear] = values[winner[owner[clear]]]
    return labels.reshape(f, h, w), confidence.reshape(f, h, w)


def _owners(tracks: Tracks, place: Tensor, visited: Tensor, cells: int, collision: str) -> Int[Tensor, " cells"]:
    """The track that may write on each cell of the window, -1 for none. Later in `order` beats earlier."""
    number = torch.arange(len(place), device=place.device)[:, None].expand_as(place)[visited]
    order = number
    if collision == "similarity":
        by_strength = tracks.similarity[visited].sort(stable=True).indices
        order = torch.empty_like(number)
        order[by_strength] = torch.arange(len(number), device=place.device)
    owner = torch.full((cells,), -1, device=place.device)
    owner.scatter_reduce_(0, place[visited], order, "amax")
    if collision == "last":
        return owner
    return torch.where(owner >= 0, number[by_strength[owner.clamp(min=0)]], -1)
