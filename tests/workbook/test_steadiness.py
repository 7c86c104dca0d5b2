"""Numbers along a motion that is known: true features score full marks, and guesses score what they are worth."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core.features import Features
from vidseg_core.workbook import steadiness
from vidseg_core.workbook.context import read_features


def test_similarity_is_taken_where_the_point_is(sliding):
    assert np.allclose(steadiness.along_motion(sliding.match, sliding.clip), 1, atol=1e-4)
    still = replace(sliding.clip, flow=np.zeros_like(sliding.clip.flow))
    assert np.abs(steadiness.along_motion(sliding.match, still)).max() < 0.5


def test_true_moves_are_those_of_two_hops(sliding):
    """The clip slides by one cell a frame, and the two last columns leave the picture within two frames."""
    moves = steadiness.true_moves(sliding.clip, 5, (6, 10)).reshape(3, 6, 10, 2)
    assert (moves[:, :, :8] == [0, 2]).all() and np.isnan(moves[:, :, 8:]).all()


def test_moves_count_within_half_a_cell_and_only_where_seen():
    truth = np.array([[[0, 2.0], [0, 2.0], [2.0, 0], [np.nan, np.nan]]])
    moves = np.array([[[0.5, 2.0], [0, 2.6], [1.0, 0], [9.0, 9.0]]])
    away, found, pace = steadiness.judge_moves(moves, truth)
    assert away == pytest.approx((0.5 + 0.6 + 1) / 3)
    assert found == pytest.approx(1 / 3) and pace == pytest.approx((4 + 5.2 + 2) / 12)


def test_true_features_are_judged_so(sliding):
    found = steadiness.judge(Features(sliding.match, sliding.match), sliding.clip)
    assert found.away < 0.2 and found.found > 0.95 and found.pace == pytest.approx(1, abs=0.1)
    assert found.kept > 0.9 and found.similarity == pytest.approx(1, abs=1e-4)


def test_to_say_that_nothing_moves_is_worth_little_where_all_moves(sliding):
    still = steadiness.judge_still(Features(sliding.match, sliding.match), sliding.clip)
    assert (still.away, still.found, still.pace) == (2, 0, 0) and still.similarity < 0.5
    truth = sliding.truth
    assert still.right == pytest.approx((truth[:1] == truth[1:]).mean())


def test_frame_0_does_not_count_as_right(sliding):
    """The classes change sides after frame 0: what stays as it was is right there alone."""
    still = steadiness.judge_still(Features(sliding.match, sliding.match), sliding.clip)
    opposite = replace(sliding.clip, labels=np.concatenate([sliding.clip.labels[:1], 1 - sliding.clip.labels[:1].repeat(4, 0)]))
    assert steadiness.judge_still(Features(sliding.match, sliding.match), opposite).right == 0 < still.right


def test_only_a_part_of_one_frame_is_lost():
    frames = np.full((3, 40, 60, 3), 7, np.uint8)
    spoiled = steadiness.hide(frames, 1, 0.5)
    lost = (spoiled != 7).any(-1)
    assert not lost[[0, 2]].any() and lost[1].mean() == pytest.approx(0.25, abs=0.02) and lost[1, 10:30, 15:45].mean() > 0.99
    assert (frames == 7).all() and not (steadiness.hide(frames, 1, 0.0) != 7).any()
    cells = steadiness.lost_cells(frames, spoiled, 1, (4, 6))
    assert cells[1:3, 1:4].all() and cells.sum() == 6, "centres at 5, 15, .. and 5, 15, ..: rows 10 to 30, columns 15 to 45"


def test_guesses_at_what_is_lost():
    labels = np.zeros((2, 4, 4), int)
    labels[0, :, :1], labels[1, :, :3] = 2, 2
    lost = np.ones((4, 4), bool)
    guesses = steadiness.guess_lost(labels, 1, lost)
    common, first = (steadiness.judge_lost(guesses[name], labels[1], lost) for name in ("most common class", "first mask"))
    assert (common.right, common.by_class) == (0.75, 0.5)
    assert (first.right, first.by_class) == (0.5, pytest.approx((1 / 3 + 1) / 2))
    lost[:, 1:] = False
    assert steadiness.judge_lost(guesses["first mask"], labels[1], lost).right == 1


def test_shuffled_frames_come_back_in_their_order(small_video, small_image, short_clip):
    one, other = (f(small_image, short_clip.frames).context for f in (read_features, steadiness.shuffled))
    assert (one - other).abs().max() < 1e-5, "an image model sees each frame alone"
    one, other = (f(small_video, short_clip.frames).context for f in (read_features, steadiness.shuffled))
    assert (one - other).abs().max() > 1e-4


def test_time_is_taken_away_piece_by_piece(small_video, short_clip):
    table = steadiness.judge_time(small_video, short_clip, read_features(small_video, short_clip.frames[:4]))
    assert list(table) == ["as it is", "frames shuffled", "no attention over time", "no temporal layer", "nothing moves"]
    similar = [row.similarity for row in table.values()]
    assert len(set(similar)) == 5, "each row comes of other features"
    assert table["nothing moves"].pace == 0
