"""What several tests need: the embedded model, and a small window of the generated clip."""

import os
import signal

# Two workers share two cores, and a thread that waits should not spin. Subprocesses inherit it; torch reads it as it is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

from vidseg_core import Settings, generated_clip, load_backbone

SMALL = (96, 128)
"""Working size of most tests, in pixels: 12 x 16 cells."""

SLOW = ("test_one_clip", "test_later_masks", "test_run", "test_batch", "test_cli", "test_births", "test_pipeline",
        "test_upsample", "test_memory")  # fmt: skip
"""Files that start first, the slowest before the others: one that began last would leave a process without work."""

torch.set_num_threads(1)  # also where the environment says otherwise: sums are rounded in the order of the threads

# A shell starts what it puts in the background (`make test &`) deaf to Ctrl-C, and every process below inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Each file stays in one piece, and in its own order."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def backbone():
    return load_backbone("tiny", device="cpu")


@pytest.fixture(scope="session")
def clip():
    return generated_clip(num_frames=6, size=SMALL)


@pytest.fixture(scope="session")
def settings(backbone):
    return Settings(working_size=SMALL).resolve(backbone.model)


@pytest.fixture(scope="session")
def images(backbone, clip):
    return backbone.images(clip.frames, SMALL)


@pytest.fixture(scope="session")
def match():
    """Features of seven frames of 5 x 6 cells: a smooth random field that drifts, so that hops are near but not trivial, with
    noise enough to jump sometimes."""
    rng = np.random.default_rng(0)
    field = np.cumsum(np.cumsum(rng.normal(size=(12, 13, 12)), 0), 1)
    maps = [field[t // 2 : t // 2 + 5, t // 3 : t // 3 + 6] + rng.normal(0, 1.0, (5, 6, 12)) for t in range(7)]
    return torch.from_numpy(np.stack(maps)).float()


@pytest.fixture(scope="session")
def coarse():
    return torch.from_numpy(np.random.default_rng(1).integers(0, 4, (7, 5, 6)))
