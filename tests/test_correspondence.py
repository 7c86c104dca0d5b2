"""Stage 3 against brute-force trackers that follow the text, and against the exact tracks of the generated clip."""

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from vidseg_core import RefineSettings, Settings, generated_clip
from vidseg_core.context import name_cells
from vidseg_core.correspondence import Tracks, find_moves, find_tracks, neighbour_vote, refine, vote
from vidseg_core.features import extract_features

H, W, F = 5, 6, 7
TRACKS = partial(RefineSettings, method="tracks")


@pytest.fixture(scope="module")
def match():
    """A smooth random field that drifts, so that hops are near but not trivial, with noise enough to jump sometimes."""
    rng = np.random.default_rng(0)
    field = np.cumsum(np.cumsum(rng.normal(size=(H + F, W + F, 12)), 0), 1)
    maps = [field[t // 2 : t // 2 + H, t // 3 : t // 3 + W] + rng.normal(0, 1.0, (H, W, 12)) for t in range(F)]
    return torch.from_numpy(np.stack(maps)).float()


@pytest.fixture(scope="module")
def coarse():
    return torch.from_numpy(np.random.default_rng(1).integers(0, 4, (F, H, W)))


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
    """FIELD's words, one point and one frame at a time. Returns labels, confidence and the kept tracks."""
    unit = (match / match.norm(dim=-1, keepdim=True)).numpy().astype(np.float64)
    tracks, covered = [], set()
    starts = [(0, y, x) for y, x in itertools.product(range(H), range(W))]
    for t0 in range(F):
        if t0 and s.start == "uncovered":
            starts = [(t0, y, x) for y, x in itertools.product(range(H), range(W)) if (t0, y, x) not in covered]
        elif t0:
            break
        for _, y, x in starts:
            path, weakest, dropped, point = [(t0, y, x)], [1.0], False, np.array([y, x], float)
            for q in range(t0, F - 1):
                y, x = path[-1][1:]
                source = unit[q, y, x]
                cosine = unit[q + 1] @ source
                score = cosine if s.anchor == "none" else q / (q + 1) * cosine + 1 / (q + 1) * (unit[0] @ source)
                move = np.array(np.unravel_index(score.argmax(), (H, W))) - (y, x)
                if s.precision == "subcell":
                    move = move + top_of_parabola(score, move + np.array([y, x]))
                point = point + move
                ny, nx = np.clip(np.round(point), 0, (H - 1, W - 1)).astype(int)
                jump = np.abs(move) if s.jump == "absolute" else move
                if max(jump) > s.max_jump:
                    dropped = True
                    if s.on_jump == "cut":
                        break
                path.append((q + 1, int(ny), int(nx)))
                weakest.append(min(weakest[-1], cosine[np.unravel_index(score.argmax(), (H, W))]))
            covered.update(path)
            if not (dropped and s.on_jump == "drop"):
                tracks.append((path, weakest))
    labels, confidence, best = coarse.numpy().copy(), np.ones(coarse.shape), {}
    for path, weakest in tracks:
        votes = Counter(int(coarse[cell]) for cell in path)
        winner = min(votes, key=lambda c: (-votes[c], c))
        for cell, strength in zip(path, weakest, strict=True):
            if s.collision == "last" or strength >= best.get(cell, -2) - 1e-9:
                best[cell] = strength
                confidence[cell] = votes[winner] / len(path)
                labels[cell] = winner if confidence[cell] >= s.majority else coarse[cell]
    return labels, confidence, tracks


NAMES = ("anchor", "jump", "on_jump", "precision", "start", "collision")
VALUES = (
    ("none", "frame0"), ("absolute", "signed"), ("cut", "drop"), ("subcell", "cell"), ("uncovered", "frame0"),
    ("similarity", "last"),
)  # fmt: skip
CHOICES = [dict(zip(NAMES, choice, strict=True)) for choice in itertools.product(*VALUES)]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: "-".join(c.values()))
def test_refinement_equals_brute_force(match, coarse, choice):
    settings = TRACKS(**choice)
    ours = refine(match, coarse, settings)
    labels, confidence, tracks = brute_force(match, coarse, settings)
    if not (choice["start"] == "uncovered" and choice["on_jump"] == "drop"):  # there the order of coverage differs
        assert len(ours.tracks.cells) == len(tracks)
    kept = {tuple(c for c in row if c >= 0) for row in ours.tracks.cells.tolist()}
    assert {tuple(y * W + x for _, y, x in path) for path, _ in tracks} <= kept | set()
    assert (ours.labels.numpy() == labels).mean() > 0.99, (ours.labels.numpy() != labels).nonzero()
    assert np.abs(ours.confidence.numpy() - confidence)[ours.labels.numpy() == labels].max() < 1e-6


def test_the_reference_is_brute_force_to_the_letter(match, coarse):
    settings = Settings.reference("tiny").refine
    quirks = {
        "method": "tracks",
        "anchor": "frame0",
        "jump": "signed",
        "on_jump": "drop",
        "precision": "cell",
        "start": "frame0",
    }
    assert settings == RefineSettings(**quirks, majority=0.0, collision="last")
    ours = refine(match, coarse, settings)
    labels, confidence, tracks = brute_force(match, coarse, settings)
    assert (ours.labels.numpy() == labels).all() and np.abs(ours.confidence.numpy() - confidence).max() < 1e-6
    assert [[y * W + x for _, y, x in path] for path, _ in tracks] == ours.tracks.cells.tolist()
    assert 0 < len(tracks) < H * W, "some tracks, not all, must be dropped for this to test anything"


def test_first_anchored_hop_is_the_identity(match):
    anchored, free = (find_moves(match, TRACKS(anchor=a, precision="cell"))[0] for a in ("frame0", "none"))
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
    ends = [find_tracks(match, TRACKS(precision=p)).cells[start, -1].item() for p in ("subcell", "cell")]
    assert ends == [start + 2, start]


def test_only_a_clear_majority_overrules():
    tracks = Tracks(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5), (1, 1))
    coarse = torch.tensor([1, 1, 1, 2, 3]).view(5, 1, 1)
    for majority, expected in ((0.0, [1, 1, 1, 1, 1]), (0.6, [1, 1, 1, 1, 1]), (0.7, [1, 1, 1, 2, 3])):
        labels, confidence = vote(tracks, coarse, TRACKS(majority=majority))
        assert labels.flatten().tolist() == expected and torch.allclose(confidence, torch.tensor(0.6))


def test_signed_jumps_pass_up_and_left(match):
    signed, absolute = (find_tracks(match, TRACKS(jump=j, on_jump="drop", start="frame0")) for j in ("signed", "absolute"))
    assert len(signed.cells) > len(absolute.cells)


def test_every_cell_is_covered(match):
    cells = find_tracks(match, TRACKS()).cells
    for t in range(F):
        assert set(cells[:, t].tolist()) >= set(range(H * W))


def test_the_vote_is_the_majority_and_ties_go_to_the_smaller():
    coarse = torch.tensor([[[2, 7]], [[2, 3]], [[5, 3]], [[5, 7]]])
    tracks = Tracks(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), torch.ones(2, 4), (1, 2))
    labels, confidence = vote(tracks, coarse, TRACKS(majority=0.0))
    assert labels[:, 0, 0].tolist() == [2] * 4 and labels[:, 0, 1].tolist() == [3] * 4 and (confidence == 0.5).all()


def test_void_can_win_a_vote_and_stays_void():
    coarse = torch.tensor([[[255]], [[255]], [[1]]])
    labels, _ = vote(Tracks(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3), (1, 1)), coarse, TRACKS(majority=0.0))
    assert labels.flatten().tolist() == [255, 255, 255]


def brute_force_neighbours(match, coarse, s):
    """Every pair of cells in a plain loop: votes by label, weight by similarity, if near enough in time, down and across."""
    unit = (match / match.norm(dim=-1, keepdim=True)).numpy().astype(np.float64)
    labels, confidence = np.zeros(coarse.shape, int), np.zeros(coarse.shape)
    for cell in np.ndindex(coarse.shape):
        votes = Counter()
        for other in np.ndindex(coarse.shape):
            t, y, x = np.abs(np.subtract(cell, other))
            if t <= s.reach and y <= s.radius and x <= s.radius:
                votes[int(coarse[other])] += np.exp((unit[cell] @ unit[other] - 1) / s.temperature)
        labels[cell] = max(sorted(votes), key=votes.get)
        confidence[cell] = votes[labels[cell]] / sum(votes.values())
    return labels, confidence


@pytest.mark.parametrize(("reach", "radius", "temperature"), [(2, 1, 0.15), (1, 2, 0.5), (0, 1, 0.3), (9, 7, 0.2), (3, 0, 1.0)])
def test_neighbours_vote_as_brute_force(match, coarse, reach, radius, temperature):
    settings = RefineSettings(reach=reach, radius=radius, temperature=temperature)
    ours = refine(match, coarse, settings)
    labels, confidence = brute_force_neighbours(match, coarse, settings)
    assert (ours.labels.numpy() == labels).all() and np.abs(ours.confidence.numpy() - confidence).max() < 1e-5
    assert (ours.labels != coarse).any(), "nobody was outvoted, so this tests nothing"


def test_a_window_hears_the_frames_before_it(match, coarse):
    """Cut in two, with the last frames of the first part handed on, the second part is as it is in one piece."""
    settings, cut = RefineSettings(reach=2, temperature=0.5), 4
    whole = refine(match, coarse, settings)
    second = refine(match[cut:], coarse[cut:], settings, (match[cut - 2 : cut], coarse[cut - 2 : cut]))
    assert torch.equal(second.labels, whole.labels[cut:])
    assert torch.allclose(second.confidence, whole.confidence[cut:], atol=1e-6)
    assert not torch.equal(second.labels, refine(match[cut:], coarse[cut:], settings).labels)


def test_of_equal_votes_the_smaller_label_wins():
    match = torch.ones(2, 1, 1, 3)
    labels, confidence = neighbour_vote(match, torch.tensor([[[7]], [[2]]]), RefineSettings())
    assert labels.flatten().tolist() == [2, 2] and torch.allclose(confidence, torch.tensor(0.5))


def test_neighbours_steady_the_labels_where_tracks_do_not(backbone):
    """A tenth of the true labels of cells is exchanged at random; the vote must mend most of it and harm little."""
    clip = generated_clip(num_frames=8)
    match = extract_features(backbone, backbone.images(clip.frames, (240, 320)), Settings().resolve(backbone.model)).match
    truth = torch.stack([name_cells(mask, (30, 40)) for mask in clip.labels])
    rng = np.random.default_rng(0)
    wrong = torch.from_numpy(rng.random(truth.shape) < 0.1)
    noisy = torch.where(wrong, torch.from_numpy(rng.integers(0, 3, truth.shape)), truth)
    right = {
        m: (refine(match, noisy, RefineSettings(method=m)).labels == truth).float().mean()
        for m in ("none", "tracks", "neighbours")
    }
    assert right["none"] < 0.95 and right["neighbours"] > 0.98 and right["neighbours"] > right["tracks"] + 0.005, right


def test_no_refinement(match, coarse):
    none = refine(match, coarse, RefineSettings(method="none"))
    assert torch.equal(none.labels, coarse) and len(none.tracks.cells) == 0 and (none.confidence == 1).all()


def test_one_frame(match, coarse):
    one = refine(match[:1], coarse[:1], TRACKS())
    assert torch.equal(one.labels, coarse[:1]) and one.tracks.cells.shape == (H * W, 1)


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
    moves = find_moves(match, TRACKS())[0][0].reshape(30, 40, 2).numpy()
    error = np.abs(moves - (truth[1] - truth[0])).max(-1)[seen]
    assert (error <= 1).mean() > 0.93


def test_tracks_end_where_the_points_end(exact):
    """Tracks that end within one cell of their point after seven moves: measured 30 %, between cell centres 3 %."""
    match, truth, seen = exact
    shares = {}
    for precision in ("subcell", "cell"):
        cells = find_tracks(match, TRACKS(precision=precision)).cells[: 30 * 40, -1].numpy().reshape(30, 40)
        kept = seen & (cells >= 0)
        error = np.abs(np.stack(np.divmod(cells, 40), -1) - truth[-1]).max(-1)[kept]
        shares[precision] = (error <= 1).mean(), kept.sum() / seen.sum()
    assert shares["subcell"][0] > 0.25 > shares["cell"][0] and shares["subcell"][1] > 0.8
