"""A finished run as one file for other tools: COCO's JSON.

The library is pycocotools, an extra (`pip install "vidseg-workbook[coco]"`): COCO's own code, half a megabyte that needs NumPy
alone. Its runs of pixels hold a mask exactly, holes and all, where polygons would not. Many tools import this format, and
Datumaro makes VOC's and CVAT's of it. To write with Datumaro itself would bring OpenCV, pandas and pyarrow, and an
older Pillow than the one that this package is tested with.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidseg_core.common import VOID, InputError
from vidseg_core.io.files import STATE, UTF8, read_json, replacing, unfinished
from vidseg_core.io.frames import open_masks, read_frame_table
from vidseg_core.io.masks import Labels

BEGINNING = b'{"info": {"description": "Segmentation of '
"""Of a file that may be replaced."""


def export_run(run: Path, target: Path | None = None, overwrite: bool = False) -> Path:
    """Write the masks of the finished run in this folder as COCO's JSON to `target`, by default beside it as NAME-coco.json;
    returns where it is. One annotation for each label of each frame; void is none.

    Raises InputError for a folder that is no run, for a file that exists unless `overwrite` and it is an export, and without
    pycocotools.
    """
    run = run.expanduser().resolve()
    target = run.with_name(f"{run.name}-coco.json") if target is None else target.expanduser()
    _check_run(run)
    _check_target(target, run, overwrite)
    names = _read_names(run / "run.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target} cannot be made ({error.strerror}): give another file as --out") from error
    with replacing(target) as partial:
        partial.write_text(json.dumps(coco_record(run, names), ensure_ascii=False), **UTF8)
    return target


def _check_run(run: Path) -> None:
    if (run / "run.json").is_file() and (run / "masks").is_dir():
        return
    if (unfinished(run) / STATE).is_file():
        raise InputError(f"{run} is unfinished: the command that began it goes on with --resume, and then it can be exported")
    raise InputError(f"{run} is not a finished run: give a folder that `segment` wrote, with run.json and masks/ in it")


def _check_target(target: Path, run: Path, overwrite: bool) -> None:
    if Path(os.path.realpath(target)).is_relative_to(run):
        raise InputError(f"{target} is in the folder of the run, which holds what `segment` wrote: give another file as --out")
    if not target.exists():
        return
    if target.is_dir() or not overwrite:
        raise InputError(f"{target} exists: add --overwrite to replace it, or give another file as --out")
    if not (target.is_file() and target.read_bytes().startswith(BEGINNING)):
        raise InputError(f"{target} is not replaced, as it is no export of a run: give another file as --out")


def _read_names(path: Path) -> dict[int, str]:
    record = read_json(path, "give the folder of another run")
    try:
        return {int(n): str(name) for n, name in record.get("names", {}).items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged, as it has no names of numbers: give the folder of another run") from error


def coco_record(run: Path, names: dict[int, str]) -> dict[str, Any]:
    """What COCO's JSON says of a run. Ids begin with 1, as tools take 0 for nothing: the category of label n is n + 1."""
    rows, images, annotations, seen = read_frame_table(run), [], [], set()
    for n, labels in enumerate(open_masks(run)):
        height, width = labels.shape
        if images and (height, width) != (images[0]["height"], images[0]["width"]):
            first = f"{images[0]['width']}x{images[0]['height']}"
            raise InputError(
                f"the mask of frame {n} in {run} is {width}x{height} pixels, but the first is {first}: make it anew"
            )
        row = rows[n] if rows else {"mask": f"{n:05}.png"}
        seconds = {"seconds": float(row["seconds"])} if row.get("seconds") else {}
        name = row.get("file") or row["mask"]
        images.append(
            {"id": n + 1, "file_name": name, "width": width, "height": height, "frame": int(row.get("frame", n)), **seconds}
        )
        for label, annotation in _annotations(labels):
            seen.add(label)
            annotations.append({"id": len(annotations) + 1, "image_id": n + 1, "category_id": label + 1, **annotation})
    if not images:
        raise InputError(f"{run / 'masks'} is empty: there is nothing to export")
    numbers = sorted(seen | set(names) - {VOID})
    categories = [{"id": n + 1, "name": names.get(n, f"segment {n}"), "supercategory": ""} for n in numbers]
    info = {"description": f"Segmentation of {run.name} by VidSeg", "version": "1.0"}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _annotations(labels: Labels) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each label of a mask with its pixels."""
    runs = coco_masks()
    for label in np.setdiff1d(labels, [VOID]).tolist():
        code = runs.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        area, box = int(runs.area(code)), [float(x) for x in runs.toBbox(code)]
        segmentation = {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}
        yield label, {"segmentation": segmentation, "area": area, "bbox": box, "iscrowd": 0}


def coco_masks() -> Any:
    """pycocotools.mask. Raises InputError if it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError('pycocotools is not installed: pip install pycocotools (or "vidseg-workbook[coco]")') from error
    return mask
