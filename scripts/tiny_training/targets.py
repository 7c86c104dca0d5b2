"""What the queries are aligned with: features of a frozen EfficientNet-Lite0."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from tiny_training.images import Crop, digest, to_tensor
from tiny_training.settings import TrainSettings
from vidseg_core.common import InputError
from vidseg_core.evaluation.extractors import cnn_blocks, load_cnn
from vidseg_core.io.files import replacing

UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError)


class Targets:
    """Standardised CNN features of every image, computed once on the whole image, sampled at the cells of a crop.

    Whole images, so that a target at a crop's border knows what lies beyond it, as a target in the middle does.
    """

    def __init__(self, maps: list[list[Tensor]], strides: list[float]):
        """`maps[block][image]`: float16 [1, d, h, w], as `build` makes them; `strides` in pixels of the training image."""
        self.maps, self.strides = maps, strides
        self.channels = [m[0].shape[1] for m in maps]

    @classmethod
    @torch.inference_mode()
    def build(cls, images: list[Image.Image], settings: TrainSettings, stop: Callable[[], bool] = lambda: False) -> "Targets":
        """Run the CNN over all images, some ten a second. Raises InputError if `stop` says so in between."""
        net, maps = load_cnn(), [[] for _ in settings.blocks]
        for image in tqdm(images, "features of the CNN"):
            if stop():
                raise InputError("stopped before training began: nothing to keep; the same command starts again")
            # in multiples of 32, the stride of the last block, so that a cell is as wide in all images
            size = [math.ceil(side * settings.enlarge / 32) * 32 for side in reversed(image.size)]
            frame = F.interpolate(to_tensor(image)[None], scale_factor=settings.enlarge, mode="bicubic")
            frame = F.pad(frame, [0, size[1] - frame.shape[3], 0, size[0] - frame.shape[2]], mode="replicate")
            for kept, features in zip(maps, cnn_blocks(net, frame, settings.blocks), strict=True):
                kept.append(features.half())
        strides = [32 / kept[0].shape[3] * math.ceil(images[0].width * settings.enlarge / 32) for kept in maps]
        return cls([standardise(kept) for kept in maps], [s / settings.enlarge for s in strides])

    @classmethod
    def cached(
        cls, path: Path, images: list[Image.Image], settings: TrainSettings, stop: Callable[[], bool] = lambda: False
    ) -> "Targets":
        """From `path` if it was made from these images with the same CNN settings, else built and written there."""
        key = [digest(images), settings.enlarge, *settings.blocks]
        if path.exists():
            try:
                stored = torch.load(path, weights_only=True, mmap=True)
                if stored["key"] == key:
                    return cls(stored["maps"], stored["strides"])
                print(f"{path} is of other images or another --enlarge or --blocks: made anew", flush=True)
            except UNREADABLE as error:
                print(f"{path} cannot be read ({type(error).__name__}): made anew", flush=True)
        made = cls.build(images, settings, stop)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            torch.save({"key": key, "maps": made.maps, "strides": made.strides}, partial)
        return made

    def sample(self, crop: Crop, grid: tuple[int, int]) -> list[Tensor]:
        """Features at the centres of the crop's cells: one [d, h, w] per block."""
        x, y = (centres(crop.box[n], crop.box[n + 2], grid[1 - n]) for n in (0, 1))
        x = x.flip(0) if crop.mirrored else x
        return [sample_map(maps[crop.image].float(), x, y, s)[0] for maps, s in zip(self.maps, self.strides, strict=True)]


def standardise(maps: list[Tensor]) -> list[Tensor]:
    """Zero mean and unit deviation per channel over all images (every seventh token); float16."""
    flat = torch.cat([m.float().flatten(2)[0, :, ::7] for m in maps], 1)
    mean = flat.mean(1).view(1, -1, 1, 1)
    std = flat.std(1, unbiased=flat.shape[1] > 1).view(1, -1, 1, 1) + 1e-3
    return [((m.float() - mean) / std).half() for m in maps]


def centres(start: float, stop: float, count: int) -> Tensor:
    """Middle of each of `count` equal parts."""
    return start + (torch.arange(count) + 0.5) * (stop - start) / count


def sample_map(features: Tensor, x: Tensor, y: Tensor, stride: float) -> Tensor:
    """Values at the columns x [w'] and rows y [h'] of pixels: [1, d, h', w']; see `sample_points`."""
    return sample_points(features, torch.stack(torch.broadcast_tensors(x[None], y[:, None]), -1), stride)


def sample_points(features: Tensor, points: Tensor, stride: float) -> Tensor:
    """Bilinear values of [1, d, h, w] at pixel positions (x, y) [h', w', 2]: [1, d, h', w'].

    The CNN pads strided convolutions on the right and below only ("same" of TensorFlow), so that cell i is centred on pixel
    stride * (i + 1) and not stride * (i + 1/2): half a cell of displacement that would become a halo on two sides.
    """
    size = points.new_tensor([features.shape[3], features.shape[2]])
    where = (points / stride - 1 + 0.5) * 2 / size - 1
    return F.grid_sample(features, where[None], padding_mode="border", align_corners=False)
