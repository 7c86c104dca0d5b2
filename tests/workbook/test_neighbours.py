"""What votes repair; the explorer of the settings."""

import numpy as np

from vidseg_core import RefineSettings
from vidseg_core.workbook import motion, neighbours


def test_votes_repair_chance(sliding):
    disturbed = neighbours.with_noise(sliding.coarse, 0.2)
    assert 0.1 < (disturbed != sliding.coarse).mean() < 0.3 and set(np.unique(disturbed)) == {0, 1}
    window = motion.Window(sliding.clip, sliding.match, disturbed)
    table = neighbours.compare_votes({"w": window}, {"vote": RefineSettings(method="tracks", max_jump=2, majority=0.5)})
    assert table.shape == (1, 2) and table[0, 0] == (disturbed == sliding.truth).mean() and table[0, 1] > table[0, 0] + 0.05


def test_explore_vote(sliding):
    explorer = neighbours.explore_vote(sliding, RefineSettings(method="tracks", max_jump=2))
    assert explorer.shown["before"] == 1 and explorer.shown["after"] == 1 and explorer.shown["within"] == 1
    assert explorer.set(max_jump=0).shown["tracks"] > 100, "every hop is cut, so that every cell starts a track"
