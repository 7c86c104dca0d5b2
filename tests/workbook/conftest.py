"""What several tests of the workbook need: features, a clip that slides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidseg_core import generated_clip, load_backbone
from vidseg_core.features import extract_features
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.workbook import motion


@pytest.fixture(scope="session")
def features(backbone, images, settings):
    return extract_features(backbone, images, settings)


def small(name):
    """An embedded model that takes frames of 96x128 for their native size: a fifth of the work."""
    backbone = load_backbone(name, device="cpu")
    backbone.model = replace(backbone.model, native=(96, 128))
    return backbone


@pytest.fixture(scope="session")
def small_video():
    return small("tiny-video")


@pytest.fixture(scope="session")
def small_image():
    return small("tiny")


@pytest.fixture(scope="session")
def short_clip():
    return generated_clip(4, (96, 128))


@pytest.fixture
def sliding():
    """A clip that moves one cell (8 pixels) to the right in every frame; its features say exactly what each cell shows."""
    frames, h, w = 5, 6, 10
    world = np.random.default_rng(0).normal(size=(h, w + frames, 16)).astype(np.float32)
    match = np.stack([world[:, frames - n : frames - n + w] for n in range(frames)])
    classes = np.stack([np.arange(w + frames)[frames - n : frames - n + w] // 3 % 2 for n in range(frames)])[:, None].repeat(
        h, 1
    )
    labels = classes.repeat(8, 1).repeat(8, 2)
    flow = np.zeros((frames - 1, 8 * h, 8 * w, 2), np.float32)
    flow[..., 1] = 8
    visible = np.ones(flow.shape[:3], bool)
    visible[:, :, -8:] = False
    clip = GeneratedClip(np.zeros((*labels.shape, 3), np.uint8), labels, flow, visible, {0: "a", 1: "b"})
    return motion.Window(clip, torch.from_numpy(match), classes)
