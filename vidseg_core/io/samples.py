"""Clips to try things on: two real ones with a few hand-drawn masks, and a generated one with exact truth.

Where the real clips and the photographs come from, and their licences: `data/README.md`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from PIL import Image
from scipy import ndimage

from vidseg_core.io.masks import read_mask, read_names
from vidseg_core.io.video import read_frames
from vidseg_core.models.registry import data_folder

CLIPS = ("cup", "box")
SMALLEST = 32  # pixels; below it a cut-out is a few pixels wide and its edge is most of it
ENTRY = 10  # last frame before the late cut-out touches the picture
MARGIN = 10  # pixels of photograph kept around a cut-out, so that its edge can be resampled
DETAIL = 1.25  # texture pixels per frame pixel: linear interpolation then neither blurs nor aliases visibly


@dataclass(frozen=True)
class Sample:
    """A real clip, RGB; `masks` has class numbers (keys of `names`; 255 = void) of the frames that were drawn, 0 among them."""

    path: Path
    frames: UInt8[np.ndarray, "f H W 3"]
    masks: dict[int, Int64[np.ndarray, "H W"]]
    names: dict[int, str]


@dataclass(frozen=True)
class GeneratedClip:
    """A clip with exact truth.

    `flow` is (dy, dx) in pixels from a pixel's centre in frame i to its place in frame i+1, also where that place is hidden
    or out of the picture; `visible` is True where it is neither. A pixel has the class of what covers its centre.
    """

    frames: UInt8[np.ndarray, "f H W 3"]
    labels: Int64[np.ndarray, "f H W"]
    flow: Float32[np.ndarray, "f-1 H W 2"]
    visible: Bool[np.ndarray, "f-1 H W"]
    names: dict[int, str]


@dataclass(frozen=True)
class Layer:
    """A picture in motion: in frame t, point (y, x) shows the texture at `matrix[t] @ (y, x) + offset[t]`."""

    texture: Float[np.ndarray, "h w 3"]
    distance: Float[np.ndarray, "h w"] | None  # to the outline in texture pixels, positive inside; None: it has no outline
    matrix: Float[np.ndarray, "f 2 2"]
    offset: Float[np.ndarray, "f 2"]

    def locate(self, t: int, points: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, "2 n"]:
        """Frame points to texture points."""
        return self.matrix[t] @ points + self.offset[t][:, None]

    def place(self, t: int, points: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, "2 n"]:
        """Texture points to frame points."""
        return np.linalg.solve(self.matrix[t], points - self.offset[t][:, None])

    def cover(self, t: int, points: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, " n"]:
        """Opacity in [0, 1] at frame points: a ramp one frame pixel wide, 0.5 on the outline."""
        if self.distance is None:
            return np.ones(points.shape[1])
        at = self.locate(t, points)
        near = ((at >= 0) & (at <= np.array(self.distance.shape)[:, None] - 1)).all(0)
        depth = ndimage.map_coordinates(self.distance, at[:, near], order=1)
        alpha = np.zeros(points.shape[1])
        alpha[near] = np.clip(0.5 + depth / np.sqrt(np.linalg.det(self.matrix[t])), 0, 1)
        return alpha

    def colour(self, t: int, points: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, "n 3"]:
        """RGB in [0, 255] at frame points."""
        at = self.locate(t, points)
        return np.stack([ndimage.map_coordinates(self.texture[..., c], at, order=1, mode="nearest") for c in range(3)], -1)


def sample_clip(name: str) -> Sample:
    """Frames, masks and class names of the clip "cup" or "box" (60 frames of 240x320). Raises ValueError for any other name."""
    if name not in CLIPS:
        raise ValueError(f"no sample clip is called {name!r}; there are: {', '.join(CLIPS)}")
    folder = data_folder() / "clips"
    path = folder / f"{name}.mp4"
    masks = {int(png.stem): read_mask(png) for png in sorted((folder / name / "masks").glob("*.png"))}
    return Sample(path, read_frames(path), masks, read_names(folder / name / "names.json"))


def generated_clip(
    num_frames: int = 28, size: tuple[int, int] = (240, 320), seed: int = 0, late: bool = False
) -> GeneratedClip:
    """A pan and zoom over scikit-learn's china.jpg with moving cut-outs of flower.jpg, and the exact truth.

    Label 0 is the photograph, 1 a round leaf, 2 the blossom, which passes in front of the leaf around frame 14; with `late`, 3
    is a blue tile that comes in from a side after frame 10. `size` is (height, width). At 240x320 nothing moves faster than 4.5
    pixels a frame; speeds and cut-outs scale with the size. Everything but the photographs is drawn from `seed`.
    Raises ValueError for fewer frames than one (12 with `late`) or a side below 32 pixels.
    """
    least = ENTRY + 2 if late else 1
    if num_frames < least:
        raise ValueError(
            f"num_frames is {num_frames}; at least {least} {'is' if least == 1 else 'are'} needed with late={late}"
        )
    if min(size) < SMALLEST:
        raise ValueError(f"size is {size[0]}x{size[1]}; each side needs at least {SMALLEST} pixels")
    layers = _layers(num_frames, size, np.random.default_rng(seed), late)
    points = np.indices(size).reshape(2, -1).astype(float)
    drawn = [_draw(layers, t, points) for t in range(num_frames)]
    frames, labels = np.stack([frame for frame, _ in drawn]), np.stack([label for _, label in drawn])
    flow = np.zeros((num_frames - 1, points.shape[1], 2), np.float32)
    visible = np.zeros(flow.shape[:2], bool)
    for t in range(num_frames - 1):
        flow[t], visible[t] = _follow(layers, t, points, labels[t], size)
    names = dict(enumerate(("rest", "leaf", "blossom", "tile")[: len(layers)]))
    shape = (-1, *size)
    return GeneratedClip(
        frames.reshape(*shape, 3), labels.reshape(shape), flow.reshape(*shape, 2), visible.reshape(shape), names
    )


def _draw(layers: list[Layer], t: int, points: np.ndarray) -> tuple[UInt8[np.ndarray, "n 3"], Int64[np.ndarray, " n"]]:
    """Paint back to front; a layer owns the pixels whose centre it covers more than half."""
    frame, label = np.zeros((points.shape[1], 3)), np.zeros(points.shape[1], np.int64)
    for number, layer in enumerate(layers):
        alpha = layer.cover(t, points)
        there = alpha > 0
        frame[there] += alpha[there, None] * (layer.colour(t, points[:, there]) - frame[there])
        label[alpha > 0.5] = number
    return np.round(frame).astype(np.uint8), label


def _follow(layers: list[Layer], t: int, points: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple:
    """Where each pixel of frame t is in frame t+1, as (flow [n, 2], visible [n])."""
    flow, visible = np.zeros(points.T.shape), np.zeros(len(label), bool)
    for number, layer in enumerate(layers):
        own = label == number
        target = layer.place(t + 1, layer.locate(t, points[:, own]))
        seen = ((target >= 0) & (target <= np.array(size)[:, None] - 1)).all(0)
        for front in layers[number + 1 :]:
            seen &= front.cover(t + 1, target) <= 0.5
        flow[own], visible[own] = (target - points[:, own]).T, seen
    return flow, visible


def _layers(num_frames: int, size: tuple[int, int], rng: np.random.Generator, late: bool) -> list[Layer]:
    """The photograph and the cut-outs, back to front. Periods are in frames; lengths in pixels of a 240x320 picture."""
    flower = _photo("flower.jpg")
    y, x = np.indices(flower.shape[:2])
    warm, _ = ndimage.label(flower[..., 0] > flower[..., 2].astype(int) + 45)
    whole = ndimage.binary_fill_holes(warm == warm[222, 305])
    blossom = ndimage.binary_dilation(ndimage.binary_erosion(whole, iterations=5), iterations=3)  # without its dark rim
    leaf = np.hypot(y - 200, x - 85) < 70
    unit = min(size[0] / 240, size[1] / 320)
    time = np.arange(num_frames)
    swing = 44 * np.sin(2 * np.pi * (time - 13.5 + rng.uniform(-1.5, 1.5)) / 84)
    heading = rng.uniform(-0.4, 0.4) + rng.choice([0, np.pi])
    along, across = np.array([np.sin(heading), np.cos(heading)]), np.array([np.cos(heading), -np.sin(heading)])
    middle = np.array(size) / 2 / unit + rng.uniform(-10, 10, 2)
    layers = [_photograph(time, size, rng)]
    for mask, width, side in ((leaf, 62, -1), (blossom, 80, 1)):
        path = middle + side * (13 * across + swing[:, None] * along)
        layers.append(_cut_out(flower, mask, width * unit, path * unit, time, rng))
    if late:
        angle = np.arctan2(y - 222, x - 305) % (np.pi / 3) - np.pi / 6
        hexagon = np.hypot(y - 222, x - 305) * np.cos(angle) < 100
        come = 140 * (1 - np.exp(-3.4 * np.maximum(time - ENTRY, 0) / 140)) - 37  # 35 is the hexagon's outer radius
        across_it = come if rng.random() < 0.5 else size[1] / unit - 1 - come
        path = np.stack([np.full(num_frames, 0.76 * size[0] / unit), across_it], -1)
        layers.append(_cut_out(flower[..., ::-1], hexagon, 70 * unit, path * unit, time, rng))
    return layers


def _photograph(time: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Layer:
    """china.jpg seen by a camera that pans and zooms slowly and never leaves the picture."""
    china = _photo("china.jpg")
    fit = min(china.shape[0] / size[0], china.shape[1] / size[1])  # photograph pixels per frame pixel if all of it is shown
    shrink = min(1.0, DETAIL / (0.75 * fit))
    texture = _resized(china, shrink)
    phase = rng.uniform(0, 2 * np.pi, 3)
    wave = np.sin(2 * np.pi * time[:, None] / 112 + phase)
    scale = fit * shrink * (0.75 + 0.05 * wave[:, 2])
    room = np.array(texture.shape[:2]) - 0.8 * fit * shrink * np.array(size) - 2
    centre = (np.array(texture.shape[:2]) - 1) / 2 + np.minimum(room, 0.25 * fit * shrink * min(size)) / 2 * wave[:, :2]
    return Layer(texture, None, *_similarity(scale, 0 * scale, centre, np.broadcast_to((np.array(size) - 1) / 2, centre.shape)))


def _cut_out(photo: np.ndarray, mask: np.ndarray, width: float, path: np.ndarray, time: np.ndarray, rng) -> Layer:
    """The masked part of a photograph, `width` frame pixels wide, its middle on `path` [f, 2], swaying a little."""
    box = tuple(slice(part.start - MARGIN, part.stop + MARGIN) for part in ndimage.find_objects(mask.astype(int))[0])
    photo, mask = photo[box], mask[box]
    extent = max(mask.shape) - 2 * MARGIN
    shrink = min(1.0, DETAIL * width / extent)
    signed = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    distance = _resized(signed.astype(np.float32), shrink) * shrink
    sway = np.sin(2 * np.pi * time[:, None] / 84 + rng.uniform(0, 2 * np.pi, 2))
    scale = extent * shrink / width / (1 + 0.05 * sway[:, 0])
    anchor = np.broadcast_to((np.array(distance.shape) - 1) / 2, path.shape)
    return Layer(_resized(photo, shrink), distance, *_similarity(scale, 0.2 * sway[:, 1], anchor, path))


def _similarity(scale: np.ndarray, angle: np.ndarray, anchor: np.ndarray, position: np.ndarray) -> tuple:
    """Matrix [f, 2, 2] and offset [f, 2] that take frame point `position` to texture point `anchor`."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), -1, 0)
    return matrix, anchor - np.einsum("tij,tj->ti", matrix, position)


def _photo(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """One of scikit-learn's two; the package takes most of a second to import."""
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


def _resized(picture: np.ndarray, factor: float) -> np.ndarray:
    """Smaller by `factor` with a proper low-pass: uint8 [h, w, 3] or float32 [h, w] in, float64 out."""
    if factor == 1:
        return picture.astype(float)
    height, width = (max(2, round(side * factor)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS), float)
