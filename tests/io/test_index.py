"""The sheet of many clips' first frames."""

import tracemalloc

import numpy as np

from vidseg_core.io.index import _captioned


def test_captions_leave_the_pictures_as_they_are_and_take_little_memory():
    sheet = np.full((1000, 1004, 3), 255, np.uint8)  # 1004 / 100 * 100 is less than 1004
    sheet[:900] = np.random.default_rng(0).integers(0, 256, (900, 1004, 3))
    _captioned(sheet, [(2, 905, "once")], 20)  # what is loaded by the first text is no matter of size
    tracemalloc.start()
    done = _captioned(sheet, [(2, 905, "name"), (600, 905, "long" * 9)], 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(done[:900], sheet[:900])
    assert done[900:, :100].min() < 50 and done[900:, 600:].min() < 50  # letters
    assert peak < 10 * sheet.nbytes
