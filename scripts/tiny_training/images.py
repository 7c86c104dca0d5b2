"""The images of a training, and the crops that are cut out of them."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from tiny_training.settings import TrainSettings
from vidseg_core.common import InputError
from vidseg_core.io.video import IMAGE_SUFFIXES, read_image

SMALLEST = 0.5
"""Of a crop's size: an image that would have to be enlarged more shows nothing but its own blur."""


def read_images(folders: list[Path], settings: TrainSettings) -> list[Image.Image]:
    """All images below the folders, sorted by path, upright, their short side at most `settings.side`.

    Raises InputError if there are none, for one that cannot be read, and for one that is too small for a crop.
    """
    paths = [p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    paths = sorted(p for p in paths if not p.name.startswith("."))
    if not paths:
        raise InputError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, folders))}: give --images FOLDER")
    return [_read(path, settings) for path in tqdm(paths, "images", delay=2)]


def _read(path: Path, settings: TrainSettings) -> Image.Image:
    image = Image.fromarray(read_image(path))
    scale = settings.side / min(image.size)
    if scale < 1:
        image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)
    if _largest(image.size, settings) < SMALLEST:
        raise InputError(
            f"{path} (at most --side {settings.side}) is {image.width}x{image.height} pixels, too small for crops of "
            f"{settings.width}x{settings.height}: leave it out, or give a smaller --width and --height"
        )
    return image


def digest(images: list[Image.Image]) -> str:
    """Sixteen hex digits that change with any pixel."""
    total = hashlib.sha256()
    for image in images:
        total.update(repr(image.size).encode() + image.tobytes())
    return total.hexdigest()[:16]


def to_tensor(image: Image.Image) -> Tensor:
    """RGB in [-1, 1], [3, H, W]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class Crop:
    """Where a training example comes from: an image, a box (left, top, right, bottom; pixels), mirrored or not."""

    image: int
    box: tuple[float, float, float, float]
    mirrored: bool


def draw_crop(sizes: list[tuple[int, int]], settings: TrainSettings, rng: np.random.Generator) -> Crop:
    """A random image, then a random scale that fits it, then a random place."""
    number = int(rng.integers(len(sizes)))
    width, height = sizes[number]
    largest = min(settings.scale_high, _largest(sizes[number], settings))
    scale = math.exp(rng.uniform(math.log(min(settings.scale_low, largest)), math.log(largest)))
    w, h = min(width, scale * settings.width), min(height, scale * settings.height)  # exp(log(x)) may be above x
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return Crop(number, (left, top, left + w, top + h), bool(rng.random() < 0.5))


def _largest(size: tuple[int, int], settings: TrainSettings) -> float:
    return min(size[0] / settings.width, size[1] / settings.height)


def cut(image: Image.Image, crop: Crop, settings: TrainSettings) -> Tensor:
    """The crop as RGB in [-1, 1], [3, height, width]."""
    part = to_tensor(image.resize((settings.width, settings.height), Image.Resampling.BICUBIC, box=crop.box))
    return part.flip(-1) if crop.mirrored else part
