"""A small CNN in the place of EfficientNet, and few samples."""

from functools import partial

import pytest
import train_tiny
from tiny_training import checkpoint, targets
from trainings import SmallNet


@pytest.fixture(autouse=True)
def small_cnn(monkeypatch):
    """The CNN comes from packages that are no dependency; what it knows is nothing that these tests are about."""
    monkeypatch.setattr(targets, "load_cnn", lambda: SmallNet().eval().requires_grad_(False))
    monkeypatch.setattr(train_tiny, "draw_samples", partial(checkpoint.draw_samples, count=4, steps=2))
