"""The queries that the notebook shows are those of the stage, and its measures know right from wrong."""

import numpy as np
import pytest

from vidseg_core.features import extract_features
from vidseg_core.workbook.features import (
    alignment,
    all_queries,
    at_centres,
    attention_blocks,
    explore_similarity,
    queries,
    separation,
)


def test_blocks_come_in_the_order_of_a_pass(backbone):
    blocks = attention_blocks(backbone)
    assert blocks[0] == "down_blocks.1.attentions.0" and blocks[-1] == "up_blocks.1.attentions.1" and len(blocks) == 7
    assert blocks.index("mid_block.attentions.0") == 2


def test_queries_are_those_of_the_stage(backbone, clip, images, settings):
    own = extract_features(backbone, images, settings).match.numpy()
    frames = np.repeat(np.repeat(clip.frames[:1], 2, axis=1), 2, axis=2)
    tokens = queries(backbone, frames, settings.features.match_blocks[0], settings.features.timestep)
    assert tokens.shape == (1, 30, 40, 96) and own.shape[1:3] == (12, 16), "shown at the model's native size"
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=-1), 1, rtol=1e-5)


def test_one_pass_gives_what_a_pass_for_each_block_gives(backbone, clip):
    found = all_queries(backbone, clip.frames[::5], 100)
    assert list(found) == attention_blocks(backbone)
    for block in (*list(found)[::3], "up_blocks.1.attentions.1"):
        np.testing.assert_array_equal(found[block], queries(backbone, clip.frames[::5], block, 100))


def test_separation_and_alignment_know_right_from_wrong():
    """Features that are the class itself separate perfectly and lie in place; shifted by a cell, the table's top shifts."""
    masks = np.zeros((3, 48, 64), int)
    for k in range(3):
        masks[k, 12:32, 8 + 4 * k : 32 + 4 * k] = 1
    tokens = np.eye(3)[at_centres(masks, (12, 16))] + np.array([0, 0, 0.5])
    assert separation(tokens.astype(np.float32), masks, 2) == pytest.approx([1, 1])
    assert separation(np.roll(tokens, 3, axis=0).astype(np.float32), masks, 2) == pytest.approx([1, 1])
    noise = np.random.default_rng(0).normal(size=tokens.shape).astype(np.float32)
    assert separation(noise, masks, 2).mean() < 0.7
    assert alignment(tokens, masks).argmax() == 4
    assert alignment(np.roll(tokens, 1, axis=2), masks).argmax() == 5
    assert alignment(np.roll(tokens, -1, axis=1), masks).argmax() == 1


def test_similarity_of_a_point(backbone, clip):
    explorer = explore_similarity(backbone, clip.frames[::5], [0, 5])
    h, w = explorer.shown["similarity"].shape[1:]
    explorer.click("1", 64, 48)
    source = explorer.shown["source"]
    assert source == (1, h // 2, w // 2) and explorer.shown["best"][1] == source[1:]
    tokens = queries(backbone, clip.frames[::5], explorer.block.value, explorer.timestep.value)
    a, b = tokens[1, h // 2, w // 2], tokens[0, 3, 5]
    assert explorer.shown["similarity"][0, 3, 5] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
