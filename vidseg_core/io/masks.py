"""Label maps on disk: masks, their colours, the names of labels.

A label map is int [H, W] with class numbers 0..254, and 255 for void (not labelled).
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image, ImageOps

from vidseg_core.common import VOID, InputError, count_blends
from vidseg_core.io.files import read_text, replacing

Labels = Integer[np.ndarray, "H W"]
Palette = UInt8[np.ndarray, "256 3"]
TAB10 = ("1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf")
"""matplotlib's ten colours, written out so that reading a mask does not load matplotlib."""

MANY = 32
"""So many values in a drawn grey mask are worth a look, even without gaps between them."""


def _palette() -> UInt8[np.ndarray, "256 3"]:
    """matplotlib's tab10, then always the colour that is farthest from all before it; void, the last, is black."""
    steps = np.linspace(0.1, 0.95, 10)
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    table = [np.zeros(3), *(np.array(list(bytes.fromhex(colour))) / 255 for colour in TAB10)]
    distance = np.min([np.linalg.norm(candidates - colour, axis=1) for colour in table], axis=0)
    while len(table) < 256:
        table.append(candidates[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(candidates - table[-1], axis=1))
    return (np.array(table[1:] + table[:1]) * 255).round().astype(np.uint8)


PALETTE = _palette()
"""RGB of each label number, uint8 [256, 3]; void is black."""


def read_mask(path: str | Path) -> Int64[np.ndarray, "H W"]:
    """Class numbers of a palette or grey image, int64 [H, W] in 0..255; 255 is void. Alpha is ignored.

    RGB counts as grey if its channels are equal. Raises InputError for colour-coded masks, JPEG, numbers above 255, several
    images in a file, and for one that is drawn by transparency alone.
    """
    return _read_values(Path(path))[0]


def read_given_mask(path: str | Path) -> Int64[np.ndarray, "H W"]:
    """As `read_mask`, for a mask that a person drew. Raises InputError for soft edges too, whose values are no class numbers;
    where white may be meant as a class, a line on stderr says that 255 is void."""
    mask, palette = _read_values(Path(path))
    shown = _suspicious(Path(path), mask, palette)
    if shown and palette is None and mask.max() == VOID:
        print(f"{path} has the values {shown}: 255 is void, so give what is to be a class another number", file=sys.stderr)
    return mask


def refuse_soft_edges(path: Path) -> None:
    """Raises InputError if the edges in a mask's file are soft, or if it is no mask."""
    _suspicious(path, *_read_values(path))


def refuse_other_palettes(paths: Iterable[Path]) -> None:
    """Raises InputError if a colour is one class in one of the masks and another in the next, as where a program made a palette
    of its own for each. What a run wrote has the run's colours, and agrees with all."""
    known: dict[bytes, tuple[set[int], Path]] = {}
    for path in paths:
        mask, palette = _read_values(path)
        here: dict[bytes, set[int]] = {}
        used = np.setdiff1d(mask, [VOID])
        if palette is None or (palette[used] == PALETTE[used]).all():  # a run wrote it, whose numbers are those of its own mask
            continue
        for number in used.tolist():
            here.setdefault(palette[number].tobytes(), set()).add(number)
        for colour, numbers in here.items():
            before, first = known.setdefault(colour, (numbers, path))
            if before.isdisjoint(numbers):
                raise InputError(
                    f"#{colour.hex()} is class {min(before)} in {first}, but class {min(numbers)} in {path}: their palettes "
                    "differ, and the numbers count, not the colours. Save both with one palette."
                )


def _suspicious(path: Path, mask: Labels, palette: Palette | None) -> str:
    """The values of a mask in words if they may be no class numbers, else nothing. Raises InputError for soft edges."""
    values = np.unique(mask)
    coloured = palette is not None and (palette[values] != palette[values, :1]).any()
    if coloured or (not (np.diff(values[values < VOID]) > 1).any() and len(values) < MANY):
        return ""
    shown = ", ".join(map(str, values if len(values) < 8 else [*values[:4], "...", *values[-2:]]))
    blends, between = count_blends(mask if palette is None else palette[mask, 0])
    if 0 < between <= 2 * blends:
        raise InputError(
            f"{path} has soft edges: its values are {shown}, but class numbers do not blend, and 255 is void. Draw it without "
            "smoothing, resize it by nearest neighbour, and save the classes as 0, 1, 2 and so on."
        )
    return shown


def _read_values(path: Path) -> tuple[Int64[np.ndarray, "H W"], Palette | None]:
    """The values of a mask's file, upright, and the colour of each if they are places in a palette."""
    try:
        with Image.open(path) as image:
            kind, pages = image.format, getattr(image, "n_frames", 1)
            image = ImageOps.exif_transpose(image)
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3) if image.mode == "P" else None
            values = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a mask ({error}). Expected a palette or grey PNG.") from error
    if kind in ("JPEG", "MPO"):
        raise InputError(f"{path} is a JPEG, which blurs class numbers. Save the mask as a palette or grey PNG.")
    if pages > 1:
        raise InputError(f"{path} holds {pages} images, expected one. Save the mask of each frame as a file of its own.")
    return _class_numbers(values, path), palette if palette is None else np.resize(palette, (256, 3))


def _class_numbers(values: np.ndarray, path: Path) -> Int64[np.ndarray, "H W"]:
    """Pixels of any kind of image as class numbers, or InputError."""
    values = values.reshape(*values.shape[:2], -1)
    alpha = values[..., -1] if values.shape[2] in (2, 4) else values[:1, :1, 0]
    values = values[..., : 3 if values.shape[2] > 2 else 1]
    if (values == values[..., :1]).sum() < np.isfinite(values).sum():
        raise InputError(f"{path} codes classes as colours. Save the class numbers as a palette or grey PNG (255 = void).")
    if values.max() > VOID or values.min() < 0 or (values % 1 != 0).any():
        raise InputError(f"{path} has values {values.min()} to {values.max()}. Expected class numbers 0 to 254, 255 = void.")
    if values.min() == values.max() and alpha.min() < alpha.max():
        raise InputError(
            f"{path} has the value {values.max()} everywhere: it is drawn by its transparency alone. Save the class numbers as "
            "a palette or grey PNG (255 = void)."
        )
    return values[..., 0].astype(np.int64)


def read_names(path: str | Path) -> dict[int, str]:
    """Names of label numbers: a JSON object {"0": "wall", ...} or list, or a text file with the name of number n in line n.

    A .json file must hold JSON, any other may. What has an empty name has none. Raises InputError for a file that is neither,
    for numbers outside 0..255, and for lines that begin with numbers.
    """
    path = Path(path)
    try:
        text = read_text(path)
        if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
            return _json_names(text)
        lines = text.splitlines()
        if numbered := _numbered(lines):
            raise ValueError(f"{numbered[:40]!r} has a number of its own, but line n names number n, from 0")
        return _checked_names([(n, line) for n, line in enumerate(lines) if line.strip()])
    except (OSError, ValueError) as error:
        raise InputError(
            f'{path} cannot be read as names ({error}). Expected JSON such as {{"0": "wall"}}, or a name a line.'
        ) from error


def _numbered(lines: list[str]) -> str:
    """The first line that begins with a number if most do, with a separator as in a table, or counting as in a list."""
    found = [match for line in lines if (match := re.match(r"\s*(\d+)(\s*[:;,=\t]|\s)\s*\S.*", line))]
    numbers = [int(match[1]) for match in found]
    counts = numbers[1:] and numbers[0] < 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    table = all(match[2].strip(" ") for match in found)
    most = 2 * len(found) > sum(bool(line.strip()) for line in lines)
    return found[0][0].strip() if most and (counts or table) else ""


def _json_names(text: str) -> dict[int, str]:
    data = json.loads(text, object_pairs_hook=list)  # pairs, as a dict forgets numbers that occur twice
    if not isinstance(data, list):
        raise ValueError("neither an object nor a list")
    pairs = [item for item in data if isinstance(item, tuple)]
    if words := [number for number, _ in pairs if not re.fullmatch(r"\s*-?[0-9]+\s*", number)]:
        raise ValueError(f"{words[0]!r} is no number")
    return _checked_names([(int(number), name) for number, name in pairs] if pairs else list(enumerate(data)))


def _checked_names(pairs: list[tuple[int, Any]]) -> dict[int, str]:
    numbers = [number for number, _ in pairs]
    if others := [name for _, name in pairs if not isinstance(name, str)]:
        raise ValueError(f"{json.dumps(others[0])[:40]} is not a name")
    if len(set(numbers)) < len(numbers):
        raise ValueError("a number has two names")
    if wrong := [number for number in numbers if not 0 <= number <= VOID]:
        raise ValueError(f"{wrong[0]} is not a label number (0 to {VOID})")
    return {number: name.strip() for number, name in pairs if name.strip()}


def write_mask(path: str | Path, labels: Labels) -> None:
    """Write labels in 0..255 as a palette PNG as VSPW and DAVIS do: the index is the label.

    Raises InputError for labels outside 0..255.
    """
    image = Image.fromarray(as_bytes(labels))
    image.putpalette(PALETTE.tobytes())
    with replacing(path) as partial:
        image.save(partial, format="PNG")


@dataclass(frozen=True)
class MaskFolder:
    """The masks of a run, a file for each frame, read one at a time; iterate as often as need be. `names`: what the files are
    called without their ending, in the order of the frames; () for numbers, 00000 and on."""

    folder: Path
    names: tuple[str, ...] = ()

    def path(self, number: int) -> Path:
        """The file of a frame, counted from 0."""
        return self.folder / f"{self.names[number] if self.names else f'{number:05}'}.png"

    def __iter__(self) -> Iterator[Int64[np.ndarray, "H W"]]:
        if self.names:
            return map(read_mask, map(self.path, range(len(self.names))))
        return map(read_mask, sorted(self.folder.glob("[0-9]*.png"), key=lambda path: int(path.stem)))


def write_masks(masks: MaskFolder, start: int, labels: Integer[np.ndarray, "f H W"]) -> None:
    """Masks of consecutive frames, the first of them number `start`. The folder is made if need be."""
    masks.folder.mkdir(exist_ok=True)
    for n, mask in enumerate(labels, start):
        write_mask(masks.path(n), mask)


def drop_masks(masks: MaskFolder, start: int) -> None:
    """Remove the masks of frames from number `start` on, and what a kill left of files that were being written."""
    kept = {masks.path(n) for n in range(start)}
    for path in [*masks.folder.glob("*.png"), *masks.folder.parent.glob(".*.partial*")]:
        if path not in kept:
            path.unlink()


def as_bytes(labels: Labels) -> UInt8[np.ndarray, "H W"]:
    """A label map as a mask's file has it. Raises InputError for labels outside 0..255."""
    if labels.min() < 0 or labels.max() > VOID:
        raise InputError(f"Labels go from {labels.min()} to {labels.max()}, but a mask holds 0 to 255. Use fewer segments.")
    return labels.astype(np.uint8)
