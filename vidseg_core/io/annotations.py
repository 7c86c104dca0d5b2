"""Masks that are given to a run: label images, and outlines that were drawn in other tools (labelme's JSON, COCO's).

Outlines have labels in words. Their numbers are those that the names given to the run have, and else the smallest free ones
from 1 on, in the order of appearance.
"""

import base64
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from PIL import Image, ImageDraw

from vidseg_core.common import VOID, InputError
from vidseg_core.io.files import read_json
from vidseg_core.io.frames import mask_names
from vidseg_core.io.masks import read_given_mask, refuse_other_palettes
from vidseg_core.io.video import Clip

BACKGROUND = ("background", "_background_")
UNSAID = ("void", "__ignore__")
"""Labels of outlines for the ground, and for what nothing is said of; the latter of each are labelme's."""
LARGEST = 100_000
"""Pixels on a side of an image, and from its corner to the farthest point of an outline."""
EXPECTED = "expected an outline file of labelme (with shapes) or of COCO (with images and annotations)"


@dataclass(frozen=True)
class Drawing:
    """The outlines of one image of `size` (H, W): labels and the pixels inside, in the order in which they were drawn."""

    size: tuple[int, int]
    shapes: list[tuple[str, Bool[np.ndarray, "H W"]]] = field(repr=False)


def given_masks(
    files: Mapping[int, str], clip: Clip, names: dict[int, str] | None
) -> tuple[dict[int, Int64[np.ndarray, "H W"]], dict[int, str] | None]:
    """The masks of these files by the frames' numbers, and the names with those of outlines.

    What no outline of the first frame covers is background; in a later frame nothing is said of it (void), unless an outline is
    called background. Raises InputError for a frame that the clip has not, for a file that is no mask of the clip's size, and
    for palettes that contradict each other.
    """
    if beyond := [n for n in files if n >= clip.num_frames]:
        raise InputError(
            f"--mask {beyond[0]}={files[beyond[0]]} is of frame {beyond[0]}, but {clip.num_frames} frames are taken, "
            f"0 to {clip.num_frames - 1}"
        )
    paths, drawings, known = {n: Path(files[n]).expanduser() for n in sorted(files)}, {}, names
    masks = {n: read_given_mask(path) for n, path in paths.items() if path.suffix.lower() != ".json"}
    for n in paths.keys() - masks.keys():
        named = mask_names(clip)
        drawings[n] = read_drawing(paths[n], named[n] if named else f"{n:05}", None if named else clip.indices[n])
    for n, size in {**{n: mask.shape for n, mask in masks.items()}, **{n: d.size for n, d in drawings.items()}}.items():
        _check_size(size, clip.size, paths[n])
    refuse_other_palettes(paths[n] for n in masks)
    if drawings:
        known = dict(names or {})
        taken = set(np.unique(np.concatenate([mask.ravel() for mask in masks.values()])).tolist()) if masks else set()
        for n in sorted(drawings):
            masks[n] = _painted(drawings[n], known, taken, VOID if n else None)
    return masks, known


def _check_size(size: tuple[int, int], wanted: tuple[int, int], path: Path) -> None:
    if tuple(size) == wanted:
        return
    remedy = "draw it on a frame of this clip" if path.suffix.lower() == ".json" else "resize it (nearest neighbour)"
    remedy = "turn it by a quarter" if tuple(size) == wanted[::-1] else remedy
    raise InputError(f"{path} is {_as_words(size)} pixels, but the frames are {_as_words(wanted)}: {remedy}")


def read_drawing(path: Path, frame: str, number: int | None = None) -> Drawing:
    """The outlines in a file of labelme or COCO; of several images in one COCO file those of the image named like the frame,
    or, as tools name the frames of a video, with its `number` in the video at the end.

    Raises InputError for other files, and for one that draws nothing.
    """
    data = read_json(path, EXPECTED)
    try:
        if isinstance(data, dict) and "shapes" in data:
            drawing = _labelme(data)
        elif isinstance(data, dict) and "annotations" in data:
            drawing = _coco(data, frame, number)
        else:
            raise InputError(f"has no outlines: {EXPECTED}")
        if not drawing.shapes:
            raise InputError("draws nothing of this frame: draw at least one outline, or leave the mask out")
        if outside := [label for label, inside in drawing.shapes if not inside.any()]:
            raise InputError(
                f"has an outline of {outside[0]!r} that lies outside its image of {_as_words(drawing.size)} pixels"
            )
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, OSError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is damaged ({why}): {EXPECTED}") from error
    return drawing


def _as_words(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _size(height: Any, width: Any) -> tuple[int, int]:
    size = int(height), int(width)
    if not all(0 < side <= LARGEST for side in size):
        raise ValueError(f"an image of {_as_words(size)} pixels")
    return size


def _labelme(data: Mapping[str, Any]) -> Drawing:
    size = _size(data["imageHeight"], data["imageWidth"])
    return Drawing(size, [(_label(shape["label"]), _inside(shape, size)) for shape in data["shapes"]])


def _label(word: Any) -> str:
    if not str(word).strip():
        raise InputError("has an outline without a label: give it one")
    return str(word).strip()


def _inside(shape: Mapping[str, Any], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The pixels of one of labelme's shapes."""
    kind, points = shape.get("shape_type") or "polygon", _points(shape["points"])
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist(points[0], edge)
        return _drawn(size, "ellipse", [(x - radius, y - radius), (x + radius, y + radius)])
    (left, top), (right, bottom) = np.min(points, axis=0).tolist(), np.max(points, axis=0).tolist()
    if kind == "rectangle" and len(points) > 1:  # two corners, or all four
        return _drawn(size, "rectangle", [(left, top), (right, bottom)])
    if kind == "mask":
        return _pasted(size, shape["mask"], round(left), round(top))
    if kind not in ("polygon", "rotation") or len(points) < 3:
        count = f"{len(points)} point{'s' * (len(points) > 1)}"
        raise InputError(f"has a {kind} of {count}: draw polygons, rectangles or circles, which have an inside")
    return _drawn(size, "polygon", points)


def _points(pairs: Any) -> list[tuple[float, float]]:
    points = [(float(x), float(y)) for x, y in pairs]
    if not points or not all(abs(side) <= LARGEST for point in points for side in point):  # NaN is not, either
        raise ValueError(f"points {str(pairs)[:40]}")
    return points


def _pasted(size: tuple[int, int], code: str, left: int, top: int) -> Bool[np.ndarray, "H W"]:
    """The pixels of a mask that labelme keeps as a PNG in its JSON, with the place of its corner."""
    canvas = Image.new("1", size[::-1])
    with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
        canvas.paste(picture.convert("1"), (left, top))
    return np.array(canvas, bool)


def _drawn(size: tuple[int, int], kind: str, points: list[tuple[float, float]]) -> Bool[np.ndarray, "H W"]:
    image = Image.new("1", size[::-1])
    getattr(ImageDraw.Draw(image), kind)(points, fill=1, outline=1)
    return np.array(image, bool)


def _coco(data: Mapping[str, Any], frame: str, number: int | None) -> Drawing:
    images = data["images"]
    found = images if len(images) == 1 else [i for i in images if Path(i["file_name"]).stem == frame]
    if not found and number is not None:  # such as frame_000057.PNG
        found = [i for i in images if re.search(rf"(?<!\d)0*{number}$", Path(i["file_name"]).stem)]
    if len(found) != 1:
        there = ", ".join(str(i["file_name"]) for i in images[:3])
        raise InputError(f"has {len(found)} images named {frame!r}, expected one: it has {len(images)} ({there}, ...)")
    size = _size(found[0]["height"], found[0]["width"])
    names = {c["id"]: _label(c["name"]) for c in data["categories"]}
    own = [a for a in data["annotations"] if a["image_id"] == found[0]["id"]]
    if any(not a.get("segmentation") for a in own):
        raise InputError("has annotations without an outline (segmentation), such as boxes alone: export it with outlines")
    return Drawing(size, [(names[a["category_id"]], _covered(a["segmentation"], size)) for a in own])


def _covered(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The pixels of a COCO segmentation: polygons [x, y, x, y, ...], or runs."""
    if isinstance(segmentation, dict):
        return _decoded(segmentation["counts"], tuple(segmentation.get("size", size)), size)
    covered = np.zeros(size, bool)
    for outline in segmentation:
        points = _points(zip(outline[::2], outline[1::2], strict=True))
        if len(points) < 3:
            raise InputError(f"has an outline of {len(points)} points, which has no inside: draw three or more")
        covered |= _drawn(size, "polygon", points)
    return covered


def _decoded(counts: Any, own: tuple[int, ...], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The pixels of COCO's runs, column by column and outside first: written out, or in its code."""
    if own != size:
        raise ValueError(f"runs of {own} in an image of {size}")
    if isinstance(counts, list):
        if min(counts) < 0 or sum(counts) != size[0] * size[1]:
            raise ValueError(f"runs of {sum(counts)} pixels in an image of {size[0] * size[1]}")
        return np.repeat(np.arange(len(counts)) % 2 > 0, counts).reshape(size[::-1]).T
    from vidseg_core.io.export import coco_masks

    try:
        runs = coco_masks()
    except InputError as error:
        raise InputError(f"has runs of pixels in COCO's code: {error}") from error
    return runs.decode({"size": size, "counts": counts}) > 0


def _painted(drawing: Drawing, names: dict[int, str], taken: set[int], ground: int | None) -> Int64[np.ndarray, "H W"]:
    """Class numbers of a drawing, on `ground` (None: the background); `names` gains the labels that are new."""
    mask = np.full(drawing.size, _number(BACKGROUND[0], names, taken) if ground is None else ground, np.int64)
    for label, inside in drawing.shapes:
        mask[inside] = VOID if label in UNSAID else _number(label, names, taken)
    return mask


def _number(label: str, names: dict[int, str], taken: set[int]) -> int:
    """The number of a label."""
    same = BACKGROUND if label in BACKGROUND else (label,)
    for number, name in names.items():
        if name in same:
            return number
    free = [n for n in range(0 if label in BACKGROUND else 1, VOID) if n not in names and n not in taken]
    if not free:
        raise InputError(f"{label!r} is one label too many: a mask has 255 classes at most")
    names[free[0]] = same[0]
    return free[0]
