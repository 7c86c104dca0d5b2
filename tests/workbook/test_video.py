"""Image and video model side by side: numbers along a motion that is known, frames that are lost, another first frame."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core.features import Features
from vidseg_core.workbook import video
from vidseg_core.workbook.context import read_features


def test_similarity_is_taken_where_the_point_is(sliding):
    assert np.allclose(video.along_motion(sliding.match, sliding.clip), 1, atol=1e-4)
    still = replace(sliding.clip, flow=np.zeros_like(sliding.clip.flow))
    assert np.abs(video.along_motion(sliding.match, still)).max() < 0.5


def test_true_features_are_judged_so(sliding):
    found = video.judge(Features(sliding.match, sliding.match), sliding.clip)
    assert found.matching == 1 and found.kept > 0.9 and found.similarity == pytest.approx(1, abs=1e-4)


def test_a_point_is_followed_on_its_way(sliding):
    curve = video.follow_point({"m": sliding.match}, sliding.clip, (20, 4))["m"]
    assert np.allclose(curve, 1, atol=1e-4)
    hidden = replace(sliding.clip, visible=np.zeros_like(sliding.clip.visible))
    assert np.isnan(video.follow_point({"m": sliding.match}, hidden, (20, 4))["m"][1:]).all()


def test_only_a_part_of_one_frame_is_lost():
    frames = np.full((3, 40, 60, 3), 7, np.uint8)
    spoiled = video.hide(frames, 1, 0.5)
    lost = (spoiled != 7).any(-1)
    assert not lost[[0, 2]].any() and lost[1].mean() == pytest.approx(0.25, abs=0.02) and lost[1, 10:30, 15:45].mean() > 0.99
    assert (frames == 7).all() and not (video.hide(frames, 1, 0.0) != 7).any()
    cells = video.lost_cells(frames, spoiled, 1, (4, 6))
    assert cells[1:3, 1:4].all() and cells.sum() == 6, "centres at 5, 15, .. and 5, 15, ..: rows 10 to 30, columns 15 to 45"


def test_shuffled_frames_come_back_in_their_order(small_video, small_image, short_clip):
    one, other = (f(small_image, short_clip.frames).context for f in (read_features, video.shuffled))
    assert (one - other).abs().max() < 1e-5, "an image model sees each frame alone"
    one, other = (f(small_video, short_clip.frames).context for f in (read_features, video.shuffled))
    assert (one - other).abs().max() > 1e-4


def test_another_first_frame_is_told_and_forgotten(small_video, short_clip):
    own = read_features(small_video, short_clip.frames).context
    same = video.conditioned(small_video, short_clip.frames, short_clip.frames[0]).context
    assert (own - same).abs().max() < 1e-6
    for first in (255 - short_clip.frames[0], None):
        assert (video.conditioned(small_video, short_clip.frames, first).context - own).abs().max() > 1e-4
    assert "condition" not in vars(small_video)


def test_the_explorers_answer(small_video, small_image, short_clip):
    lost = video.explore_hidden({"image": small_image, "video": small_video}, short_clip, len(short_clip.frames))
    assert set(lost.shown["right"]) == {"image", "video"} and all(0 <= v <= 1 for v in lost.shown["right"].values())
    assert lost.set(lost=1.0).shown["right"] != lost.set(lost=0.1).shown["right"]
    match = {"image": read_features(small_image, short_clip.frames).match}
    point = video.explore_point(match, short_clip)
    point.click("0", x=3, y=5)
    assert (point.x.value, point.y.value) == (3, 5) and point.shown["curves"]["image"][0] == pytest.approx(1, abs=1e-5)
    assert video.seconds_a_window(small_image, short_clip.frames) > 0
    assert video.show_seam({"image": np.ones(4)}, [2]).axes[0].lines
