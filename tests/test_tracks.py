"""Tracks against a brute-force tracker, and against the exact motion of the generated clip."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from vidseg_core import RefineSettings, Settings, generated_clip
from vidseg_core.features import extract_features
from vidseg_core.tracks import Tracks, find_moves, find_tracks, track_vote

H, W, F = 5, 6, 7


def top_of_parabola(score, best):
    """Through the best score and its two neighbours along each axis, by NumPy's fit."""
    offset = np.zeros(2)
    for axis in range(2):
        if 0 < best[axis] < score.shape[axis] - 1:
            line = score[:, best[1]] if axis == 0 else score[best[0]]
            a, b, _ = np.polyfit([-1, 0, 1], line[best[axis] - 1 : best[axis] + 2], 2)
            offset[axis] = np.clip(-b / (2 * a), -0.5, 0.5)
    return offset


def brute_force(match, coarse, s):
    """One point and one frame at a time: to the top of the parabola about the most similar cell, until a hop is too long; new
    points wherever none is; the most common label of each, written where no surer point is. Labels, confidence, tracks."""
    unit = (match / match.norm(dim=-1, keepdim=True)).numpy().astype(np.float64)
    tracks, covered = [], set()
    for t0, y, x in itertools.product(range(F), range(H), range(W)):
        if (t0, y, x) in covered:
            continue
        path, weakest, point = [(t0, y, x)], [1.0], np.array([y, x], float)
        for q in range(t0, F - 1):
            y, x = path[-1][1:]
            cosine = unit[q + 1] @ unit[q, y, x]
            best = np.unravel_index(cosine.argmax(), (H, W))
            move = np.array(best) - (y, x) + top_of_parabola(cosine, best)
            point = point + move
            if np.abs(move).max() > s.max_jump:
                break
            ny, nx = np.clip(np.round(point), 0, (H - 1, W - 1)).astype(int)
            path.append((q + 1, int(ny), int(nx)))
            weakest.append(min(weakest[-1], cosine[best]))
        covered.update(path)
        tracks.append((path, weakest))
    labels, confidence, surest = coarse.numpy().copy(), np.ones(coarse.shape), {}
    for path, weakest in tracks:
        votes = Counter(int(coarse[cell]) for cell in path)
        winner = min(votes, key=lambda c: (-votes[c], c))
        for cell, strength in zip(path, weakest, strict=True):
            if strength >= surest.get(cell, -2) - 1e-9:
                surest[cell] = strength
                confidence[cell] = votes[winner] / len(path)
                labels[cell] = winner if confidence[cell] >= s.majority else coarse[cell]
    return labels, confidence, tracks


@pytest.mark.parametrize(("max_jump", "majority"), [(1, 0.0), (1, 0.7), (2, 0.5), (0, 0.0), (9, 0.0)])
def test_tracks_and_their_vote_equal_brute_force(match, coarse, max_jump, majority):
    settings = RefineSettings(method="tracks", max_jump=max_jump, majority=majority)
    found = find_tracks(match, settings)
    labels, confidence = track_vote(found, coarse, majority)
    expected, share, tracks = brute_force(match, coarse, settings)
    assert len(found.cells) == len(tracks)
    kept = sorted(tuple(c for c in row if c >= 0) for row in found.cells.tolist())
    assert kept == sorted(tuple(y * W + x for _, y, x in path) for path, _ in tracks)
    assert (labels.numpy() == expected).mean() > 0.99, (labels.numpy() != expected).nonzero()
    assert np.abs(confidence.numpy() - share)[labels.numpy() == expected].max() < 1e-6


def test_the_first_anchored_hop_is_the_identity(match):
    anchored, free = (find_moves(match, anchor=a, subcell=False)[0] for a in (True, False))
    assert not anchored[0].any() and free[0].any()


def test_moves_below_half_a_cell_add_up():
    """A pattern that moves 0.4 cells a frame has moved 2.4 after six; between cell centres it never starts."""
    y, x = np.mgrid[0:9, 0:24]
    frames = []
    for t in range(F):
        phase = [(x - 0.4 * t) * k + y * m for k, m in ((0.3, 0.2), (0.4, -0.3), (0.25, 0.45))]
        frames.append(np.concatenate([np.stack([np.sin(p), np.cos(p)], -1) for p in phase], -1))
    match = torch.from_numpy(np.stack(frames)).float()
    start = 4 * 24 + 8
    assert find_tracks(match, RefineSettings()).cells[start, -1] == start + 2
    assert not find_moves(match, subcell=False)[0][:, start].any()


def test_only_a_clear_majority_overrules():
    tracks = Tracks(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5), (1, 1))
    coarse = torch.tensor([1, 1, 1, 2, 3]).view(5, 1, 1)
    for majority, expected in ((0.0, [1, 1, 1, 1, 1]), (0.6, [1, 1, 1, 1, 1]), (0.7, [1, 1, 1, 2, 3])):
        labels, confidence = track_vote(tracks, coarse, majority)
        assert labels.flatten().tolist() == expected and torch.allclose(confidence, torch.tensor(0.6))


def test_every_cell_is_covered(match):
    cells = find_tracks(match, RefineSettings()).cells
    for t in range(F):
        assert set(cells[:, t].tolist()) >= set(range(H * W))


def test_the_vote_is_the_majority_and_ties_go_to_the_smaller():
    coarse = torch.tensor([[[2, 7]], [[2, 3]], [[5, 3]], [[5, 7]]])
    tracks = Tracks(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), torch.ones(2, 4), (1, 2))
    labels, confidence = track_vote(tracks, coarse, 0.0)
    assert labels[:, 0, 0].tolist() == [2] * 4 and labels[:, 0, 1].tolist() == [3] * 4 and (confidence == 0.5).all()


@pytest.fixture(scope="module")
def exact(backbone):
    """A window of the generated clip, its features, and where each cell's centre really goes, frame by frame ([f, h, w, 2])."""
    clip = generated_clip(num_frames=8)
    settings = Settings().resolve(backbone.model)
    match = extract_features(backbone, backbone.images(clip.frames, (240, 320)), settings).match
    point = np.stack(np.mgrid[0:30, 0:40], -1) * 8.0 + 3.5
    seen, path = np.ones((30, 40), bool), [point]
    for flow, visible in zip(clip.flow, clip.visible, strict=True):
        y, x = np.clip(np.round(point), 0, (239, 319)).astype(int).transpose(2, 0, 1)
        seen &= visible[y, x]
        point = point + flow[y, x]
        path.append(point)
    return match, (np.stack(path) - 3.5) / 8, seen


def test_moves_follow_the_exact_motion(exact):
    """Of the cells that stay visible, how many of the first moves end within one cell of the truth: measured 97 %."""
    match, truth, seen = exact
    moves = find_moves(match)[0][0].reshape(30, 40, 2).numpy()
    error = np.abs(moves - (truth[1] - truth[0])).max(-1)[seen]
    assert (error <= 1).mean() > 0.93


def test_tracks_end_where_the_points_end(exact):
    """Tracks that end within one cell of their point after seven moves: measured 30 %."""
    match, truth, seen = exact
    cells = find_tracks(match, RefineSettings()).cells[: 30 * 40, -1].numpy().reshape(30, 40)
    kept = seen & (cells >= 0)
    error = np.abs(np.stack(np.divmod(cells, 40), -1) - truth[-1]).max(-1)[kept]
    assert (error <= 1).mean() > 0.25 and kept.sum() / seen.sum() > 0.8
