"""Files and folders that appear whole or not at all."""

import codecs
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.io.locks import locked

STATE = ".state.npz"
WRITTEN = ("overlay.mp4", "segments.csv", "frames.csv", "contact_sheet.png", "run.json", STATE)
"""What a run writes beside masks/*.png: nothing else is ever removed with an old result."""
WORTHLESS = (".DS_Store", "Thumbs.db", "desktop.ini", ".*.partial*")
"""What file browsers and killed processes leave."""
LONGEST = 200
"""Bytes of a folder's name: file systems take 255, and it is longer while it is written."""
UTF8 = {"encoding": "utf-8", "errors": "backslashreplace"}
"""How text is written. A file name may be no UTF-8: Python holds such bytes as lone surrogates, which are written as JSON
writes them, so that a JSON file gives them back."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives another name in the same folder to write to, which replaces `path` at the end, or vanishes on an exception."""
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("r+b") as file:  # or a power failure can leave the new name on an empty file
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A user's text file: UTF-8 with or without a byte-order mark, which editors on Windows write, or UTF-16 with one.

    Raises ValueError for other encodings.
    """
    content = path.read_bytes()
    text = content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    if "\0" in text:
        raise ValueError("not UTF-8")
    return text


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file holds, in UTF-8 with a byte-order mark or without. Raises InputError if it cannot be read, with what
    to do."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): {remedy}") from error


class RunFolder:
    """`with RunFolder(folder) as partial:` write a run into a hidden sibling that becomes `folder` at the end.

    On any exception, an interrupt included, the sibling is removed and what stood at `folder` is untouched. A folder that
    is not empty is refused, and with `overwrite` replaced only if it holds a run.json and nothing that no run writes; a file
    and the working directory are always refused (InputError, at construction). Should the last renaming fail, the old folder
    is put back and the finished sibling stays.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        self.folder = Path(os.path.expanduser(folder)).resolve()
        self.overwrite = overwrite
        self.check()

    def check(self) -> None:
        """Raises InputError for what can't, or may not, be replaced."""
        if len(os.fsencode(self.folder.name)) > LONGEST:
            raise InputError(f"{self.folder} has too long a name: choose one of {LONGEST} bytes at most as --out")
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file, expected a folder to write to. Choose another --out.")
        if os.path.ismount(self.folder):
            raise InputError(f"{self.folder} is a mount point and cannot be replaced. Choose a folder in it as --out.")
        if any(self.folder.iterdir()) and not self.overwrite:
            raise InputError(f"{self.folder} exists. Add --overwrite to replace it, or choose another --out.")
        if reason := self._kept_for():
            raise InputError(f"{self.folder} is not replaced, as it holds {reason}. Choose another --out.")
        if Path.cwd().is_relative_to(self.folder):
            raise InputError(f"{self.folder} is not replaced, as you are in it. Go elsewhere, or choose another --out.")

    def _kept_for(self) -> str:
        """What makes the folder worth keeping, in words; empty for an empty folder and for a run's result."""
        if any(self.folder.iterdir()) and not (self.folder / "run.json").is_file():
            return "no run.json of an earlier run"
        other = unknown_file(self.folder)
        return f"{other.relative_to(self.folder)}, which no run wrote" if other else ""

    def __enter__(self) -> Path:
        self.partial = self.folder.with_name(f".{self.folder.name}.partial-{secrets.token_hex(4)}")
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made ({error.strerror}). Choose another --out.") from error
        return self.partial

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
        else:
            self.publish()

    def publish(self) -> None:
        """Let the sibling become the folder. Raises InputError if it can't; then both are as they were."""
        old = self.partial.with_name(f"{self.partial.name}-old")
        try:
            if self.folder.exists() and self.overwrite and not self._kept_for():  # looked at again: the run took its time
                self.folder.rename(old)
            elif self.folder.exists():
                self.folder.rmdir()  # fails, as it should, if it was filled in the meantime
            self.partial.rename(self.folder)
        except BaseException as error:
            if old.exists() and not self.folder.exists():
                old.rename(self.folder)
            if not isinstance(error, OSError):
                raise
            message = f"The run is complete but cannot be renamed to {self.folder} ({error.strerror}). It is in {self.partial}."
            raise InputError(message) from error
        shutil.rmtree(old, ignore_errors=True)


class UnfinishedFolder(RunFolder):
    """A run that may stop and go on: `with UnfinishedFolder(folder) as run:` gives the hidden sibling .NAME.unfinished.

    It belongs to this process until the end of the block (InputError if another has it). There it stays if it holds `STATE`,
    the file that says what is finished, however the block ends; else it is removed. `publish` makes it the folder.
    What may never be replaced is refused at construction; a run in the folder, without `overwrite`, only by `check`, since
    there may be something to say about it first.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        super().__init__(folder, True)
        self.overwrite = overwrite
        self.partial = unfinished(self.folder)
        self.state = self.partial / STATE
        self.published = False

    def __enter__(self) -> Path:
        try:
            self._handle = locked(self.partial)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made ({error.strerror}). Choose another --out.") from error
        known = self.state.exists() or (self.partial / "masks").is_dir()
        if any(self.partial.iterdir()) and (not known or unknown_file(self.partial)):
            self._release()
            raise InputError(f"{self.partial} is in the way and is not an unfinished run: move it, or choose another --out.")
        self._recover()
        return self.partial

    def _recover(self) -> None:
        """Undo, or complete, what a kill left of `publish`."""
        (self.folder / STATE).unlink(missing_ok=True)
        old = self.partial.with_name(f"{self.partial.name}-old")
        if old.exists() and not self.folder.exists():
            old.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def clear(self) -> None:
        """Forget what is in it. At every moment it is an unfinished run, or none: the state goes first, masks/ last."""
        self.state.unlink(missing_ok=True)
        for path in sorted(self.partial.iterdir(), key=lambda path: path.name == "masks"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def publish(self) -> None:
        """As `RunFolder.publish`. The state goes last, so that a kill before leaves an unfinished run, or a finished one."""
        super().publish()
        self.published = True
        (self.folder / STATE).unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        try:
            if not self.published and not self.state.exists():
                self.clear()
                self.partial.rmdir()
        finally:
            self._release()

    def _release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


def unfinished(folder: Path) -> Path:
    """Where a run into `folder` is until it is complete."""
    return folder.with_name(f".{folder.name}.unfinished")


def unknown_file(folder: Path) -> Path | None:
    """The first file or folder in it that no run wrote, None if there is none."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in WORTHLESS):
            continue
        if path.name == "masks" and path.is_dir() and not path.is_symlink():
            inside = [p for p in path.iterdir() if not any(fnmatch(p.name, pattern) for pattern in WORTHLESS)]
            if others := sorted(p for p in inside if p.suffix != ".png" or not p.is_file()):
                return others[0]
        elif path.name not in WRITTEN or not path.is_file():
            return path
    return None
