"""Clips to train the video model on: real ones, and pseudo-videos, in which a camera moves over a still image and a piece
of another image moves across it. What the CNN sees in a still moves along exactly, so that a point has the same target in
all frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tiny_training.images import to_tensor
from tiny_training.settings import TrainSettings
from tiny_training.targets import Targets, centres, sample_points
from vidseg_core.common import InputError
from vidseg_core.io.video import open_clip

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")
EVERY = 2  # frames of a real clip that are kept: 12 to 15 a second
STEPS = (1, 2, 3)  # between the frames of a training clip, in frames that were kept
Matrix = np.ndarray
"""[2, 3]: from (x, y, 1) of the training picture to (x, y) of its image, in pixels from the upper left corner."""


@dataclass(frozen=True)
class Cutout:
    """A star-shaped piece of an image: its centre and, by angle, its radius in pixels of the image."""

    centre: tuple[float, float]
    radius: float
    waves: tuple[tuple[float, float], ...]
    """Amplitude and phase of the radius' waves of frequency 1, 2, .. around the centre, as a share of the radius."""

    def holds(self, points: Tensor) -> Tensor:
        """Which points [..., 2] lie inside."""
        away = points - points.new_tensor(self.centre)
        angle = torch.atan2(away[..., 1], away[..., 0])
        wave = sum(a * torch.cos((n + 1) * angle + phase) for n, (a, phase) in enumerate(self.waves))
        return away.norm(dim=-1) < self.radius * (1 + wave)


@dataclass(frozen=True)
class Shot:
    """A training clip: for each frame an image and the way it is seen; perhaps a cut-out of another image before it."""

    images: tuple[int, ...]
    ways: tuple[Matrix, ...]
    cutout: Cutout | None = None
    cutout_image: int = 0
    cutout_ways: tuple[Matrix, ...] = ()


@dataclass(frozen=True)
class Material:
    """Stills first, then the frames of real clips; `clips` says which images each clip is."""

    images: list[Image.Image]
    stills: int
    clips: tuple[range, ...]


def read_material(stills: list[Image.Image], folders: Sequence[Path], settings: TrainSettings) -> Material:
    """Stills and every second frame of all clips below the folders, short side at most `settings.side`.

    Raises InputError for a clip that is too short, and if there is nothing at all.
    """
    images, clips = list(stills), []
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
        clip = [reduced(Image.fromarray(frame), settings.side) for frame in open_clip(path, stride=EVERY)]
        if len(clip) < settings.frames:
            raise InputError(f"{path} has {len(clip) * EVERY} frames: a training clip takes {settings.frames * EVERY}")
        clips.append(range(len(images), len(images) + len(clip)))
        images += clip
    if not images:
        raise InputError("nothing to train on: give --images FOLDER, --clips FOLDER or both")
    return Material(images, len(stills), tuple(clips))


def reduced(image: Image.Image, side: int) -> Image.Image:
    """The image with its short side at most `side` pixels."""
    scale = min(1.0, side / min(image.size))
    return image.resize([round(s * scale) for s in image.size], Image.Resampling.LANCZOS) if scale < 1 else image


def draw_shot(material: Material, settings: TrainSettings, rng: np.random.Generator) -> Shot:
    """A real clip with probability `settings.real_share`, else a pseudo-video."""
    if material.clips and (rng.random() < settings.real_share or not material.stills):
        return real_shot(material, settings, rng)
    number = int(rng.integers(material.stills))
    ways = camera(material.images[number].size, settings, rng)
    if rng.random() >= settings.cutout_share:
        return Shot((number,) * settings.frames, ways)
    other = int(rng.integers(material.stills))
    return Shot((number,) * settings.frames, ways, *draw_cutout(other, material.images[other].size, settings, rng))


def real_shot(material: Material, settings: TrainSettings, rng: np.random.Generator) -> Shot:
    """Consecutive frames of a real clip, forwards or backwards, seen through a box that stands still."""
    clip = material.clips[int(rng.integers(len(material.clips)))]
    step = min(int(rng.choice(STEPS)), (len(clip) - 1) // max(1, settings.frames - 1))
    first = int(rng.integers(len(clip) - step * (settings.frames - 1)))
    numbers = [clip[first + step * n] for n in range(settings.frames)]
    size = material.images[clip[0]].size
    scale = draw_scale(size, settings, rng)
    way = look(place(size, scale, settings, rng), scale, 0.0, bool(rng.random() < 0.5), settings)
    return Shot(tuple(numbers[:: 1 if rng.random() < 0.5 else -1]), (way,) * settings.frames)


def camera(size: tuple[int, int], settings: TrainSettings, rng: np.random.Generator) -> tuple[Matrix, ...]:
    """A smooth pan, zoom and rotation over an image, with a hand's tremble; one in five cameras stands still."""
    moving, mirrored = float(rng.random() < 0.8), bool(rng.random() < 0.5)
    scale = draw_scale(size, settings, rng)
    zoom = scale * math.exp(moving * rng.normal(0, 0.1))
    zoom = min(max(zoom, 0.5 * settings.scale_low), largest(size, settings))
    start, goal = place(size, scale, settings, rng), place(size, zoom, settings, rng)
    reach = moving * settings.speed * min(1.0, settings.frames / 14) * rng.uniform(0, 0.4) * settings.width * scale
    away = np.subtract(goal, start)
    goal = start + away * min(1.0, reach / max(1e-6, float(np.hypot(*away))))
    turn, tremble = moving * rng.normal(0, math.radians(4)), moving * rng.uniform(0, 0.6)
    ways = []
    for t in np.linspace(0, 1, settings.frames):
        centre = start + (goal - start) * t + tremble * rng.normal(0, 1, 2)
        ways.append(look(centre, scale * (zoom / scale) ** t, turn * t, mirrored, settings))
    return tuple(ways)


def draw_cutout(
    number: int, size: tuple[int, int], settings: TrainSettings, rng: np.random.Generator
) -> tuple[Cutout, int, tuple[Matrix, ...]]:
    """A piece of image `number` and its way across the picture."""
    scale = draw_scale(size, settings, rng)
    radius = scale * settings.height * rng.uniform(0.12, 0.35)
    middle = tuple(float(rng.uniform(min(radius, s / 2), max(s - radius, s / 2))) for s in size)
    waves = tuple((float(rng.uniform(0, 0.25) / n), float(rng.uniform(0, 2 * math.pi))) for n in (1, 2, 3, 4))
    picture = np.array([settings.width, settings.height])
    start = rng.uniform(0.1, 0.9, 2) * picture
    goal = start + rng.uniform(-0.5, 0.5, 2) * picture * settings.speed * min(1.0, settings.frames / 14)
    turn, zoom = rng.normal(0, math.radians(12)), math.exp(rng.normal(0, 0.15))
    ways = []
    for t in np.linspace(0, 1, settings.frames):
        at = start + (goal - start) * t
        shown = look(np.array(middle), scale * zoom**t, turn * t, False, settings)
        shown[:, 2] -= shown[:, :2] @ (at - picture / 2)  # what was in the middle of the picture is now at `at`
        ways.append(shown)
    return Cutout(middle, radius, waves), number, tuple(ways)


def largest(size: tuple[int, int], settings: TrainSettings) -> float:
    """The largest scale at which the picture fits into the image."""
    return min(size[0] / settings.width, size[1] / settings.height)


def draw_scale(size: tuple[int, int], settings: TrainSettings, rng: np.random.Generator) -> float:
    """Image pixels per pixel of the picture, evenly on a scale of logarithms."""
    high = min(settings.scale_high, largest(size, settings))
    return math.exp(rng.uniform(math.log(min(settings.scale_low, high)), math.log(high)))


def place(size: tuple[int, int], scale: float, settings: TrainSettings, rng: np.random.Generator) -> np.ndarray:
    """Middle of a box of that scale within the image."""
    half = np.array([settings.width, settings.height]) * scale / 2
    return rng.uniform(half, np.maximum(half, size - half))


def look(centre: np.ndarray, scale: float, turn: float, mirrored: bool, settings: TrainSettings) -> Matrix:
    """The way of a camera above `centre`."""
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    return np.column_stack([linear, centre - linear @ (settings.width / 2, settings.height / 2)])


def grid_points(height: int, width: int, settings: TrainSettings) -> Tensor:
    """Middles of height x width equal cells of the picture, [height, width, 2] as (x, y)."""
    x, y = centres(0, settings.width, width), centres(0, settings.height, height)
    return torch.stack(torch.broadcast_tensors(x[None], y[:, None]), -1)


def through(way: Matrix, points: Tensor) -> Tensor:
    """Points of the picture [..., 2] as points of the image."""
    matrix = torch.from_numpy(way).float()
    return points @ matrix[:, :2].T + matrix[:, 2]


def frames_of(shot: Shot, material: Material, settings: TrainSettings) -> Tensor:
    """The clip, RGB in [-1, 1], [f, 3, height, width]: sampled twice as finely and averaged, so that fine texture does not
    flicker."""
    points, frames = grid_points(2 * settings.height, 2 * settings.width, settings), []
    stills = {n: to_tensor(material.images[n])[None] for n in {*shot.images, shot.cutout_image}}
    for n, (number, way) in enumerate(zip(shot.images, shot.ways, strict=True)):
        frame = pixels_at(stills[number], through(way, points))
        if shot.cutout:
            there = through(shot.cutout_ways[n], points)
            frame = torch.where(shot.cutout.holds(there), pixels_at(stills[shot.cutout_image], there), frame)
        frames.append(frame)
    return F.avg_pool2d(torch.cat(frames), 2)


def pixels_at(image: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of [1, 3, H, W] at points [h, w, 2], mirrored at the border."""
    size = points.new_tensor([image.shape[3], image.shape[2]])
    return F.grid_sample(image, (points / size * 2 - 1)[None], padding_mode="reflection", align_corners=False)


def targets_of(shot: Shot, targets: Targets, settings: TrainSettings) -> list[Tensor]:
    """What the CNN sees at the cells of the clip's frames: one [f, d, h, w] per block."""
    points, blocks = grid_points(*settings.grid, settings), []
    for maps, stride in zip(targets.maps, targets.strides, strict=True):
        kept, frames = {n: maps[n].float() for n in {*shot.images, shot.cutout_image}}, []
        for n, (number, way) in enumerate(zip(shot.images, shot.ways, strict=True)):
            found = sample_points(kept[number], through(way, points), stride)
            if shot.cutout:
                there = through(shot.cutout_ways[n], points)
                front = sample_points(kept[shot.cutout_image], there, stride)
                found = torch.where(shot.cutout.holds(there), front, found)
            frames.append(found)
        blocks.append(torch.cat(frames))
    return blocks
