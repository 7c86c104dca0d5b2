"""Masks that are given to a run: label images, and outlines that were drawn in other tools (labelme's JSON, COCO's).

Outlines have labels in words. Their numbers are those that the names given to the run have, and else the smallest free ones
from 1 on, in the order of appearance.
"""

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
from vidseg_core.io.masks import read_given_mask
from vidseg_core.io.video import Clip

BACKGROUND = ("background", "_background_")
UNSAID = ("void", "__ignore__")
"""Labels of outlines for the ground, and for what nothing is said of; the latter of each are labelme's."""
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
    called background. Raises InputError for a frame that the clip has not, and for a file that is no mask.
    """
    if beyond := [n for n in files if n >= clip.num_frames]:
        raise InputError(
            f"--mask {beyond[0]}={files[beyond[0]]} is of frame {beyond[0]}, but {clip.num_frames} frames are taken, "
            f"0 to {clip.num_frames - 1}"
        )
    paths, drawings = {n: Path(files[n]).expanduser() for n in sorted(files)}, {}
    masks = {n: read_given_mask(path) for n, path in paths.items() if path.suffix.lower() != ".json"}
    for n in paths.keys() - masks.keys():
        drawings[n] = read_drawing(paths[n], mask_names(clip)[n] if mask_names(clip) else f"{n:05}")
    if not drawings:
        return masks, names
    known = dict(names or {})
    taken = set(np.unique(np.concatenate([mask.ravel() for mask in masks.values()])).tolist()) if masks else set()
    for n in sorted(drawings):
        masks[n] = _painted(drawings[n], known, taken, VOID if n else None)
    return masks, known


def read_drawing(path: Path, frame: str) -> Drawing:
    """The outlines in a file of labelme or COCO; of several images in one COCO file those of the image named like the frame."""
    data = read_json(path, EXPECTED)
    try:
        if isinstance(data, dict) and "shapes" in data:
            size = int(data["imageHeight"]), int(data["imageWidth"])
            return Drawing(size, [(str(s["label"]), _inside(s, size, path)) for s in data["shapes"]])
        if isinstance(data, dict) and "annotations" in data:
            return _coco(data, frame, path)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): {EXPECTED}") from error
    raise InputError(f"{path} has no outlines: {EXPECTED}")


def _inside(shape: Mapping[str, Any], size: tuple[int, int], path: Path) -> Bool[np.ndarray, "H W"]:
    """The pixels of one of labelme's shapes."""
    kind, points = shape.get("shape_type") or "polygon", [(float(x), float(y)) for x, y in shape["points"]]
    if kind == "circle":
        (x, y), (u, v) = points
        radius = float(np.hypot(u - x, v - y))
        return _drawn(size, "ellipse", [(x - radius, y - radius), (x + radius, y + radius)])
    if kind == "rectangle":
        (x, y), (u, v) = points[0], points[-1]
        return _drawn(size, "rectangle", [(min(x, u), min(y, v)), (max(x, u), max(y, v))])
    if kind != "polygon" or len(points) < 3:
        raise InputError(
            f"{path} has a {kind} of {len(points)} points: draw polygons, rectangles or circles, which have an inside"
        )
    return _drawn(size, "polygon", points)


def _drawn(size: tuple[int, int], kind: str, points: list[tuple[float, float]]) -> Bool[np.ndarray, "H W"]:
    image = Image.new("1", size[::-1])
    getattr(ImageDraw.Draw(image), kind)(points, fill=1, outline=1)
    return np.array(image, bool)


def _coco(data: Mapping[str, Any], frame: str, path: Path) -> Drawing:
    images = data["images"]
    found = images if len(images) == 1 else [i for i in images if Path(i["file_name"]).stem == frame]
    if len(found) != 1:
        there = ", ".join(str(i["file_name"]) for i in images[:3])
        raise InputError(f"{path} has {len(found)} images named {frame!r}, expected one: it has {len(images)} ({there}, ...)")
    size = int(found[0]["height"]), int(found[0]["width"])
    names = {c["id"]: str(c["name"]) for c in data["categories"]}
    own = [a for a in data["annotations"] if a["image_id"] == found[0]["id"]]
    return Drawing(size, [(names[a["category_id"]], _covered(a["segmentation"], size)) for a in own])


def _covered(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The pixels of a COCO segmentation: polygons [x, y, x, y, ...], or runs."""
    if isinstance(segmentation, dict):
        from vidseg_core.io.export import coco_masks

        runs = coco_masks()
        return (
            runs.decode(runs.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation) > 0
        )
    covered = np.zeros(size, bool)
    for outline in segmentation:
        covered |= _drawn(size, "polygon", list(zip(outline[::2], outline[1::2], strict=True)))
    return covered


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
