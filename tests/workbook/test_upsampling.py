"""Stage 4 by hand decides as the stage does; borders and displacement against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core.common import enlarge
from vidseg_core.workbook import upsampling


def test_the_bench_decides_as_the_stage_does(bench):
    own = bench.settings.upsample
    answers = bench.ask(own)
    labels, margin = bench.decide(answers, bench.judge(answers, own))
    stage, seconds = bench.run(replace(own, separation=None))
    assert (labels == stage).all() and seconds > 0 and margin.min() >= 0 and margin.max() <= 1.1
    assert answers.plus.shape == answers.minus.shape and answers.plus.min() >= 0 and answers.plus.max() <= 1


def test_explore_modulation(bench):
    explorer = upsampling.explore_modulation(bench)
    y, x = np.argwhere(bench.cells == 1)[0].tolist()
    explorer.click("cells", x=(x + 0.5) * 128 / 40, y=(y + 0.5) * 96 / 30)
    assert explorer.mask.value == 1
    outside = enlarge(bench.cells, explorer.shown["score"].shape) != 1
    none, some, full = (explorer.set(damping=d).shown["score"][outside].mean() for d in (0.0, 0.5, 1.0))
    assert none < some < full and some == pytest.approx((none + full) / 2, rel=0.01)


def test_borders():
    truth = np.zeros((20, 30), int)
    truth[:, 15:] = 1
    near = upsampling.near_borders(truth, 2)
    assert near[:, 13:17].all() and near.sum() == 4 * 20
    truth[:8, :10] = 1
    cells = np.array([[0, 1, 1], [0, 1, 1]])
    smooth = upsampling.bilinear(cells[None], (20, 30))[0]
    assert (smooth[:, :9] == 0).all() and (smooth[:, 11:] == 1).all()
    moved = np.roll(truth, 4, axis=1)
    assert upsampling.shifts(moved, truth, 4).argmax() == 5 and upsampling.shifts(truth, truth, 4).argmax() == 4
    explorer = upsampling.explore_borders(np.zeros((20, 30, 3), np.uint8), {"a": truth, "b": moved}, truth)
    explorer.click("frame", x=29, y=0)
    top, left, _, width = explorer.shown["view"]
    assert top == 0 and left + width == 30 and explorer.shown["right"]["a"] == 1 > explorer.set(width=30).shown["right"]["b"]
