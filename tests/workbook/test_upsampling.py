"""Borders against closed forms, and close up."""

import numpy as np

from vidseg_core.workbook import upsampling


def test_borders():
    truth = np.zeros((20, 30), int)
    truth[:, 15:] = 1
    near = upsampling.near_borders(truth, 2)
    assert near[:, 13:17].all() and near.sum() == 4 * 20
    truth[:8, :10] = 1
    moved = np.roll(truth, 4, axis=1)
    explorer = upsampling.explore_borders(np.zeros((20, 30, 3), np.uint8), {"a": truth, "b": moved}, truth)
    explorer.click("frame", x=29, y=0)
    top, left, _, width = explorer.shown["view"]
    assert top == 0 and left + width == 30 and explorer.shown["right"]["a"] == 1 > explorer.set(width=30).shown["right"]["b"]
