"""Hops and tracks on known motion, and the explorer of one track."""

import numpy as np
import pytest

from vidseg_core import RefineSettings
from vidseg_core.workbook import correspondence


def test_hops_and_tracks_on_known_motion(sliding):
    settings = RefineSettings(precision="cell")
    hops = correspondence.judge_hops(sliding, settings)
    assert (hops.within, hops.pace, hops.still) == pytest.approx((1, 1, 0))
    tracks = sliding.refine(settings).tracks
    errors = correspondence.track_errors(tracks, sliding.clip)
    assert np.nanmax(errors) == pytest.approx(0) and correspondence.share_within(errors[:, -1]) == 1
    still = correspondence.judge_hops(sliding, RefineSettings(precision="cell", anchor="frame0"))
    assert still.pace < 1, "the first hop of frame0 is the identity"
    for share in correspondence.failures(sliding, tracks).values():
        assert np.isnan(share).all() or np.nanmin(share) == 1


def test_explore_track(sliding):
    explorer = correspondence.explore_track(sliding, RefineSettings(precision="cell"))
    explorer.click("0", x=10, y=20)
    shown = explorer.shown
    assert shown["cells"].tolist() == [[2, 1], [2, 2], [2, 3], [2, 4], [2, 5]] and shown["error"] == pytest.approx(0)
    assert shown["votes"].tolist() == sliding.coarse[np.arange(5), 2, np.arange(1, 6)].tolist() and shown["share"] == 1
    explorer.set(frame=4, row=2, column=5)
    assert explorer.shown["cells"].tolist() == shown["cells"].tolist(), "the same track, taken hold of at its end"
    explorer.set(frame=3, row=0, column=0)
    assert explorer.shown["cells"][:3].tolist() == [[-1, -1]] * 3, "a cell that came into view has a track from there on"
