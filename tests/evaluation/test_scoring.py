"""Label maps made up and scored: the protocols, windows in memory and on disk, and the scores of objects."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core import InputError, generated_clip
from vidseg_core.evaluation.clips import Store
from vidseg_core.evaluation.labelled import LabelledArrays
from vidseg_core.evaluation.metrics import confusion, mean_iou, stable_pixels
from vidseg_core.evaluation.report import clip_scores, spread, total_scores
from vidseg_core.evaluation.scoring import PROTOCOLS, Rules, Window, given_mask, score
from vidseg_core.evaluation.tally import Meter

SMALL = (96, 128)


def clip_of(truth, labels, **more):
    """A clip with this truth (a dict of frames that have some)."""
    frames = np.zeros((len(labels), *labels.shape[1:], 3), np.uint8)
    return LabelledArrays("clip", frames, truth if isinstance(truth, dict) else dict(enumerate(truth)), **more)


def windows_of(labels):
    """Windows of 3 frames."""
    return [Window(n, {"full": labels[n : n + 3]}) for n in range(0, len(labels), 3)]


def scored(truth, labels, protocol, classes=3, objects=False, **more):
    """The tally of made-up labels on made-up truth."""
    return score(clip_of(truth, labels, **more), windows_of(labels), Rules(classes, protocol, objects=objects)).tallies["full"]


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 3, (8, 12, 16))


def test_the_first_mask_is_given_and_counted_apart(labels):
    truth = labels.copy()
    truth[1:, 0] = (truth[1:, 0] + 1) % 3
    tally = scored(truth, labels, "first")
    scores = tally.scores()
    assert scores["mIoU"] == pytest.approx(mean_iou(confusion(labels, truth, 3)))
    assert (
        scores["mIoU later"] == pytest.approx(mean_iou(confusion(labels[1:], truth[1:], 3)))
        and scores["mIoU later"] < scores["mIoU"]
    )
    changed = np.mean(labels[1:] != labels[:-1], axis=(1, 2))
    assert scores["seam stability"] == pytest.approx(1 - changed[[2, 5]].mean())
    assert scores["stability"] == pytest.approx(1 - changed[[0, 1, 3, 4, 6]].mean())


def test_no_more_classes_are_given_than_there_are_clusters():
    truth = np.repeat(np.arange(8), [5, 4, 3, 2, 6, 7, 8, 1])[None, None].repeat(10, 1).repeat(2, 0)
    mask = given_mask(clip_of(truth, truth), 6)
    assert sorted(np.unique(mask)) == [0, 1, 2, 4, 5, 6, 255], "the two smallest of the eight are left out"
    assert (given_mask(clip_of(truth, truth), 20) == truth[0]).all()
    with pytest.raises(InputError, match="frame 0 of clip has no labels"):
        given_mask(clip_of({1: truth[1]}, truth), 6)


def test_segments_are_matched_one_to_one(labels):
    segments = np.array([7, 250, 0])[labels]
    segments[5:, :3], segments[6:, :3] = 9, 11  # two segments too many
    tally = scored(labels, segments, "matched")
    expected = np.where(np.isin(segments, [9, 11]), 200, labels)
    assert (tally.counts == confusion(expected, labels, 3)).all()
    assert tally.scores()["flicker"] == pytest.approx(np.mean(segments[1:] != segments[:-1])), (
        "what matches nothing stays apart"
    )


def test_segments_are_named_by_the_first_labelled_frame(labels):
    segments = labels + 3 * np.random.default_rng(1).integers(0, 2, labels.shape)  # two segments for each class
    segments[7, 0] = 99  # seen too late to be named
    tally = scored({3: labels[3], 7: labels[7]}, segments, "named")
    assert np.isnan(tally.scores()["mVC8"])
    expected = labels.copy()
    expected[7, 0] = 200
    assert (tally.counts == confusion(expected[[3, 7]], labels[[3, 7]], 3)).all()


def test_known_motion_is_followed():
    clip = generated_clip(num_frames=5, size=SMALL)
    moving = {"flow": clip.flow, "visible": clip.visible}
    tally = scored(clip.labels, clip.labels, "first", **moving)
    assert 1 - tally.scores()["flicker"] < tally.scores()["stability"] > 0.99
    pairs = [stable_pixels(*clip.labels[n : n + 2], clip.flow[n], clip.visible[n]) for n in range(4)]
    assert tally.seams.tolist() == list(pairs[2]) and tally.inside.tolist() == np.sum(np.delete(pairs, 2, 0), 0).tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_windows_on_disk_score_as_those_in_memory(tmp_path, labels, protocol):
    """Cells and pixels; what lies behind a gap does not count."""
    cells = labels[:, ::4, ::4]
    windows = [replace(w, maps={"coarse": cells[w.start : w.start + 3], **w.maps}) for w in windows_of(labels)]
    store = Store(tmp_path, "clip")
    for window in [*windows, Window(99, windows[0].maps)]:
        store.write(window.start, {name: maps.astype(np.uint8) for name, maps in window.maps.items()}, {}, "{}")
    clip, rules = clip_of(np.roll(labels, 1, 2), labels), Rules(3, protocol)
    ours, stored = score(clip, windows, rules), score(clip, store, rules)
    assert list(ours.tallies) == list(stored.tallies) == ["coarse", "full"]
    assert all(ours.tallies[stage].to_dict() == stored.tallies[stage].to_dict() for stage in ours.tallies)
    assert all((ours.names[stage] == stored.names[stage]).all() for stage in ours.names) and ours.strays == {}


# ---- sets of objects


def tally_of(truth, predicted):
    meter = Meter(3)
    for t, p in zip(truth, predicted, strict=True):
        meter.add(np.array(p), np.array(t))
    return meter.finish()


def test_scores_of_objects_are_davis():
    """J of an object is its mean over frames, that of a set the mean over objects; the ground does not count."""
    first = tally_of([[[0, 1, 1, 2]], [[0, 1, 1, 0]]], [[[0, 1, 0, 2]], [[0, 1, 1, 1]]])
    second = tally_of([[[1, 1, 0, 0]]], [[[1, 0, 0, 0]]])
    assert clip_scores(first, True)["J"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert total_scores([first, second], True)["J"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 + 1 / 2) / 3)
    counts = first.counts + second.counts
    assert total_scores([first, second], True)["mIoU"] == pytest.approx(mean_iou(counts))
    mean, error = spread([first, second], False)["accuracy"]
    assert mean == pytest.approx((6 / 8 + 3 / 4) / 2) and error == pytest.approx(0)
    assert np.isnan(spread([first], False)["mIoU"][1])


def test_an_object_that_leaves_is_scored_in_every_frame():
    truth = np.zeros((4, 20, 24), int)
    truth[:, 5:12, 5:12], truth[0, 14:18, 14:20] = 1, 2
    labels = truth.copy()
    labels[2, 14:18, 14:20] = 2
    tally = scored(truth, labels, "first", objects=True, given_only=True)
    scores = total_scores([tally], True)
    assert scores["J"] == scores["F"] == pytest.approx((1 + 2 / 3) / 2) and tally.region[2].tolist() == [2, 3]
