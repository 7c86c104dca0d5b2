"""Options that commands share, and how options that are not plain values are read."""

import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.models.registry import MODELS
from vidseg_core.settings import Settings


class Version(Action):
    """Looked up only when it is asked for."""

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        """Print it and end."""
        from vidseg_core.io.provenance import PACKAGES, installed_version

        print(f"vidseg {installed_version(PACKAGES[0])}")
        parser.exit()


def add_settings(add: Callable) -> None:
    """What `segment` and `evaluate` take; `add` is a parser's `add_argument`."""
    add("--model", default="tiny", metavar="NAME", help=f"{', '.join(MODELS)}, a folder that diffusers saved, or a hub id")
    add("--segments", type=int, metavar="N", help="merge the clusters into N segments (default: as many as their tree "
        "suggests)")  # fmt: skip
    add("--clusters", type=int, metavar="K", help="clusters of K-means (default: 20)")
    add("--reference", action="store_true", help="all settings as the paper's code has them, quirks included")
    add("--settings", metavar="FILE", help="settings from a run.json; other options override them")
    add("--seed", type=int, metavar="N", help="the only source of randomness (default: 0)")
    add("--device", metavar="NAME", help="cuda, mps or cpu (default: the first that is available)")


def add_segment(add: Callable) -> None:
    """What `segment` takes."""
    add("clip", metavar="CLIP", nargs="*", help="a video (mp4, webm, mov, avi, gif), a folder of images, or a glob pattern in "
        "quotes; several, or a folder or a pattern of clips, get a folder each in DIR, and a table, index.csv")  # fmt: skip
    add("--list", metavar="FILE", help="the same from a CSV file, a clip a line: its path, its first mask, its names (the last "
        "two may be left out), relative to the file")  # fmt: skip
    add("--out", metavar="DIR", help="where to write (default: outputs/NAME-OF-CLIP)")
    add("--overwrite", action="store_true", help="replace the result of an earlier run, and discard an unfinished one")
    add("--resume", action="store_true", help="continue an unfinished run after its last complete window, and with the clips "
        "that are missing")  # fmt: skip
    add_settings(add)
    add_masks(add)
    add("--names", metavar="FILE", help="names of the label numbers: a JSON object, or a text file with one a line")
    add("--frames", default="0:", metavar="START:STOP", help="which frames, counted from 0 (default: all)")
    add("--stride", type=int, default=1, metavar="N", help="take every Nth frame")
    add("--size", metavar="WxH", help="working size (default: near the model's native one); results have the clip's size")
    add("--strategy", choices=("direct", "guided", "reference"), help="stage 4: direct = one step, guided = the paper's "
        "schedule, far slower, reference = its scores too (default: the model's)")  # fmt: skip
    add("--window", type=int, metavar="N", help="frames that are segmented together (default: 14)")
    add("--prompt", metavar="TEXT", help="text for image models (default: none, as in the paper)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="precision (default: float16 on cuda, else float32)")
    add("--offload", action="store_true", help="keep weights in main memory and move each part to the device while it runs")
    add_workers(add)


def add_workers(add: Callable) -> None:
    """Who computes, for `segment` and `evaluate`."""
    add("--workers", type=int, default=0, metavar="N", help="spread the work over N processes, one a GPU where there are GPUs: "
        "of many clips a clip each, of one clip its windows")  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="spread it over this Dask cluster, such as tcp://host:8786")
    add("--threads", type=int, metavar="N", help="threads of each process (default: torch's choice; 1 with --workers)")


def add_masks(add: Callable) -> None:
    """The masks that `segment` is given."""
    add("--first-mask", metavar="FILE", help="mask of the first frame: class numbers, 255 = void; the result has these "
        "classes. A PNG, or outlines in a JSON file of labelme or COCO")  # fmt: skip
    add("--mask", action="append", default=[], metavar="FRAME=FILE", help="mask of any frame, counted from 0 among those "
        "taken: adds its classes and corrects mistakes, from its window on; may be repeated")  # fmt: skip


def export(options: Namespace) -> None:
    """Write a finished run's masks as one file for other tools."""
    from vidseg_core.io.export import export_run

    print(export_run(Path(options.folder), options.out and Path(options.out), options.overwrite))


def add_export(parser: ArgumentParser) -> None:
    """What `export` takes."""
    parser.set_defaults(run=export)
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--format", choices=("coco",), default="coco", help="coco (the default): one JSON file with exact "
        "masks, which Datumaro converts for CVAT or VOC; needs pycocotools")  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="where to write (default: RUN-coco.json, beside the folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")


def mask_files(first: str | None, others: Sequence[str]) -> dict[int, str]:
    """Files of masks by their frames, from --first-mask and the words FRAME=FILE of --mask."""
    files = {} if first is None else {0: first}
    for word in others:
        number, equals, path = word.partition("=")
        if not (equals and path and number.isascii() and number.isdecimal()):
            raise InputError(f"--mask {word!r} does not name a frame and its mask: write FRAME=FILE, such as 57=later.png")
        if int(number) in files:
            also = " (--first-mask is that of frame 0)" if first is not None and int(number) == 0 else ""
            raise InputError(f"--mask {word!r} is a second mask of frame {int(number)}{also}: give one")
        files[int(number)] = path
    return files


def num_threads(options: Namespace) -> int | None:
    """Threads of torch in each process, None for its own choice."""
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads}: a process needs 1 or more")
    return options.threads or (1 if options.workers else None)


def results_folder(options: Namespace) -> Path:
    """Where the results of many clips go."""
    from vidseg_core.io.resume import default_folder

    if not options.out and not options.list and len(options.clip) > 1:
        raise InputError(f"{len(options.clip)} clips need a folder for their results: name it with --out DIR")
    return Path(options.out or default_folder(options.list or options.clip[0]))


def frame_range(text: str) -> tuple[int, int | None]:
    """Start and stop of `--frames START:STOP`."""
    start, colon, stop = text.partition(":")
    if not (colon and (start or "0").isdecimal() and (stop or "0").isdecimal()):
        raise InputError(f"--frames {text!r} is not a range: write START:STOP, such as 0:48 or 100:")
    return min(int(start or 0), sys.maxsize), min(int(stop), sys.maxsize) if stop else None


def working_size(text: str) -> tuple[int, int]:
    """(height, width) of `--size WIDTHxHEIGHT`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"--size {text!r} is not a size: write WIDTHxHEIGHT, such as 320x240")
    return int(height), int(width)


def read_settings(options: Namespace, masked: bool) -> Settings:
    """Settings of a file, of the paper or the default ones, and the options that stand beside it; `masked`: for a clip with a
    first mask."""
    base = _base_settings(options)
    if masked and isinstance(base.context.num_segments, int):  # for a run without a mask
        base = replace(base, context=replace(base.context, num_segments="auto"))
    size = None if options.size is None else working_size(options.size)
    context = _given(base.context, num_clusters=options.clusters, num_segments=options.segments)
    parts = {"condition": _given(base.condition, prompt=options.prompt), "context": context,
             "upsample": _given(base.upsample, strategy=options.strategy)}  # fmt: skip
    return replace(base, **parts, **_known(seed=options.seed, working_size=size, window=options.window))


def _base_settings(options: Namespace) -> Settings:
    from vidseg_core.io.files import read_json
    from vidseg_core.io.versions import current_settings
    from vidseg_core.models.weights import resolve

    if options.settings and options.reference:
        raise InputError("--reference and --settings both determine all settings: give one of them")
    if options.settings:
        data = read_json(Path(options.settings), "--settings takes a run.json")
        return Settings.from_dict(current_settings(data.get("settings", data) if isinstance(data, dict) else data))
    if options.reference:
        from vidseg_core.paper import reference_settings

        return reference_settings(resolve(options.model))
    return Settings()


def _given(part: Any, **options: Any) -> Any:
    return replace(part, **_known(**options))


def _known(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
