"""Stage 3 against a brute-force vote that follows the text."""

from collections import Counter

import numpy as np
import pytest
import torch

from vidseg_core import RefineSettings, Settings, generated_clip
from vidseg_core.context import Votes, name_cells
from vidseg_core.correspondence import Overlap, refine
from vidseg_core.features import Features, extract_features


def vote(match, coarse, settings, overlap=None):
    """Stage 3 on match features alone; `coarse` are labels, all of whose votes are for them."""
    certain = Votes.certain(coarse)
    return Votes(refine(Features(match, match), certain.shares, overlap, settings), certain.numbers)


def brute_force_neighbours(match, coarse, s):
    """Cell by cell in a plain loop: its own vote, and in each frame near enough that of the most similar cell near enough."""
    unit = (match / match.norm(dim=-1, keepdim=True)).numpy().astype(np.float64)
    labels, confidence = np.zeros(coarse.shape, int), np.zeros(coarse.shape)
    for frame, y, x in np.ndindex(coarse.shape):
        votes = Counter({int(coarse[frame, y, x]): 1.0})
        for other in set(range(frame - s.reach, frame + s.reach + 1)) & set(range(len(coarse))) - {frame}:
            rows, columns = (slice(max(0, at - s.radius), at + s.radius + 1) for at in (y, x))
            cosines = unit[other, rows, columns] @ unit[frame, y, x]
            votes[int(coarse[other, rows, columns].flatten()[cosines.argmax()])] += np.exp((cosines.max() - 1) / s.temperature)
        labels[frame, y, x] = max(sorted(votes), key=votes.get)
        confidence[frame, y, x] = votes[labels[frame, y, x]] / sum(votes.values())
    return labels, confidence


@pytest.mark.parametrize(("reach", "radius", "temperature"), [(2, 1, 0.15), (1, 2, 0.5), (0, 1, 0.3), (9, 7, 0.2), (3, 0, 1.0)])
def test_neighbours_vote_as_brute_force(match, coarse, reach, radius, temperature):
    settings = RefineSettings(reach=reach, radius=radius, temperature=temperature)
    ours = vote(match, coarse, settings)
    labels, confidence = brute_force_neighbours(match, coarse, settings)
    assert (ours.labels.numpy() == labels).all() and np.abs(ours.confidence.numpy() - confidence).max() < 1e-5
    assert (ours.labels != coarse).any() == (reach > 0), "nobody was outvoted, so this tests nothing"


def test_a_window_hears_the_frames_before_it(match, coarse):
    """Cut in two, with the last frames of the first part handed on, the second part is as it is in one piece."""
    settings, cut = RefineSettings(reach=2, temperature=0.5), 4
    whole = vote(match, coarse, settings)
    before = Votes.certain(coarse).shares[cut - 2 : cut]
    second = vote(match[cut:], coarse[cut:], settings, Overlap(match[cut - 2 : cut], before))
    assert torch.equal(second.labels, whole.labels[cut:])
    assert torch.allclose(second.confidence, whole.confidence[cut:], atol=1e-6)
    assert not torch.equal(second.labels, vote(match[cut:], coarse[cut:], settings).labels)


def test_of_equal_votes_the_smaller_label_wins():
    match = torch.tensor([1.0, 0, 0]).expand(2, 1, 1, 3)
    refined = vote(match, torch.tensor([[[7]], [[2]]]), RefineSettings())
    assert refined.labels.flatten().tolist() == [2, 2] and torch.allclose(refined.confidence, torch.tensor(0.5))


def test_neighbours_steady_the_labels_where_tracks_do_not(backbone):
    """A tenth of the true labels of cells is exchanged at random; the vote must mend most of it and harm little."""
    clip = generated_clip(num_frames=8)
    match = extract_features(backbone, backbone.images(clip.frames, (240, 320)), Settings().resolve(backbone.model)).match
    truth = torch.stack([name_cells(mask, (30, 40)) for mask in clip.labels])
    rng = np.random.default_rng(0)
    wrong = torch.from_numpy(rng.random(truth.shape) < 0.1)
    noisy = torch.where(wrong, torch.from_numpy(rng.integers(0, 3, truth.shape)), truth)
    right = {
        m: (vote(match, noisy, RefineSettings(method=m)).labels == truth).float().mean()
        for m in ("none", "tracks", "neighbours")
    }
    assert right["none"] < 0.95 and right["neighbours"] > 0.98 and right["neighbours"] > right["tracks"] + 0.005, right


def test_no_refinement(match, coarse):
    none = vote(match, coarse, RefineSettings(method="none"))
    assert torch.equal(none.labels, coarse) and (none.confidence == 1).all()


def test_void_can_win_a_vote_and_stays_void():
    match, coarse = torch.ones(3, 1, 1, 2), torch.tensor([[[255]], [[255]], [[1]]])
    for method in ("neighbours", "tracks", "reference"):
        assert vote(match, coarse, RefineSettings(method=method, majority=0.0)).labels.flatten().tolist() == [255] * 3, method


def test_one_frame(match, coarse):
    for method in ("tracks", "reference"):
        assert torch.equal(vote(match[:1], coarse[:1], RefineSettings(method=method)).labels, coarse[:1])
