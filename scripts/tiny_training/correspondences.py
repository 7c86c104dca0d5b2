"""Which cell of another frame shows the same point, and what that asks of the queries that stage 3 compares.

In a pseudo-video the way of each frame is known exactly. A frame alone cannot tell one place of a bare wall from the next;
the frames between show how the wall moved. So this is what gives temporal layers work.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_training.clips import Matrix, Shot, grid_points, through
from tiny_training.settings import CELL, TrainSettings

FURTHEST = 4  # frames between the two of a pair: as far as stage 3 looks by default
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Pairs:
    """For each frame of a batch, `other` [n]: the number of the frame that it is compared with; `goal` [n, h, w, 2]: where
    the point at each cell's centre is there, as (x, y) in cells from the first centre, NaN if it is not to be seen."""

    other: Tensor
    goal: Tensor


def draw_pairs(shot: Shot, settings: TrainSettings, rng: np.random.Generator) -> Pairs:
    """For each frame of a clip another at most FURTHEST frames away. In a real clip nothing is known: all goals are NaN."""
    count, points = settings.frames, grid_points(*settings.grid, settings)
    others, goals = [], []
    for i in range(count):
        j = int(rng.choice([n for n in range(max(0, i - FURTHEST), min(count, i + FURTHEST + 1)) if n != i or count == 1]))
        real = shot.images[i] != shot.images[j]
        others.append(j)
        goals.append(torch.full_like(points, torch.nan) if real else point_in(shot, i, j, points) / CELL - 0.5)
    return Pairs(torch.tensor(others), torch.stack(goals))


def point_in(shot: Shot, i: int, j: int, points: Tensor) -> Tensor:
    """Where the points [.., 2] of frame i are in frame j, in pixels; NaN behind a cut-out. Outside the picture they remain."""
    there = back(shot.ways[j], through(shot.ways[i], points))
    if shot.cutout is None:
        return there
    covered = shot.cutout.holds(through(shot.cutout_ways[j], there))
    there = torch.where(covered[..., None], torch.nan, there)
    piece = through(shot.cutout_ways[i], points)
    return torch.where(shot.cutout.holds(piece)[..., None], back(shot.cutout_ways[j], piece), there)


def back(way: Matrix, points: Tensor) -> Tensor:
    """Points of the image as points of the picture: the inverse of `through`."""
    matrix = torch.from_numpy(way).float()
    return torch.linalg.solve(matrix[:, :2], (points - matrix[:, 2]).unsqueeze(-1)).squeeze(-1)


def join(pairs: list[Pairs]) -> Pairs:
    """The pairs of several clips of equal length, one after the other."""
    frames = len(pairs[0].other)
    return Pairs(torch.cat([p.other + n * frames for n, p in enumerate(pairs)]), torch.cat([p.goal for p in pairs]))


def correspondence_loss(queries: Tensor, pairs: Pairs, certainty: Tensor) -> Tensor:
    """Cross entropy between the similarities [n, d, h, w] of a cell with all cells of the other frame and the four cells around
    its goal (InfoNCE, van den Oord et al. 2018), over the cells whose goal lies in the picture, weighted by `certainty` [n].
    In units of guessing: 1 knows nothing. 0 if no cell has a goal."""
    (_, _, h, w), goal = queries.shape, pairs.goal
    inside = ((goal >= 0) & (goal <= goal.new_tensor([w - 1, h - 1]))).all(-1)
    if not inside.any():
        return queries.sum() * 0
    unit = F.normalize(queries, dim=1).flatten(2)
    scores = (unit.transpose(1, 2) @ unit[pairs.other] / TEMPERATURE).log_softmax(-1)
    x, y = goal.nan_to_num().flatten(1, 2).unbind(-1)
    wanted = hat(y, h).unsqueeze(3) * hat(x, w).unsqueeze(2)
    weight = inside.flatten(1) * certainty[:, None]
    entropy = -(wanted.flatten(2) * scores).sum(-1)
    return (entropy * weight).sum() / weight.sum() / torch.tensor(float(h * w)).log()


def hat(places: Tensor, count: int) -> Tensor:
    """Linear weights [.., count] of the two cells beside each place."""
    return (1 - (places.unsqueeze(-1) - torch.arange(count)).abs()).clamp(min=0)
