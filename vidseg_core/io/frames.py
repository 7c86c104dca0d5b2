"""Which mask belongs to which frame: the names of a run's masks, and the table frames.csv."""

import csv
import io
import unicodedata
from pathlib import Path
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.io.files import read_text
from vidseg_core.io.masks import MaskFolder
from vidseg_core.io.video import Clip

TABLE = "frames.csv"
LONGEST = 200
"""Bytes of a mask's name; file systems take 255, and a mask that is being written has a longer one."""


def mask_names(clip: Clip) -> tuple[str, ...]:
    """The names of an image clip's frames without their ending, so that the masks are labels of these images for other tools.
    () stands for numbers: for a video, and where two masks would have one name or a file system may not take it."""
    names = tuple(clip.files[n].stem for n in clip.indices) if clip.files else ()
    if len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names):
        return ()
    return names if all(_is_text(name) and len(name.encode()) <= LONGEST for name in names) else ()


def frame_table(clip: Clip, masks: MaskFolder) -> list[dict[str, Any]]:
    """A row a frame: the `mask` file, the `number` from 0 among the frames that were taken, which frame of the source that is
    (`frame`, from 0), at how many `seconds` of a video it is shown, and the `file` of an image."""
    seconds = [round(t, 6) for t in clip.times()] or [""] * clip.num_frames
    files = [as_text(clip.files[n].name) if clip.files else "" for n in clip.indices]
    return [
        {"mask": masks.path(n).name, "number": n, "frame": clip.indices[n], "seconds": seconds[n], "file": files[n]}
        for n in range(clip.num_frames)
    ]


def read_frame_table(run: Path) -> list[dict[str, str]]:
    """The rows of a run's frames.csv; [] where there is none, as runs of before have none. Raises InputError if it is
    damaged, and if it does not name the masks that are there."""
    path = run / TABLE
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
        for row in rows:
            int(row["frame"]), float(row["seconds"] or 0)
        named = {row["mask"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        why = f"it has no column {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} cannot be read ({why}): take it as the run wrote it, or make the run anew") from error
    there = {mask.name for mask in (run / "masks").glob("*.png") if not mask.name.startswith(".")}
    if other := sorted(named ^ there):
        lone = f"{other[0]} is {'in masks/' if other[0] in there else 'in the table'} alone"
        raise InputError(f"{path} and the masks beside it do not belong together ({lone}): take both from the same run")
    return rows


def open_masks(run: Path) -> MaskFolder:
    """The masks of a run in the order of its frames."""
    return MaskFolder(run / "masks", tuple(row["mask"].removesuffix(".png") for row in read_frame_table(run)))


def _is_text(name: str) -> bool:
    return name == as_text(name)


def as_text(name: str) -> str:
    """A file's name as UTF-8 can hold it: bytes that are none are written out."""
    return name.encode("utf-8", "backslashreplace").decode()
