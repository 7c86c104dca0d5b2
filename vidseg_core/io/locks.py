"""One process at a time writes a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidseg_core.common import InputError

try:
    import fcntl
except ImportError:  # Windows: there two processes are not kept apart
    fcntl = None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """In this block no other process writes `folder`. Raises InputError if one does, or if it cannot be made."""
    try:
        handle = locked(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}). Choose another --out.") from error
    try:
        yield
    finally:
        os.close(handle) if handle is not None else None


def locked(folder: Path) -> int | None:
    """Make the folder if need be and lock it: the descriptor that holds the lock, which the process's end releases too. None
    where there are no locks. Raises InputError if another process has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        handle = None
        try:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        except FileNotFoundError:  # as below: it was renamed or removed by the process that had it
            pass
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(f"Another process is writing {folder}. Wait for it, or choose another --out.") from error
        except OSError:  # a file system without locks
            return handle
        if handle is not None:
            os.close(handle)
