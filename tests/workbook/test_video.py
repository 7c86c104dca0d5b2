"""Image and video model side by side: a point on its way, frames that are lost, another first frame."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core.workbook import video
from vidseg_core.workbook.context import read_features


def test_a_point_is_followed_on_its_way(sliding):
    curve = video.follow_point({"m": sliding.match}, sliding.clip, (20, 4))["m"]
    assert np.allclose(curve, 1, atol=1e-4)
    hidden = replace(sliding.clip, visible=np.zeros_like(sliding.clip.visible))
    assert np.isnan(video.follow_point({"m": sliding.match}, hidden, (20, 4))["m"][1:]).all()


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
    assert set(lost.shown["guess"]) == {"most common class", "first mask"} and not lost.lost.continuous_update
    assert lost.set(lost=1.0).shown["right"] != lost.set(lost=0.1).shown["right"]
    match = {"image": read_features(small_image, short_clip.frames).match}
    point = video.explore_point(match, short_clip)
    point.click("0", x=3, y=5)
    assert (point.x.value, point.y.value) == (3, 5) and point.shown["curves"]["image"][0] == pytest.approx(1, abs=1e-5)
    assert video.seconds_a_window(small_image, short_clip.frames) > 0
    assert video.show_seam({"image": np.ones(4)}, [2]).axes[0].lines
