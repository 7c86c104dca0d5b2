"""What commands take on the command line, beside what one of them alone does; and the words of it that are not plain values."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from vidseg_core.common import InputError
from vidseg_core.models.registry import MODELS


def add_settings(add: Callable) -> None:
    """What `segment` and `evaluate` take; `add` is a parser's `add_argument`."""
    add("--model", default="tiny", metavar="NAME", help=f"{', '.join(MODELS)}, a folder that diffusers saved, or a hub id")
    add("--segments", type=int, metavar="N", help="merge the clusters to N segments (default: as many as the tree of merges "
        "suggests)")  # fmt: skip
    add("--clusters", type=int, metavar="K", help="clusters of K-means (default: 20)")
    add("--reference", action="store_true", help="all settings as the paper's code has them, quirks included")
    add("--settings", metavar="FILE", help="settings from a run.json; options given beside it prevail")
    add("--seed", type=int, metavar="N", help="the only source of randomness (default: 0)")
    add("--device", metavar="NAME", help="cuda, mps or cpu (default: the first of these that is there)")


def add_masks(add: Callable) -> None:
    """The masks that `segment` is given."""
    add("--first-mask", metavar="FILE", help="class numbers of the first frame taken, 255 = void: the result has these "
        "classes; a PNG, or outlines in a JSON file of labelme or COCO")  # fmt: skip
    add("--mask", action="append", default=[], metavar="FRAME=FILE", help="the same of any frame, counted from 0 among those "
        "taken; from its window on its classes are known, and what was wrong is corrected; may be repeated")  # fmt: skip


def export(options: Namespace) -> None:
    """Write a finished run's masks as one file for other tools."""
    from vidseg_core.io.export import export_run

    print(export_run(Path(options.folder), options.out and Path(options.out), options.overwrite))


def add_export(parser: ArgumentParser) -> None:
    """What `export` takes."""
    parser.set_defaults(run=export)
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--format", choices=("coco",), default="coco", help="coco (the default): one JSON file with exact "
        "masks, which Datumaro turns into CVAT's or VOC's; needs pycocotools")  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="where to write (default: RUN-coco.json, beside the folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")


def mask_files(first: str | None, others: Sequence[str]) -> dict[int, str]:
    """Files of masks by their frames, from --first-mask and the words FRAME=FILE of --mask."""
    files = {} if first is None else {0: first}
    for word in others:
        number, equals, path = word.partition("=")
        if not (equals and path and number.isascii() and number.isdecimal()):
            raise InputError(f"--mask {word!r} is not a frame and its mask: write FRAME=FILE, such as 57=later.png")
        if int(number) in files:
            also = " (--first-mask is that of frame 0)" if first is not None and int(number) == 0 else ""
            raise InputError(f"--mask {word!r} is a second mask of frame {int(number)}{also}: give one")
        files[int(number)] = path
    return files


def frame_range(text: str) -> tuple[int, int | None]:
    """Start and stop of `--frames START:STOP`."""
    start, colon, stop = text.partition(":")
    if not (colon and (start or "0").isdecimal() and (stop or "0").isdecimal()):
        raise InputError(f"--frames {text!r} is not a range: write START:STOP, such as 0:48 or 100:")
    return int(start or 0), int(stop) if stop else None


def working_size(text: str) -> tuple[int, int]:
    """(height, width) of `--size WIDTHxHEIGHT`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"--size {text!r} is not a size: write WIDTHxHEIGHT, such as 320x240")
    return int(height), int(width)
