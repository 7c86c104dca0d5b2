"""What a run leaves on disk: masks, the overlay video, the table of segments, the contact sheet, the record.

A label map is int [H, W] with class numbers 0..254, and 255 for void (not labelled).
"""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from jaxtyping import Int64, Integer, UInt8
from PIL import Image

from vidseg_core.common import InputError
from vidseg_core.io.files import replacing
from vidseg_core.io.video import Frame, same_size
from vidseg_core.workbook.figures import PALETTE, VOID, blend, contact_sheet, png

Labels = Integer[np.ndarray, "H W"]


def read_mask(path: str | Path) -> Int64[np.ndarray, "H W"]:
    """Class numbers of a palette or grey image, int64 [H, W] in 0..255; 255 is void. Alpha is ignored.

    RGB counts as grey if its channels are equal. Raises InputError for colour-coded masks, JPEG and numbers above 255.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            kind, values = image.format, np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a mask ({error}). Expected a palette or grey PNG.") from error
    if kind == "JPEG":
        raise InputError(f"{path} is a JPEG, which blurs class numbers. Save the mask as a palette or grey PNG.")
    values = values.reshape(*values.shape[:2], -1)
    values = values[..., : 3 if values.shape[2] > 2 else 1]  # alpha is the second of two or the fourth of four
    if (values != values[..., :1]).any():
        raise InputError(f"{path} codes classes as colours. Save the class numbers as a palette or grey PNG (255 = void).")
    if values.max() > VOID or values.min() < 0 or (values % 1 != 0).any():
        raise InputError(f"{path} has values {values.min()} to {values.max()}. Expected class numbers 0 to 254, 255 = void.")
    return values[..., 0].astype(np.int64)


def read_names(path: str | Path) -> dict[int, str]:
    """Names of label numbers: a JSON object {"0": "wall", ...}, or a text file with the name of number n in line n.

    Raises InputError for a file that is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not text.lstrip().startswith("{"):
            return {n: line.strip() for n, line in enumerate(text.splitlines()) if line.strip()}
        return {int(number): str(name) for number, name in json.loads(text).items()}
    except (OSError, ValueError) as error:
        raise InputError(
            f'{path} cannot be read as names ({error}). Expected JSON such as {{"0": "wall"}}, or a name a line.'
        ) from error


def write_mask(path: str | Path, labels: Labels) -> None:
    """Write labels in 0..255 as a palette PNG as VSPW and DAVIS do: the index is the label.

    Raises InputError for labels outside 0..255.
    """
    image = Image.fromarray(_as_bytes(labels))
    image.putpalette(PALETTE.tobytes())
    with replacing(path) as partial:
        image.save(partial, format="PNG")


def write_masks(folder: Path, start: int, labels: Integer[np.ndarray, "f H W"]) -> None:
    """Masks of consecutive frames, the first of them number `start`: 00000.png and on. The folder is made if need be."""
    folder.mkdir(exist_ok=True)
    for n, mask in enumerate(labels, start):
        write_mask(folder / f"{n:05}.png", mask)


def drop_masks(folder: Path, start: int) -> None:
    """Remove the masks of frames from number `start` on, and what a kill left of files that were being written."""
    for path in [*folder.glob("*.png"), *folder.parent.glob(".*.partial*")]:
        if path.name.startswith(".") or int(path.stem) >= start:
            path.unlink()


@dataclass(frozen=True)
class MaskFolder:
    """The masks that `write_masks` wrote, read one at a time; iterate as often as need be."""

    folder: Path

    def __iter__(self) -> Iterator[Int64[np.ndarray, "H W"]]:
        return map(read_mask, sorted(self.folder.glob("[0-9]*.png"), key=lambda path: int(path.stem)))


def write_run(
    folder: Path,
    frames: Iterable[Frame],
    fps: float,
    names: dict[int, str],
    record: dict[str, Any],
    progress: Callable[[float], None] = lambda frames: None,
) -> None:
    """From the frames and the masks in `folder`/masks: overlay.mp4, segments.csv, contact_sheet.png and run.json.

    Both are read once for each product and one at a time, so that memory does not grow with the clip.
    """
    masks = MaskFolder(folder / "masks")
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

    encode_video(overlay(), fps, folder / "overlay.mp4")
    with replacing(folder / "contact_sheet.png") as partial:
        pictures, labels = zip(*sheet.values(), strict=True)
        partial.write_bytes(png(contact_sheet(list(pictures), list(labels), list(sheet), names)))
    write_table(folder / "segments.csv", rows)
    write_json(folder / "run.json", {**record, "names": {str(n): name for n, name in names.items()}})


def _as_bytes(labels: Labels) -> UInt8[np.ndarray, "H W"]:
    if labels.min() < 0 or labels.max() > VOID:
        raise InputError(f"Labels go from {labels.min()} to {labels.max()}, but a mask holds 0 to 255. Use fewer segments.")
    return labels.astype(np.uint8)


def encode_video(frames: Iterable[Frame], fps: float | int, target: str | Path | io.BufferedIOBase) -> None:
    """Write H.264 (yuv420p, BT.709, index first) that browsers play, to a path or an open binary file, one frame at a time.

    yuv420p needs even sides: an odd one is extended by repeating its last row or column. Raises InputError if there are no
    frames, if they differ in size or if fps is not above 0.
    """
    if isinstance(target, str | Path):
        with replacing(target) as partial:
            _encode(frames, fps, partial)
        return
    with tempfile.TemporaryDirectory() as folder:  # the index can be moved to the front only in a file on disk
        _encode(frames, fps, Path(folder, "clip.mp4"))
        with Path(folder, "clip.mp4").open("rb") as file:
            shutil.copyfileobj(file, target)


def video_bytes(frames: Iterable[Frame], fps: float | int) -> bytes:
    """The MP4 of `encode_video` in memory, for an inline <video>."""
    encode_video(frames, fps, memory := io.BytesIO())
    return memory.getvalue()


def _encode(frames: Iterable[Frame], fps: float | int, path: Path) -> None:
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None or not 1e-3 <= fps <= 1000:
        raise InputError(
            f"Got {'no' if first is None else 'some'} frames at fps={fps}. Expected at least one, fps in 0.001..1000."
        )
    height, width, _ = first.shape
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        context = stream.codec_context  # H.273's 1 is BT.709: untagged, each player guesses other colours
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for i, frame in enumerate(chain([first], remaining)):
            same_size(frame.shape[:2], (height, width), f"Frame {i} to encode")
            rgb = av.VideoFrame.from_ndarray(np.pad(frame, pad, mode="edge"), format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())


def segment_table(labels: Iterable[Labels], names: dict[int, str]) -> list[dict[str, Any]]:
    """One row a label that is seen, by id: id, name, colour (#rrggbb), area (share of all pixels, 0..1), frames (how many
    show it), first and last (frame numbers from 0). A label without a name is called "segment <id>", 255 "void".
    """
    pixels, frames, first, last = np.zeros((4, 256), np.int64)
    for n, frame in enumerate(labels):
        counts = np.bincount(_as_bytes(frame).ravel(), minlength=256)
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
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, data: Any) -> None:
    """Write data as indented JSON (UTF-8)."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
