"""Pairs of cells that show the same point, against the pictures themselves, and the loss against a loop."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training.clips import Cutout, Material, Shot, draw_shot, frames_of
from tiny_training.correspondences import TEMPERATURE, Pairs, correspondence_loss, draw_pairs, join, point_in
from tiny_training.settings import TrainSettings
from torch.nn import functional as F

pytestmark = pytest.mark.training
SMALL = TrainSettings(
    model="tiny-video", height=64, width=80, frames=5, real_share=0.0, cutout_share=1.0, scale_low=1.0, scale_high=1.2
)


def material(count: int = 2) -> Material:
    """Smooth coloured pictures in which every place has its own colour, each in a range of its own."""
    y, x = np.mgrid[:200, :240]
    stills = [np.stack([x, y, np.full_like(x, 120 * n)], -1).astype(np.uint8) for n in range(count)]
    return Material([Image.fromarray(still) for still in stills], count, ())


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y]])


def test_a_pair_shows_the_same_colour_in_both_frames():
    rng, stills, seen = np.random.default_rng(0), material(), 0
    for _ in range(6):
        shot = draw_shot(stills, SMALL, rng)
        frames, pairs = frames_of(shot, stills, SMALL), draw_pairs(shot, SMALL, rng)
        size = torch.tensor([SMALL.grid[1], SMALL.grid[0]])
        for i, (j, goal) in enumerate(zip(pairs.other.tolist(), pairs.goal, strict=True)):
            assert i != j
            inside = ((goal > 0.5) & (goal < size - 1.5)).all(-1)
            found = F.grid_sample(frames[j][None], ((goal + 0.5) / size * 2 - 1)[None].nan_to_num(), align_corners=False)[0]
            here = frames[i][:, 3:-4:8, 3:-4:8] * 0.5 + frames[i][:, 4::8, 4::8] * 0.5
            away = (found - here).abs().amax(0)[inside]
            assert (away < 0.004).float().mean() > 0.8  # half a pixel is 0.004; all but cells on the edge of the piece
            seen += int(inside.sum())
    assert seen > 500


def test_the_camera_moves_points_back_and_a_piece_hides_and_carries_them():
    piece = Cutout((100.0, 100.0), 10.0, ())
    shot = Shot((0, 0), (shift(0, 0), shift(3, 4)), piece, 1, (shift(90, 90), shift(80, 90)))  # piece: (10, 10), (20, 10)
    points = torch.tensor([[50.0, 50.0], [10.0, 10.0], [23.0, 14.0]])
    still, carried, hidden = point_in(shot, 0, 1, points)
    assert still.tolist() == pytest.approx([47, 46], abs=1e-4)
    assert carried.tolist() == pytest.approx([20, 10], abs=1e-4)
    assert hidden.isnan().all()


def test_a_real_clip_has_no_goals_and_no_loss():
    shot = Shot((0, 1, 2, 3, 4), (shift(0, 0),) * 5)
    pairs = draw_pairs(shot, SMALL, np.random.default_rng(0))
    assert pairs.goal.isnan().all()
    queries = torch.randn(5, 6, *SMALL.grid, requires_grad=True)
    loss = correspondence_loss(queries, pairs, torch.ones(5))
    loss.backward()
    assert loss.item() == 0 and not queries.grad.any()


def test_pairs_of_two_clips_keep_to_their_own_frames():
    rng, stills = np.random.default_rng(3), material()
    pairs = join([draw_pairs(draw_shot(stills, SMALL, rng), SMALL, rng) for _ in range(2)])
    assert pairs.other[:5].max() < 5 <= pairs.other[5:].min() and len(pairs.goal) == 10


def test_the_loss_is_a_loop_over_cells():
    torch.manual_seed(0)
    queries, goal = torch.randn(2, 4, 3, 5), torch.full((2, 3, 5, 2), torch.nan)
    goal[0, 1, 2], goal[1, 0, 0], goal[1, 2, 4] = torch.tensor([[1.25, 2.0], [4.0, 0.5], [5.0, 1.0]])  # the last is outside
    certainty, total = torch.tensor([0.5, 1.0]), 0.0
    for n, cell, wanted in ((0, (1, 2), {(2, 1): 0.75, (2, 2): 0.25}), (1, (0, 0), {(0, 4): 0.5, (1, 4): 0.5})):
        unit = F.normalize(queries, dim=1)
        scores = torch.einsum("d,dhw->hw", unit[n][:, *cell], unit[1 - n]) / TEMPERATURE
        total -= certainty[n] * sum(w * (scores[c] - scores.logsumexp((0, 1))) for c, w in wanted.items())
    expected = total / 1.5 / math.log(15)
    assert correspondence_loss(queries, Pairs(torch.tensor([1, 0]), goal), certainty).item() == pytest.approx(
        expected.item(), abs=1e-6
    )
