"""Used everywhere: the exception for wrong input, and the types of frames and label maps."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped, UInt8

VOID = 255
"""Label of pixels and cells that belong to no class."""
Frame = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "H W"]


class InputError(ValueError):
    """The user gave a wrong input. The text is one or two sentences: the value, what was expected, and the remedy.

    The command line prints the text alone and exits with status 2; every other exception is a bug.
    """


def natural_order(path: Path) -> tuple[list[int | str], str]:
    """A key to sort files by: frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))], str(path)


def finite(values: Shaped[Any, "..."], what: str, dtype: Any) -> Shaped[Any, "..."]:
    """A tensor as it is. Raises InputError if a value in it is NaN or infinite; `dtype` is what the model computes in."""
    if bool(values.isfinite().all()):
        return values
    dtype = str(dtype).removeprefix("torch.")
    remedy = "give --dtype float32, or bfloat16, since float16 overflows with some models and cards"
    if dtype == "float32":
        remedy = "that is as exact as --dtype float32 (or bfloat16) gets, so the weights may be damaged: load the model anew"
    raise InputError(f"{what} came out as NaN or infinite in {dtype}: {remedy}")


def enlarge(cells: Shaped[Any, "*n h w"], size: tuple[int, int]) -> Shaped[Any, "*n H W"]:
    """Coarse maps at `size` = (H, W), nearest neighbour: every pixel shows the cell that its centre lies in. NumPy or torch."""
    rows, columns = ((2 * np.arange(n) + 1) * c // (2 * n) for n, c in zip(size, cells.shape[-2:], strict=True))
    return cells[..., rows[:, None], columns]


def count_blends(mask: Labels) -> tuple[int, int]:
    """How many of a mask's values (0..255) between the least and the greatest are blends, and how many there are: at most of
    the pixels of a blend, one neighbour has a lower value and another a higher one."""
    from scipy.ndimage import maximum_filter, minimum_filter

    amid = (minimum_filter(mask, 3) < mask) & (mask < maximum_filter(mask, 3))
    pixels, blended = (np.bincount(part.ravel(), minlength=VOID + 1)[np.unique(mask)[1:-1]] for part in (mask, mask[amid]))
    return int(np.count_nonzero(2 * blended > pixels)), len(pixels)
