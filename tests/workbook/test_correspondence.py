"""Hops and tracks on known motion, and the explorer of one track."""

import numpy as np
import pytest

from vidseg_core import RefineSettings
from vidseg_core.workbook import correspondence


def test_hops_and_tracks_on_known_motion(sliding):
    hops = correspondence.judge_hops(sliding, subcell=False)
    assert (hops.within, hops.pace, hops.still) == pytest.approx((1, 1, 0))
    tracks = sliding.tracks(RefineSettings(max_jump=2))
    errors = correspondence.track_errors(tracks, sliding.clip)
    assert np.nanmax(errors) <= 1 and correspondence.share_within(errors[:, -1]) == 1
    still = correspondence.judge_hops(sliding, anchor=True, subcell=False)
    assert still.pace < 1, "the first anchored hop is the identity"
    for share in correspondence.failures(sliding, tracks).values():
        assert np.isnan(share).all() or np.nanmin(share) == 1


def test_explore_track(sliding):
    explorer = correspondence.explore_track(sliding, RefineSettings(max_jump=2))
    explorer.click("0", x=10, y=20)
    shown = explorer.shown
    row, column = shown["cells"].T
    assert (row == 2).all() and np.abs(column - np.arange(1, 6)).max() <= 1 and shown["error"] <= 1
    assert shown["votes"].tolist() == sliding.coarse[np.arange(5), row, column].tolist()
    explorer.set(frame=4, row=2, column=int(column[-1]))
    assert explorer.shown["cells"][4].tolist() == [2, int(column[-1])], "a track that ends there, taken hold of at its end"
    visited = sliding.tracks(RefineSettings(method="reference")).cells[:, 4].tolist()
    row, column = divmod(min(set(range(60)) - set(visited)), 10)
    explorer.set(method="reference", frame=4, row=row, column=column)
    assert explorer.shown["winner"] == -1 and explorer.shown["share"] == 0, "the paper's tracks do not come here"
    row, column = divmod(int(sliding.tracks(RefineSettings(method="reference")).cells[0, 0]), 10)
    explorer.set(frame=0, row=row, column=column)
    assert explorer.shown["cells"][1].tolist() == explorer.shown["cells"][0].tolist(), "the paper's first hop stays"
    explorer.set(method="tracks", frame=3, row=0, column=0)
    assert explorer.shown["cells"][:3].tolist() == [[-1, -1]] * 3, "a cell that came into view has a track from there on"
