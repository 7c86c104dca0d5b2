"""What fits: weights that do not are refused, work that does not is halved, and memory that the CPU frees is kept."""

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vidseg_core.common import InputError
from vidseg_core.models.registry import Model
from vidseg_core.models.weights import STEMS, files, variant

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """From now on this process keeps the main memory that it frees. A pass on the CPU takes and frees the same tens of
    megabytes hundreds of times; by default glibc returns them and gets them anew, zeroed page by page, and in Dask's workers
    still more often. Does nothing without glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check_memory(folder: Path, model: Model, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError if the weights alone do not fit into the free memory of `device` (cpu or cuda)."""
    half, need = dtype.itemsize == 2, 0.0
    for part in STEMS:
        stored = sum(f.stat().st_size for f in files(folder, part, half) if f.is_file())
        if part == "text_encoder":  # always runs on the CPU
            stored *= device.type == "cpu"
        exact = part in ("text_encoder", "vae")  # float32 whatever is asked for
        need += stored * (4 if exact else dtype.itemsize) / (2 if variant(folder, part, half) else 4)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        import psutil

        free = psutil.virtual_memory().available
    else:
        return
    if need > free:
        raise InputError(
            f"the weights of {model.name} take {need / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')}, and {device} has "
            f"{free / 1e9:.1f} GB free: take half precision (--dtype float16), --offload, another --device, or 'tiny'"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch reports a full memory: CUDA has a type of its own, MPS and the CPU only a text."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


TOO_SMALL = (
    "the device's memory is too small for one pass: take a smaller working size (--size), half precision "
    "(--dtype float16), --offload, the direct strategy (--strategy direct), or a shorter window for a video model"
)


@contextmanager
def memory_checked() -> Iterator[None]:
    """Out of memory inside the block, where nothing is left to divide, raises the InputError that names the remedies."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(TOO_SMALL) from error


class Pieces:
    """How much one pass may hold on a device. `limit` sinks when memory runs out and stays there for later windows."""

    def __init__(self):
        self.limit: int | None = None

    def run(self, count: int, size: int, work: Callable[[slice], Any]) -> Iterator[Any]:
        """Yield `work(slice)` for consecutive slices of `count` things, `size` at most in each.

        If a slice does not fit into memory it is halved and done again. Raises InputError when a single thing does not fit.
        """
        start = 0
        while start < count:
            step = min(size, self.limit or size)
            try:
                result = work(slice(start, min(start + step, count)))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                failed = min(step, count - start)
            else:
                start += step
                yield result
                continue
            self._halve(failed)

    def _halve(self, failed: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if failed == 1:
            raise InputError(TOO_SMALL)
        if self.limit is None:
            warnings.warn(f"out of memory with {failed} images in a pass: halved, and halved again if need be", stacklevel=3)
        self.limit = failed // 2
