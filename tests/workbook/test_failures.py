"""The worst frames come first; the explorer of failures."""

import numpy as np
import pytest

from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.workbook import evaluation, failures

CLASSES = ("rest", "leaf", "blossom")


@pytest.fixture
def dataset(clip):
    labels = dict(enumerate(clip.labels))
    return Dataset("small", CLASSES, (LabelledArrays("small", clip.frames, labels, given_only=True),))


@pytest.fixture
def results(dataset):
    """Two methods without a model: the truth, and the truth with frame 3 called "rest" all over."""
    truth = np.stack(list(dataset.clips[0].labels.values()))
    spoilt = truth.copy()
    spoilt[3] = 0
    return {
        "small": {n: evaluation.Judged(dataset.clips[0], CLASSES, m, {}) for n, m in (("exact", truth), ("spoilt", spoilt))}
    }


def test_worst_frames_come_first(results):
    (name, method, frame, share), second = failures.worst_frames(results, 5)
    truth = results["small"]["exact"].labels[3]
    assert (name, method, frame) == ("small", "spoilt", 3) and share == pytest.approx((truth == 0).mean())
    assert second[1] == "exact" and second[3] == 1
    entries = failures.gallery(results, 1)
    assert len(entries) == 1 and (entries[0][2] == 0).all() and np.array_equal(entries[0][3], truth)


def test_explorer_of_failures(results):
    explorer = failures.explore_failures(results)
    assert explorer.shown["frame"] == 5 and not explorer.shown["wrong"].any()
    before = explorer.picture.value
    explorer.set(method="spoilt").click("curve", 2.2, 50)
    assert explorer.shown["frame"] == 3 and explorer.picture.value != before
    assert np.array_equal(explorer.shown["wrong"], results["small"]["exact"].labels[3] != 0)
    curve = explorer.shown["curves"]["spoilt"]
    assert curve[:2] == curve[3:] == [1, 1] and curve[2] < 1
    assert explorer.set(metric="mIoU").shown["curves"]["spoilt"][2] < curve[2]
    explorer.click("curve", 99, 0)
    assert explorer.shown["frame"] == 5, "a click beyond the curve takes its end"
