"""Every measure against a brute-force loop, scikit-learn or a case worked by hand."""

from itertools import permutations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from vidseg_core import generated_clip
from vidseg_core.evaluation.metrics import (
    VOID,
    boundary_f,
    class_iou,
    confusion,
    flicker,
    majority_segments,
    match_segments,
    mean_iou,
    pixel_accuracy,
    stable_pixels,
    video_consistency,
)
from vidseg_core.evaluation.tally import Meter, Tally


@pytest.fixture
def random():
    return np.random.default_rng(0)


def blobs(random, frames, size, classes, step=12):
    """Label maps of large patches, a few of whose pixels change from frame to frame."""
    patches = random.integers(0, classes, (size[0] // step + 1, size[1] // step + 1))
    labels = np.repeat(np.repeat(patches, step, 0), step, 1)[: size[0], : size[1]][None].repeat(frames, 0)
    noise = random.random(labels.shape) < 0.02
    labels[noise] = random.integers(0, classes, noise.sum())
    return labels


# ---- regions


def test_regions_agree_with_scikit_learn(random):
    truth, predicted = random.integers(0, 7, (2, 3, 40, 50))
    truth[truth == 6] = VOID  # class 5 is there, class 6 never
    counts = confusion(predicted, truth, 7)
    known = truth != VOID
    assert (counts[:, :7] == confusion_matrix(truth[known], predicted[known], labels=range(7))).all()
    expected = jaccard_score(truth[known], predicted[known], labels=range(6), average=None)
    assert np.abs(class_iou(counts)[:6] - expected).max() < 1e-12 and np.isnan(class_iou(counts)[6])
    assert mean_iou(counts) == pytest.approx(expected.mean(), abs=1e-12)
    assert pixel_accuracy(counts) == pytest.approx(accuracy_score(truth[known], predicted[known]), abs=1e-12)


def test_predictions_of_void_and_of_unknown_classes_are_wrong():
    truth, predicted = np.array([[0, 0, 1, VOID]]), np.array([[0, VOID, 9, 1]])
    counts = confusion(predicted, truth, 2)
    assert counts.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert pixel_accuracy(counts) == pytest.approx(1 / 3) and mean_iou(counts) == pytest.approx(0.25)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"class {wrong} of 3"):
        confusion(np.array([[0]]), np.array([[wrong]]), 3)


# ---- consistency in time


def brute_consistency(predicted, truth, span, official):
    values = []
    for i in range(len(truth) - span if official else len(truth) - span + 1):
        constant = (truth[i : i + span] == truth[i]).all(0)
        same = (predicted[i : i + span] == predicted[i]).all(0)
        if constant.any():
            values.append((constant & same).sum() / constant.sum())
    return values


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize(("frames", "span"), [(20, 8), (20, 16), (8, 8), (9, 8), (5, 8)])
def test_consistency_agrees_with_a_plain_loop(random, frames, span, official):
    truth, predicted = blobs(random, frames, (20, 24), 3), blobs(random, frames, (20, 24), 3)
    got = video_consistency(predicted, truth, span, official)
    expected = brute_consistency(predicted, truth, span, official)
    assert len(got) == len(expected)
    assert not expected or np.abs(got - expected).max() < 1e-12


def test_consistency_of_a_stable_wrong_label_is_full():
    truth = np.zeros((9, 2, 2), int)
    assert video_consistency(np.full_like(truth, 5), truth, 8).tolist() == [1.0, 1.0]
    assert video_consistency(np.full_like(truth, 5), truth, 8, official=True).tolist() == [1.0], "the last window is left out"


def test_consistency_by_hand():
    truth = np.zeros((9, 1, 4), int)
    truth[4:, 0, 3] = 1  # the truth of one pixel changes: it counts in no window of 8
    predicted = truth.copy()
    predicted[8, 0, 0] = 7  # one of the three others changes in the last frame: only in the second window
    assert video_consistency(predicted, truth, 8).tolist() == [1.0, pytest.approx(2 / 3)]
    truth[1] = 9  # now no pixel is constant in either window: there is nothing to average
    assert len(video_consistency(predicted, truth, 8)) == 0


def test_a_clip_as_short_as_the_window_is_skipped_officially():
    clip = np.zeros((8, 2, 2), int)
    assert len(video_consistency(clip, clip, 8)) == 1 and len(video_consistency(clip, clip, 8, official=True)) == 0


def test_void_counts_like_a_label_in_consistency():
    truth = np.full((8, 1, 2), VOID)
    predicted = np.zeros_like(truth)
    predicted[3, 0, 1] = 1
    assert video_consistency(predicted, truth, 8).tolist() == [0.5]


# ---- boundaries


def brute_boundary(predicted, truth, label, radius):
    """DAVIS' definition, one mask at a time and by Euclidean distance."""
    outlines = []
    for labels in (predicted, truth):
        mask = (labels == label) & (truth != VOID)
        edge = np.zeros(mask.shape, bool)
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                for ny, nx in ((y + 1, x), (y, x + 1), (y + 1, x + 1)):
                    if ny < mask.shape[0] and nx < mask.shape[1]:
                        edge[y, x] |= mask[y, x] != mask[ny, nx]
        outlines.append(edge)
    ours, theirs = outlines
    if not ours.any() or not theirs.any():
        return 1.0 if not ours.any() and not theirs.any() else 0.0
    precision = (distance_transform_edt(~theirs)[ours] <= radius).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= radius).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.008, 0.05])
def test_boundaries_agree_with_distances(random, tolerance):
    truth, predicted = blobs(random, 1, (60, 90), 4)[0], blobs(random, 1, (60, 90), 5)[0]
    truth[:7, :20] = VOID
    got, radius = boundary_f(predicted, truth, 6, tolerance), np.ceil(tolerance * np.hypot(60, 90))
    for label in range(6):
        if label not in truth:
            assert np.isnan(got[label])
        else:
            assert got[label] == pytest.approx(brute_boundary(predicted, truth, label, radius), abs=1e-12)


def test_more_classes_than_fit_one_word(random):
    truth = np.arange(100).repeat(100).reshape(100, 100) % 100
    truth = truth.T.copy()
    predicted = np.roll(truth, 3, axis=1)
    got = boundary_f(predicted, truth, 100)
    for label in (0, 63, 64, 99):
        assert got[label] == pytest.approx(brute_boundary(predicted, truth, label, 2), abs=1e-12)


def test_boundaries_at_the_ends():
    truth = np.zeros((40, 40), int)
    truth[10:30, 10:30] = 1
    assert boundary_f(truth, truth, 2).tolist() == [1.0, 1.0]
    assert boundary_f(np.zeros_like(truth), truth, 2).tolist() == [0.0, 0.0], "no outline where there is one"
    flat = np.zeros((40, 40), int)
    assert boundary_f(flat, flat, 2)[0] == 1.0 and np.isnan(boundary_f(flat, flat, 2)[1])
    shifted = np.roll(truth, 1, axis=1)  # 0.8 % of the diagonal is half a pixel, rounded up to one
    assert boundary_f(shifted, truth, 2)[1] == 1.0 and boundary_f(np.roll(truth, 3, axis=1), truth, 2)[1] < 0.7


# ---- objects, as DAVIS counts them


def test_objects_that_left_the_picture_count_as_davis_has_it():
    """In every scored frame each object of the first one: gone and not predicted is 1, gone and predicted 0; others never."""
    square = np.zeros((40, 40), int)
    square[5:15, 5:15] = 1
    both = square.copy()
    both[20:35, 20:35] = 2
    both[0] = VOID
    newcomer = np.where(square == 1, 3, 0)
    cases = [(both, both), (both, both), (square, square), (square, both), (newcomer, newcomer)]  # (truth, predicted)
    meter = Meter(4, objects=True)
    for n, (truth, predicted) in enumerate(cases):
        meter.add(predicted, truth, scored=n > 0)
        outlines = boundary_f(predicted, truth, 4, objects=np.array([1, 2]))
        assert outlines[1:3].tolist() == [brute_boundary(predicted, truth, label, 1) for label in (1, 2)]
        assert np.isnan(outlines[[0, 3]]).all()
    tally = Tally.from_dict(meter.finish().to_dict())
    assert tally.region.tolist() == tally.boundary.tolist() == [[0, 0], [4, 4], [3, 4], [0, 0]]
    meter = Meter(4)
    for truth, predicted in cases[1:]:
        meter.add(predicted, truth)
    assert meter.finish().region[1:].tolist() == [[3, 3], [1, 1], [1, 1]], "elsewhere only what the truth shows counts"


# ---- stability


def test_true_labels_are_stable_along_true_motion_only():
    """On the generated clip every visible pixel keeps its label, up to the rounding of motion to whole pixels."""
    clip = generated_clip(num_frames=3, size=(96, 128))
    same, compared = stable_pixels(clip.labels[0], clip.labels[1], clip.flow[0], clip.visible[0])
    assert compared == clip.visible[0].sum() and same / compared > 0.99
    still = np.mean(clip.labels[0] == clip.labels[1])
    assert same / compared > still, "along no motion, the outlines change label"


def test_stability_agrees_with_a_plain_loop(random):
    before, after = random.integers(0, 3, (2, 9, 11))
    flow, visible = random.normal(0, 3, (9, 11, 2)).astype(np.float32), random.random((9, 11)) < 0.8
    same = compared = 0
    for y in range(9):
        for x in range(11):
            ty, tx = np.round(y + flow[y, x, 0]), np.round(x + flow[y, x, 1])
            if visible[y, x] and 0 <= ty < 9 and 0 <= tx < 11:
                compared += 1
                same += before[y, x] == after[int(ty), int(tx)]
    assert stable_pixels(before, after, flow, visible) == (same, compared)


def test_without_motion_stability_is_one_minus_flicker(random):
    labels = random.integers(0, 3, (2, 9, 11))
    same, compared = stable_pixels(*labels)
    assert same / compared == pytest.approx(1 - flicker(labels))
    assert flicker(labels[:1]) == 0


# ---- names for anonymous segments


def test_matching_is_the_best_of_all_permutations(random):
    counts = random.integers(0, 50, (4, 5))
    names = match_segments(counts)
    best = max(sum(counts[c, s] for c, s in enumerate(order)) for order in permutations(range(5), 4))
    assert sum(counts[c, s] for s, c in enumerate(names) if c != VOID) == best
    assert sorted(names) == [0, 1, 2, 3, VOID], "one to one; what is left over is void"


def test_majority_may_name_two_segments_alike():
    counts = np.array([[9, 8, 0, 0], [1, 2, 5, 0]])
    assert majority_segments(counts).tolist() == [0, 0, 1, VOID]
    assert match_segments(counts[:, :3]).tolist() == [0, VOID, 1]


# ---- accumulation


def test_a_meter_gives_what_the_whole_arrays_give(random):
    truth, predicted = blobs(random, 18, (32, 40), 4), blobs(random, 18, (32, 40), 4)
    meter = Meter(4)
    for n in range(18):
        meter.add(predicted[n], truth[n], seam=n % 7 == 0)
    scores = meter.finish().scores()
    counts = confusion(predicted, truth, 4)
    assert scores["mIoU"] == pytest.approx(mean_iou(counts)) and scores["accuracy"] == pytest.approx(pixel_accuracy(counts))
    assert scores["mIoU later"] == pytest.approx(mean_iou(confusion(predicted[1:], truth[1:], 4)))
    assert scores["mVC8"] == pytest.approx(np.mean(brute_consistency(predicted, truth, 8, False)))
    assert scores["mVC16"] == pytest.approx(np.mean(brute_consistency(predicted, truth, 16, False)))
    outlines = np.stack([boundary_f(p, t, 4) for p, t in zip(predicted, truth, strict=True)])
    assert scores["F"] == pytest.approx(np.nanmean(outlines))
    regions = np.stack([class_iou(confusion(p, t, 4)) for p, t in zip(predicted, truth, strict=True)])
    assert scores["J"] == pytest.approx(np.nanmean(regions))
    assert scores["flicker"] == pytest.approx(flicker(predicted))
    same = np.mean(predicted[1:] == predicted[:-1], axis=(1, 2))
    assert scores["seam stability"] == pytest.approx(same[[6, 13]].mean())
    assert scores["stability"] == pytest.approx(np.delete(same, [6, 13]).mean())


def test_tallies_of_clips_add_up_and_travel_as_json(random):
    clips = [blobs(random, 9, (24, 24), 3) for _ in range(4)]
    parts = []
    for predicted, truth in (clips[:2], clips[2:]):
        meter = Meter(3, official_vc=True)
        for p, t in zip(predicted, truth, strict=True):
            meter.add(p, t)
        parts.append(meter.finish())
    total = Tally.from_dict(parts[0].to_dict()) + parts[1]
    both = [np.concatenate([clips[i], clips[i + 2]]) for i in range(2)]
    assert (total.counts == confusion(*both, 3)).all()
    windows = [brute_consistency(*clips[i : i + 2], 8, True) for i in (0, 2)]
    assert total.scores()["mVC8"] == pytest.approx(np.mean(windows)) and np.isnan(total.scores()["mVC16"])


def test_frames_without_labels_are_left_out_of_what_needs_them(random):
    labels = blobs(random, 20, (24, 24), 3)
    meter = Meter(3)
    for n, frame in enumerate(labels):
        meter.add(frame, frame if n == 19 else None)
    scores = meter.finish().scores()
    assert scores["mIoU"] == 1 and np.isnan(scores["mVC8"]), "no window of 8 is labelled throughout"
    assert 0 < scores["flicker"] < 0.1
    meter = Meter(3)
    for n, frame in enumerate(labels):
        meter.add(frame, None if n == 10 else frame, scored=n not in (0, 19))
    tally = meter.finish()
    assert tally.counts.sum() == 17 * 24 * 24 and tally.vc8[1] == 3 + 2, "windows do not reach across the gap"
