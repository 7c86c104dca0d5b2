"""What a command about many clips leaves beside their folders: index.csv, a row a clip, and index.png, their first frames."""

import csv
import math
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import IdentityTransform
from PIL import Image

from vidseg_core.common import VOID, InputError
from vidseg_core.io.files import WORTHLESS, read_json, replacing
from vidseg_core.io.fonts import fonts_for
from vidseg_core.io.frames import open_masks, read_frame_table
from vidseg_core.io.overlay import Drawing, blend, default_style, plain, quiet_about_glyphs
from vidseg_core.io.results import write_table
from vidseg_core.io.video import Frame, open_clip

TABLE, SHEET = "index.csv", "index.png"
COLUMNS = ("clip", "folder", "frames", "size", "segments", "seconds", "status", "error")
DONE, FAILED, OPEN = "done", "failed", "open"
SHEET_WIDTH, TILE_WIDTH = 4000, 320
"""Pixels, at most."""
CAPTION = 18
"""Pixels below a picture."""
Row = dict[str, Any]


def read_index(out: Path) -> list[Row]:
    """The rows of the table in `out`, [] if there is none and the folder is free for one.

    Raises InputError for a folder that holds anything else, and for a table that is damaged.
    """
    path = out / TABLE
    if not path.exists():
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file, expected a folder to write to: choose another --out")
        if out.exists() and not all(map(_is_worthless, out.iterdir())):
            raise InputError(f"{out} is not empty and holds no table of clips: choose another --out")
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): choose another --out") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path} is no table of clips: choose another --out")
    return rows


def _is_worthless(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in WORTHLESS)


def write_index(out: Path, rows: list[Row]) -> None:
    """Replace the table in `out`."""
    write_table(out / TABLE, [{name: row.get(name, "") for name in COLUMNS} for row in rows])


def finished_row(run: Path) -> Row:
    """What a row says of a finished run, from the files in its folder. Raises InputError if one is damaged."""
    try:
        with (run / "segments.csv").open(encoding="utf-8", newline="") as file:
            segments = [row for row in csv.DictReader(file) if row["id"] != str(VOID)]
        with Image.open(open_masks(run).path(0)) as mask:
            width, height = mask.size
        seconds = sum(read_json(run / "run.json", "make the run anew")["seconds"].values())
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{run} is no whole result ({error}): make it anew with --overwrite") from error
    frames = len(read_frame_table(run))
    return {"frames": frames, "size": f"{width}x{height}", "segments": len(segments), "seconds": round(seconds, 2)}


def write_sheet(out: Path, rows: list[Row]) -> None:
    """The first frames of finished clips, each with its overlay, in a grid; nothing for none. They come from the clips and the
    masks, as no two encodings of an overlay need be the same."""
    if not rows:
        return
    columns = math.ceil(math.sqrt(len(rows)))
    width = min(TILE_WIDTH, SHEET_WIDTH // columns)
    height = width * 3 // 4 + CAPTION
    sheet = np.full((math.ceil(len(rows) / columns) * height, columns * width, 3), 255, np.uint8)
    captions = []
    for n, row in enumerate(rows):
        y, x = n // columns * height, n % columns * width
        picture = _thumbnail(row["clip"], out / row["folder"], (height - CAPTION - 2, width - 4))
        sheet[y : y + picture.shape[0], x + 2 : x + 2 + picture.shape[1]] = picture
        captions.append((x + 2, y + height - CAPTION + 2, row["folder"]))
    with replacing(out / SHEET) as partial:
        Image.fromarray(_captioned(sheet, captions, width // 7)).save(partial)


def _thumbnail(source: str, run: Path, room: tuple[int, int]) -> Frame:
    """The first frame with its overlay, as large as there is room (H, W); grey if the clip is gone."""
    try:
        first = read_json(run / "run.json", "make the run anew")["frames"][0]
        clip = open_clip(source, first, first + 1)
        mixed = blend(next(iter(clip)), next(iter(open_masks(run))))
    except (InputError, OSError):
        return np.full((*room, 3), 128, np.uint8)
    height, width = clip.size[0], clip.size[1] * clip.aspect
    scale = min(room[0] / height, room[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(mixed).resize(size, Image.Resampling.BOX))


def _captioned(sheet: Frame, captions: list[tuple[int, int, str]], longest: int) -> Frame:
    """The picture with captions at (x, y) of at most so many characters, black on its white. matplotlib draws letters alone:
    of the picture it would make a dozen copies as floats."""
    height, width, _ = sheet.shape
    families = fonts_for([name for _, _, name in captions])
    with default_style(), quiet_about_glyphs():
        figure = Drawing(figsize=((width + 0.5) / 100, (height + 0.5) / 100), dpi=100)  # rounded down to whole pixels
        for x, y, name in captions:
            text = plain(name)
            text = text if len(text) <= longest else text[: longest - 1] + "…"
            figure.text(x, height - y, text, fontsize=8, va="top", family=families, transform=IdentityTransform())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.minimum(sheet, np.asarray(canvas.buffer_rgba())[..., :3])
