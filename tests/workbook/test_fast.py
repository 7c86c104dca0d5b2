"""The parts of a pass add up to it, in the order of running; masks that share passes."""

import numpy as np
import pytest
import torch

from vidseg_core import Settings, VidSeg
from vidseg_core.context import Votes
from vidseg_core.workbook import fast


def test_the_parts_of_a_pass_add_up_and_the_late_ones_come_last(backbone, images):
    latent, own = backbone.encode(images[:1]), Settings().resolve(backbone.model).upsample
    parts = fast.operations_of_parts(backbone, latent, own.timestep, own.block)
    flags = [part.before for part in parts]
    assert flags == sorted(flags, reverse=True) and {True, False} == set(flags)
    assert parts[-1].path == "conv_out" and any(p.path.endswith("attn2") and p.before for p in parts)
    whole = fast.operations(lambda: backbone.denoise(latent, own.timestep))
    assert abs(sum(p.operations for p in parts) - whole) < 1e-9 < whole
    texts = [text.get_text() for text in fast.show_replay(parts, 20).axes[0].texts]
    assert "up.1, λ at the line" in texts


def test_the_products_of_attention_are_counted():
    tokens = torch.zeros(1, 1, 50, 8)
    attention = lambda: torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)  # noqa: E731
    assert fast.operations(attention) == pytest.approx(2 * 2 * 50 * 50 * 8 / 1e9)


def test_explore_colouring(small_image, short_clip):
    cells = np.arange(12 * 16).reshape(12, 16) // 4 % 4  # four stripes of 4 columns
    votes = Votes.certain(torch.from_numpy(cells[None]))
    runs = fast.colourings(VidSeg(small_image), short_clip.frames[0], votes, (0, 1, None))
    explorer = fast.explore_colouring(short_clip.frames[0], cells, runs)
    assert explorer.shown["passes"] == 2, "stripes take turns"
    assert explorer.set(separation="0 cells").shown["passes"] == 1
    alone = explorer.set(separation="each alone").shown
    assert alone["passes"] == 4 and alone["agreement"] == 1
