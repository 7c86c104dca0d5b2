"""Clusters of one frame and of all, and where named cells lie."""

import numpy as np

from vidseg_core import ContextSettings
from vidseg_core.workbook import context
from vidseg_core.workbook.features import at_centres

CONTEXT = ContextSettings(num_clusters=6, restarts=1)


def test_frame_by_frame_renumbers_without_regrouping(features):
    raw, matched = context.frame_by_frame(features.context, CONTEXT)
    for a, b in zip(raw, matched, strict=True):
        assert len({*zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)}) == len(np.unique(a)) == len(np.unique(b))
    overlap = [(m[1:] == m[:-1]).mean() for m in (raw, matched)]
    assert overlap[1] > overlap[0]


def test_explore_clusters(clip, features):
    explorer = context.explore_clusters(clip.frames, features.context, CONTEXT)
    explorer.set(num_clusters=5, num_segments=5)
    clusters = explorer.shown["clusters"]
    assert (explorer.shown["segments"] == clusters).all() and len(np.unique(clusters)) == 5
    explorer.set(num_segments=2)
    assert (explorer.shown["clusters"] == clusters).all() and len(np.unique(explorer.shown["segments"])) == 2
    explorer.set(num_segments=6)
    assert "6 segments" in explorer.status.value
    inertia = explorer.set(num_clusters=10, num_segments=2).shown["inertia"]
    assert inertia < explorer.set(num_clusters=3).shown["inertia"]


def test_agreement_knows_which_way_labels_are_displaced(clip):
    cells = at_centres(clip.labels, (12, 16))
    assert context.agreement(cells, clip.labels).argmax() == 4
    assert context.agreement(np.roll(cells, 1, axis=2), clip.labels).argmax() == 5
    assert context.agreement(np.roll(cells, -1, axis=1), clip.labels).argmax() == 1
