"""What several tests need: the embedded model, and a small window of the generated clip."""

import signal

import pytest

from vidseg_core import Settings, generated_clip, load_backbone

SMALL = (96, 128)
"""Working size of most tests, in pixels: 12 x 16 cells."""

# A shell starts what it puts in the background (`make test &`) deaf to Ctrl-C, and every process below inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
