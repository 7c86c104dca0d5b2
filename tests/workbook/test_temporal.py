"""Attention over time: weights are the network's own, and what is silenced no longer passes from frame to frame."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidseg_core.models.video_backbone import TEMPORAL
from vidseg_core.workbook import temporal
from vidseg_core.workbook.context import read_features


def test_weights_are_those_that_mix_the_networks_values(small_video, short_clip):
    """One head at a time there are no weights to compare; their mean is that of a network whose values are the same for all
    heads: with values that name the frame, the output of attention is the mean weight."""
    block = temporal.own_block(small_video)
    weights = temporal.temporal_attention(small_video, short_clip.frames)[block]
    h, w, f, _ = weights.shape
    assert f == len(short_clip.frames) and np.allclose(weights.sum(-1), 1, atol=1e-4) and weights.min() >= 0
    with small_video.tap((block + ".to_q", block + ".to_k")) as taps:
        read_features(small_video, short_clip.frames)
    attention = small_video.unet.get_submodule(block)
    query, key = (taps[block + end].unflatten(-1, (attention.heads, -1)).transpose(1, 2) for end in (".to_q", ".to_k"))
    names = torch.eye(f).expand(h * w, attention.heads, f, f)
    mixed = F.scaled_dot_product_attention(query, key, names).mean(1)
    assert np.abs(weights - mixed.unflatten(0, (h, w)).numpy()).max() < 1e-5


def test_blocks_are_the_decoders(small_video):
    blocks = temporal.temporal_blocks(small_video)
    assert blocks and all(b.startswith("up_blocks") and TEMPORAL in b for b in blocks)
    assert [b.split(".")[1] for b in blocks] == sorted(b.split(".")[1] for b in blocks)
    assert temporal.own_block(small_video) in blocks and temporal.own_block(small_video).startswith("up_blocks.1.attentions.0.")


def test_every_block_has_its_map(small_video, short_clip):
    found = temporal.temporal_attention(small_video, short_clip.frames)
    assert list(found) == temporal.temporal_blocks(small_video)
    assert {f.shape[:2] for f in found.values()} == {(6, 8), (12, 16)}


@pytest.mark.parametrize(("what", "alone"), [("all", True), ("attention", False)])
def test_without_temporal_layers_a_frame_is_alone(small_video, short_clip, what, alone):
    frames, changed = short_clip.frames.copy(), short_clip.frames.copy()
    changed[2] = 255 - changed[2]
    with small_video.edit(temporal.without_time(small_video, what)):
        one, other = (read_features(small_video, f).context for f in (frames, changed))
    apart = (one - other).abs().amax((1, 2, 3))
    assert apart[2] > 0.1 and (apart[:2].max() < 1e-5) == alone


def test_the_spread_of_weights():
    even, one = np.full((1, 1, 4, 4), 0.25), np.eye(4)[None, None]
    assert temporal.spread(even) == pytest.approx(4) and temporal.spread(one) == pytest.approx(1)


def test_the_explorer_follows_clicks(small_video, short_clip):
    seen = temporal.explore_time(small_video, short_clip.frames)
    seen.click("1", x=10, y=5)
    assert (seen.frame.value, seen.row.value, seen.column.value) == (1, 0, 1)
    assert np.allclose(seen.shown["weights"], seen.shown["attention"][0, 1, 1])
    seen.click("weight 2", x=10, y=5)
    assert seen.frame.value == 2, "the maps below the frames take clicks as well"
