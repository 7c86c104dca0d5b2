"""Label maps enlarged by nearest neighbour, in NumPy and torch alike."""

import numpy as np
import pytest
import torch

from vidseg_core.common import enlarge


@pytest.mark.parametrize("size", [(33, 40), (5, 7), (50, 70), (3, 4)])
def test_every_pixel_shows_the_cell_that_its_centre_lies_in(size):
    cells = np.random.default_rng(0).integers(0, 256, (2, 5, 7))
    expected = torch.nn.functional.interpolate(torch.from_numpy(cells)[:, None].double(), size=size, mode="nearest-exact")[:, 0]
    assert (enlarge(cells, size) == expected.numpy()).all() and torch.equal(
        enlarge(torch.from_numpy(cells), size), expected.long()
    )
    assert (enlarge(cells[0], size) == enlarge(cells, size)[0]).all()
