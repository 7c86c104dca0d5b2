"""Files and folders that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidseg_core.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives another name in the same folder to write to, which replaces `path` at the end, or vanishes on an exception."""
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class RunFolder:
    """`with RunFolder(folder) as partial:` write a run into a hidden sibling that becomes `folder` at the end.

    On any exception, an interrupt included, the sibling is removed and what stood at `folder` is untouched. A folder that
    is not empty is refused, and with `overwrite` replaced only if it holds a run.json; a file is always refused (InputError,
    at construction). Should the last renaming fail, the old folder is put back and the finished sibling stays.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        self.folder = Path(folder).expanduser().resolve()
        self.overwrite = overwrite
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file, expected a folder to write to. Choose another --out.")
        if os.path.ismount(self.folder):
            raise InputError(f"{self.folder} is a mount point and cannot be replaced. Choose a folder in it as --out.")
        if any(self.folder.iterdir()) and not overwrite:
            raise InputError(f"{self.folder} exists. Add --overwrite to replace it, or choose another --out.")
        if not self._ours():
            raise InputError(f"{self.folder} is not replaced, as it holds no run.json of an earlier run. Choose another --out.")

    def _ours(self) -> bool:
        return not any(self.folder.iterdir()) or (self.folder / "run.json").is_file()

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
            return
        old = self.partial.with_name(f"{self.partial.name}-old")
        try:
            if self.folder.exists() and self.overwrite and self._ours():  # looked at again: the run took its time
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
