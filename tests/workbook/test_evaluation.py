"""The evaluation's clips, ways of naming and constructed labels."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core import Settings
from vidseg_core.common import VOID
from vidseg_core.evaluation.baselines import make_method
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.workbook import evaluation

CLASSES = ("rest", "leaf", "blossom")


@pytest.fixture
def dataset(clip):
    labels = dict(enumerate(clip.labels))
    return Dataset("small", CLASSES, (LabelledArrays("small", clip.frames, labels, given_only=True),))


def test_thin_keeps_labelled_frames():
    full, part = open_dataset("cup").clips[0], evaluation.thin(open_dataset("cup"), 20).clips[0]
    numbers = sorted({0, 20, 40} | set(full.labels))
    assert part.num_frames == len(numbers) and np.array_equal(part.images, full.images[numbers])
    for k, n in enumerate(numbers):
        assert (k in part.labels) == (n in full.labels)
        if n in full.labels:
            assert np.array_equal(part.labels[k], full.labels[n])
    assert evaluation.thin(open_dataset("cup"), 60, 25).clips[0].num_frames == 3, "0, 12 and 24 have labels"


def test_judge_scores_what_the_method_says(backbone, dataset):
    settings = Settings(working_size=dataset.clips[0].size, window=4).resolve(backbone.model)
    method = make_method("colour", backbone, settings)
    judged = evaluation.judge(method, dataset, settings)
    assert np.array_equal(judged.labels, method(dataset.clips[0].images, dataset.clips[0].labels[0]))
    truth = np.stack([dataset.clips[0].labels[n] for n in judged.scored])
    assert judged.scored == [1, 2, 3, 4, 5], "frame 0 is given"
    assert judged.tally.scores()["accuracy"] == pytest.approx((judged.labels[1:] == truth).mean())
    assert list(judged.tallies) == list(method.stages)


@pytest.mark.slow
def test_names_by_frame_0_cannot_name_what_is_not_in_it(backbone):
    made = evaluation.late_clip(2)
    clip = made.clips[0]
    small = replace(clip, images=clip.images[::4], labels={k: clip.labels[4 * k] for k in range(3)})
    ways = evaluation.name_in_ways(backbone, replace(made, clips=(small,)))
    tile = made.classes.index("tile")
    for name, way in ways.items():
        assert name == "no mask, Hungarian" or not (way.labels == tile).any(), name
    hungarian = ways["no mask, Hungarian"].labels
    assert (hungarian >= len(made.classes)).mean() > 0.2, "one cluster a class: the others have none"
    assert ways["cells, by frame 0"].tally.scores()["accuracy"] > 0.95


def test_pretenders(clip):
    labels = evaluation.pretenders(clip.labels, 3)
    assert np.array_equal(labels["the truth"], clip.labels) and not (labels["every name wrong"] == clip.labels).any()
    assert (labels["the mask of frame 0, held still"] == clip.labels[0]).all()
    scores = evaluation.score_maps(labels, LabelledArrays("c", clip.frames, dict(enumerate(clip.labels))), 3)
    assert scores["the truth"]["mIoU"] == 1 and scores["every name wrong"]["mIoU"] == 0
    lazy = scores["the largest class everywhere"]
    assert lazy["mIoU"] == pytest.approx(lazy["accuracy"] / 3) and lazy["F"] == 0 and lazy["stability"] == 1
    share = (labels["5 % of the pixels drawn anew"] != clip.labels).mean()
    assert share == pytest.approx(0.05 * 2 / 3, abs=0.005)


def test_errors_are_black_and_void_is_none(clip):
    truth = clip.labels[0].copy()
    truth[:10] = VOID
    labels = np.where(np.arange(truth.shape[1]) < 20, (clip.labels[0] + 1) % 3, clip.labels[0])
    picture = evaluation.with_errors(clip.frames[0], labels, truth)
    black = (picture == 0).all(-1)
    assert black[10:, :20].all() and not black[:10].any() and black[:, 20:].mean() < 0.01
