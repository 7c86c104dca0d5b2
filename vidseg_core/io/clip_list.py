"""Which clips a command is about: files, folders of images, folders of clips, patterns, or a table that lists them."""

import csv
import glob
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidseg_core.common import InputError, natural_order
from vidseg_core.io.files import read_text
from vidseg_core.io.video import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".mov", ".avi", ".gif", ".mkv", ".m4v", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".ts", ".mts", ".m2ts",
    ".3gp",
)  # fmt: skip
"""Which files of a folder are clips. One that is named itself may be called as it likes."""
COLUMNS = ("clip", "first_mask", "names")
RESULTS = ("run.json", "index.csv")
"""What a folder of results holds, whose pictures are no clip."""


@dataclass(frozen=True)
class Entry:
    """A clip as `open_clip` takes it, and files of its first mask and its names; `place` is where a table names it."""

    clip: str
    first_mask: str | None = None
    names: str | None = None
    place: str = ""


def named_entries(words: Sequence[str]) -> tuple[Entry, ...] | None:
    """The clips that words of a command stand for, None if that is one clip alone: a file, a folder of images, or a pattern of
    images. A folder and a pattern of clips stand for all of them, in natural order; one that is named twice counts once.

    Raises InputError if the words are images of one folder, as a shell makes them of a pattern.
    """
    groups = [_clips_of(word) for word in words]
    if len(groups) == 1 and groups[0] is None:
        return None
    _refuse_frames(words)
    known: dict[str, Entry] = {}
    for word, group in zip(words, groups, strict=True):
        for clip in [word] if group is None else group:
            known.setdefault(absolute(clip), Entry(clip))
    return tuple(known.values())


def _clips_of(word: str) -> list[str] | None:
    """The clips that a folder or a pattern stands for, None if the word is a clip itself."""
    path = Path(os.path.expanduser(word))
    if path.is_dir():
        inner = [] if _images(path.iterdir()) else path.iterdir()
    elif not path.exists() and glob.has_magic(str(path)):
        inner = [Path(name) for name in glob.glob(str(path), recursive=True)]
        inner = [] if _images(inner) else inner
    else:
        return None
    return [str(clip) for clip in sorted(filter(_is_clip, inner), key=natural_order)] or None


def _is_clip(path: Path) -> bool:
    """Whether what lies in a folder of clips is one of them: a video, or a folder of images that is no result."""
    if path.name.startswith("."):
        return False
    if not path.is_dir():
        return path.suffix.lower() in VIDEO_SUFFIXES
    try:
        return _images(path.iterdir()) and not any((path / name).exists() for name in RESULTS)
    except OSError:  # one that may not be read fails alone, with its sentence
        return True


def _images(paths: Iterable[Path]) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir() for p in paths)


def _refuse_frames(words: Sequence[str]) -> None:
    """Raises InputError if two of the words are images in one folder."""
    known: dict[Path, Path] = {}
    for path in map(Path, words):
        if path.suffix.lower() in IMAGE_SUFFIXES and (other := known.setdefault(path.parent, path)) != path:
            raise InputError(
                f"{other} and {path.name} are images of one folder. If they are frames of a clip, name the folder, or write a "
                f"pattern in quotes: '{path.parent / f'*{path.suffix}'}'. If each is a clip of its own, name them in a --list."
            )


def absolute(path: str) -> str:
    """A path that means the same in every working directory; links are not followed."""
    return os.path.abspath(os.path.expanduser(path))


def read_list(file: str | Path) -> tuple[Entry, ...]:
    """The clips in a CSV file: clip, first_mask and names in columns of these names, or in this order where there is no header.
    All but the clip may be left out. Paths are relative to the file's folder.

    Raises InputError, with the line, for what is no such table and for a clip that is listed twice.
    """
    path, known = Path(os.path.expanduser(file)), {}
    rows = _rows(path)
    header = COLUMNS
    if rows and not {*COLUMNS}.isdisjoint(map(str.lower, rows[0][1])):
        header = tuple(map(str.lower, rows.pop(0)[1]))
        if "clip" not in header:
            raise InputError(f"{path} has no column 'clip', only {', '.join(header)}. Expected {', '.join(COLUMNS)}.")
        if unknown := [name for n, name in enumerate(header) if name not in COLUMNS or name in header[:n]]:
            raise InputError(f"{path} has a column {unknown[0]!r}. Expected {', '.join(COLUMNS)}, each once.")
    for line, cells in rows:
        entry = _entry(path, line, header, cells)
        if (other := known.setdefault(absolute(entry.clip), entry)) is not entry:
            raise InputError(f"{entry.place}, names {entry.clip}, and so does {other.place}. List each clip once.")
    if not known:
        raise InputError(f"{path} lists no clip. Expected a path a line.")
    return tuple(known.values())


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its line. Excel separates by semicolons in many countries."""
    rows, line = [], 0
    try:
        text = read_text(path)
        first = text.lstrip().split("\n", 1)[0]
        separator = next((s for s in ";\t" if first.lower().startswith(f"clip{s}")), ",")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for cells in reader:
            cells, line = [cell.strip() for cell in cells], line + 1
            rows += [(line, cells)] if any(cells) else []
            line = reader.line_num
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a table of clips ({error}). Expected CSV in UTF-8, a clip a line."
        ) from error
    except csv.Error as error:
        raise InputError(
            f"{path}, line {line + 1}, is no CSV ({error}). Put a path with quotes or commas in double quotes."
        ) from error
    return rows


def _entry(path: Path, line: int, header: tuple[str, ...], cells: list[str]) -> Entry:
    place = f"{path}, line {line}"
    if len(cells) > len(header):
        raise InputError(
            f"{place}, has {len(cells)} values, expected at most {len(header)} ({', '.join(header)}). "
            "Put a path with commas in double quotes."
        )
    given = {name: str(path.parent / os.path.expanduser(cell)) for name, cell in zip(header, cells, strict=False) if cell}
    if "clip" not in given:
        raise InputError(f"{place}, names no clip. Expected its path.")
    return Entry(**given, place=place)
