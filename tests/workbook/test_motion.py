"""Known motion: what follows it and what does not."""

import numpy as np
import pytest

from vidseg_core.workbook import motion


def test_stability_follows_the_motion(sliding):
    """Labels that move with the picture are kept everywhere, labels that stand still only inside the stripes of width 3."""
    clip, labels = sliding.clip, sliding.coarse
    assert motion.stability(labels, clip.flow, clip.visible) == pytest.approx(np.ones(4))
    standing = np.broadcast_to(labels[:1], labels.shape).copy()
    expected = (labels[0][:, :-1] == labels[0][:, 1:]).mean()
    assert motion.stability(standing, clip.flow, clip.visible) == pytest.approx(np.full(4, expected))


def test_true_paths_follow_the_flow_until_it_hides(sliding):
    paths = motion.true_paths(sliding.clip, np.array([[10.0, 3.0], [20.0, 60.0]]), 1, 5)
    assert np.isnan(paths[:, 0]).all() and paths[0, 1:].tolist() == [[10, 3], [10, 11], [10, 19], [10, 27]]
    assert paths[1, 1:4].tolist() == [[20, 60], [20, 68], [20, 76]] and np.isnan(paths[1, 4]).all()


def test_a_faster_clip_has_the_flow_of_its_longer_hops(sliding):
    fast = motion.faster(sliding.clip, 2)
    assert len(fast.frames) == 3 and fast.flow.shape[0] == 2
    assert (fast.flow[fast.visible] == [0, 16]).all() and not fast.visible[:, :, -16:].any() and fast.visible[:, :, :-16].all()
