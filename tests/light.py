"""A pipeline whose stages 1 and 4 cost nothing, so that work over many processes can be tested: the rest of it is real.

Frames are told apart by their first pixel (`numbered_frames`). A process says in files, in the folder of the environment's
MOMENTS, where it is: "features-6.1234" is the process 1234 with the window of frame 6. It stays there while "hold-features-6"
exists.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from vidseg_core import ContextSettings, RefineSettings, Settings, VidSeg
from vidseg_core.common import enlarge
from vidseg_core.features import Features
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.elsewhere import Recipe
from vidseg_core.models.registry import find_model

SIZE = (32, 48)
LIGHT = Settings(context=ContextSettings(num_clusters=4, restarts=1, max_context=800), refine=RefineSettings(), window=3)


class Network(torch.nn.Linear):
    """One weight."""

    dtype = torch.float32

    def __init__(self):
        super().__init__(1, 1, bias=False)
        torch.nn.init.constant_(self.weight, 0.5)


class LightBackbone(Backbone):
    """What `load_backbone` gives, without weights."""

    def __init__(self, *_):
        self.model, self.device, self.unet, self.codec = find_model("tiny"), torch.device("cpu"), Network(), SimpleNamespace()
        self.recipe = Recipe(LightBackbone, ())

    def check(self, settings):
        """Nothing is refused."""


class LightVidSeg(VidSeg):
    """Features are mean colours of 4x4 pixels, and pixels have the labels of their cells."""

    def __init__(self, backbone, settings=None, extract=None, executor=None):
        super().__init__(backbone, settings, extract or light_features, executor)

    def enlarge(self, frames, votes):
        """As `VidSeg.enlarge`."""
        moment(f"upsample-{first_number(frames)}")
        return enlarge(votes.labels, frames.shape[1:3]).numpy()


def light_features(frames):
    """Stage 1."""
    moment(f"features-{first_number(frames)}")
    h, w = (side // 4 for side in frames.shape[1:3])
    colours = torch.from_numpy(frames / 255).float().unflatten(1, (h, 4)).unflatten(3, (w, 4)).mean((2, 4))
    colours = torch.cat([colours, torch.ones_like(colours[..., :1])], -1)
    return Features(colours, colours.clone())


def numbered_frames(count, begin=0):
    """Frames of two moving halves, made one by one, whose first pixel holds their number."""
    for n in range(begin, begin + count):
        frame = np.zeros((*SIZE, 3), np.uint8)
        frame[:, : 8 + n % 32] = (200, 80, 20)
        frame[16:, :, 2] += np.arange(0, 144, 3, dtype=np.uint8)
        frame[0, 0] = (n % 256, n // 256, 0)
        yield frame


def first_number(frames):
    """The number of the first of some frames."""
    low, high, _ = frames[0, 0, 0].tolist()
    return low + 256 * high


def moment(name):
    """Say that this process is here, and stay while it is to be held."""
    if folder := os.environ.get("MOMENTS"):
        Path(folder, f"{name}.{os.getpid()}").touch()
        until = time.monotonic() + 60
        while Path(folder, f"hold-{name}").exists() and time.monotonic() < until:
            time.sleep(0.005)
