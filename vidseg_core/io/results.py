"""What a run writes beside its masks: the overlay video, the table of segments, the contact sheet, the record."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidseg_core.common import VOID
from vidseg_core.io.files import UTF8, RunFolder, replacing
from vidseg_core.io.frames import open_masks
from vidseg_core.io.masks import PALETTE, Labels, MaskFolder, as_bytes, write_masks
from vidseg_core.io.overlay import blend, contact_sheet, encode_video, png
from vidseg_core.io.provenance import run_record
from vidseg_core.io.video import Frame

if TYPE_CHECKING:
    from vidseg_core.models.backbone import Backbone
    from vidseg_core.pipeline import Segmentation


def write_run(
    folder: Path,
    frames: Iterable[Frame],
    fps: float,
    names: dict[int, str],
    record: dict[str, Any],
    progress: Callable[[float], None] = lambda frames: None,
    aspect: Fraction | int = 1,
) -> None:
    """From the frames and the masks in `folder`/masks: overlay.mp4, segments.csv, contact_sheet.png and run.json. `aspect` is
    how much wider than high a pixel is shown.

    Both are read once for each product and one at a time, so that memory does not grow with the clip.
    """
    masks = open_masks(folder)
    rows = segment_table(masks, names)
    last = sum(1 for _ in masks) - 1
    shown = sorted({round(last * n / 5) for n in range(6)})
    sheet: dict[int, tuple[Frame, Labels]] = {}

    def overlay() -> Iterator[Frame]:
        for n, (frame, labels) in enumerate(zip(frames, masks, strict=True)):
            mixed = blend(frame, labels)
            if n in shown:
                sheet[n] = frame, labels
            progress(1)
            yield mixed

    encode_video(overlay(), fps, folder / "overlay.mp4", aspect)
    with replacing(folder / "contact_sheet.png") as partial:
        pictures, labels = zip(*sheet.values(), strict=True)
        partial.write_bytes(png(contact_sheet(list(pictures), list(labels), list(sheet), names, aspect)))
    write_table(folder / "segments.csv", rows)
    write_json(folder / "run.json", {**record, "names": {str(n): name for n, name in names.items()}})


def save_segmentation(
    result: "Segmentation", backbone: "Backbone", folder: str | Path, fps: float = 25.0, overwrite: bool = False
) -> Path:
    """Masks, overlay, table, contact sheet and run.json into `folder`, which must not exist unless `overwrite`; `backbone` is
    what the result was made with, for the record."""
    seconds = {stage: round(t, 3) for stage, t in result.timings.items()}
    with RunFolder(folder, overwrite) as unfinished:
        write_masks(MaskFolder(unfinished / "masks"), 0, result.labels)
        record = {**run_record(backbone, result.settings), "seconds": seconds}
        write_run(unfinished, result.frames, fps, result.names, record)
    return Path(folder)


def segment_table(labels: Iterable[Labels], names: dict[int, str]) -> list[dict[str, Any]]:
    """One row a label that is seen, by id: id, name, colour (#rrggbb), area (share of all pixels, 0..1), frames (how many
    show it), first and last (frame numbers from 0). A label without a name is called "segment <id>", 255 "void".
    """
    pixels, frames, first, last = np.zeros((4, 256), np.int64)
    for n, frame in enumerate(labels):
        counts = np.bincount(as_bytes(frame).ravel(), minlength=256)
        seen = counts > 0
        first[seen & (frames == 0)] = n
        last[seen] = n
        pixels += counts
        frames += seen
    rows = []
    for label in np.flatnonzero(frames).tolist():
        rows.append(
            {
                "id": label,
                "name": names.get(label, "void" if label == VOID else f"segment {label}"),
                "colour": "#" + PALETTE[label].tobytes().hex(),
                "area": round(float(pixels[label] / pixels.sum()), 6),
                "frames": int(frames[label]),
                "first": int(first[label]),
                "last": int(last[label]),
            }
        )
    return rows


def write_table(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV (UTF-8); the first row's keys are the header."""
    with replacing(path) as partial, partial.open("w", newline="", **UTF8) as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, data: Any) -> None:
    """Write data as indented JSON (UTF-8)."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", **UTF8)
