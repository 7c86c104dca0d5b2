"""The command line: `python -m vidseg_core segment CLIP`. A command imports what it needs when it runs."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.io.console import patient_console
from vidseg_core.io.options import add_export, add_masks, add_settings, export, frame_range, mask_files, working_size
from vidseg_core.settings import Settings

PATHS = ("clip", "out", "first_mask", "names", "settings", "model", "root")
"""Options that name files and folders."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a wrong input (one sentence on stderr), 130 for Ctrl-C."""
    with patient_console():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    for name, value in vars(options).items():
        if name in PATHS and value is not None:  # a shell leaves the ~ in --out=~/x as it is
            setattr(options, name, os.path.expanduser(value))
    try:
        options.run(options)
    except (InputError, OSError) as error:  # a full disk is nobody's mistake, but needs no traceback either
        kept = f" ({_notes(error)})" if _notes(error) else ""
        print(f"vidseg: {error}{kept}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, RuntimeError) as stop:
        # Python 3.11 wraps what is raised while a class is made, as imports do
        if not (isinstance(stop, KeyboardInterrupt) or isinstance(stop.__cause__, KeyboardInterrupt)):
            raise
        exec("")  # else CPython ends by SIGINT, not by our status, if the interrupt passed an exec(), as imports have them
        kept = _notes(stop) or "nothing was written, and what stood there is as it was"
        print(f"\nvidseg: stopped; {kept}", file=sys.stderr)
        return 130
    return 0


def _notes(error: BaseException) -> str:
    """What is kept of the work that an exception ended: whoever knows it adds a note."""
    return "; ".join(getattr(error, "__notes__", ()))


def segment(options: argparse.Namespace) -> None:
    """Segment a clip into a folder: masks/, overlay.mp4, frames.csv, segments.csv, contact_sheet.png, run.json. Stop it at
    will: the same command with --resume goes on."""
    from vidseg_core.io.annotations import given_masks
    from vidseg_core.io.files import UnfinishedFolder
    from vidseg_core.io.masks import read_names
    from vidseg_core.io.progress import show_progress
    from vidseg_core.io.resume import default_folder
    from vidseg_core.io.run import Job, run_job
    from vidseg_core.io.video import open_clip

    files = mask_files(options.first_mask, options.mask)
    options.first_mask = files.get(0)
    settings = read_settings(options)
    clip = open_clip(options.clip, *frame_range(options.frames), options.stride)
    masks, names = given_masks(files, clip, None if options.names is None else read_names(options.names))
    target = Path(options.out or default_folder(options.clip))
    for path in (options.clip, *files.values(), options.names, options.settings):
        if path and Path(path).resolve().is_relative_to(target.resolve()):
            raise InputError(f"{path} lies in {target}, which the result would replace: choose another --out")
    words = {name: getattr(options, name) for name in ("clip", "frames", "stride", "first_mask", "mask", "names")}
    how = (options.model, options.device, options.dtype, options.offload)
    job, folder = Job(clip, settings, masks, names, *how, words), UnfinishedFolder(target, options.overwrite)
    if (done := run_job(job, folder, options.resume, show_progress)) is None:
        print(f"{target} is complete: there is nothing to resume")
        return
    print(f"{done.frames} frames in {sum(done.seconds.values()):.0f} s. Look at {target / 'overlay.mp4'}")
    print("Beside it: masks/, frames.csv, segments.csv, contact_sheet.png, run.json (as --settings, it makes the same masks)")


def evaluate(options: argparse.Namespace) -> None:
    """Score a method on a labelled set: results.csv, results.json and results.md. Stop it at will: the same command goes on."""
    from vidseg_core.cluster.door import Workers
    from vidseg_core.evaluation.datasets import open_dataset
    from vidseg_core.evaluation.evaluate import Evaluation

    settings = read_settings(options)
    dataset = open_dataset(options.dataset, options.root, options.split)
    dataset = dataset.select(options.clips.split(",")) if options.clips else dataset
    root = str(Path(options.root).resolve()) if options.root else ""
    run = Evaluation(dataset, root, options.method, options.model, settings, options.protocol, options.restart)
    if options.protocol == "matched" and settings.context.num_segments is None:
        print("every cluster is a segment, of which most find no class; --segments N merges them first", file=sys.stderr)
    out = Path(options.out or Path("outputs", f"evaluate-{options.dataset}-{options.method}"))
    threads = options.threads or (1 if options.workers else None)
    workers = Workers(options.workers, options.scheduler)
    table = run.run(out, workers, options.device, threads, lambda line: print(line, flush=True))
    print(f"\n{table}\nIn {out}: results.csv, results.json, results.md")


def models(options: argparse.Namespace) -> None:
    """List the models of the registry, what they take, and which are on this machine."""
    from vidseg_core.models.weights import model_table

    print(model_table())
    print("--model also takes a folder that diffusers saved or a hub id OWNER/NAME of these families.")


def read_settings(options: argparse.Namespace) -> Settings:
    """Settings of a file, of the paper or the default ones, and the options that stand beside it."""
    base = _base_settings(options)
    if options.first_mask is not None and isinstance(base.context.num_segments, int):  # for a run without a mask
        base = replace(base, context=replace(base.context, num_segments="auto"))
    size = None if options.size is None else working_size(options.size)
    context = _given(base.context, num_clusters=options.clusters, num_segments=options.segments)
    parts = {"condition": _given(base.condition, prompt=options.prompt), "context": context,
             "upsample": _given(base.upsample, strategy=options.strategy)}  # fmt: skip
    return replace(base, **parts, **_known(seed=options.seed, working_size=size, window=options.window))


def _base_settings(options: argparse.Namespace) -> Settings:
    from vidseg_core.io.files import read_json
    from vidseg_core.io.versions import current_settings
    from vidseg_core.models.weights import resolve

    if options.settings and options.reference:
        raise InputError("--reference and --settings both say what all settings are: give one of them")
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


def _parser() -> argparse.ArgumentParser:
    from vidseg_core.evaluation.options import add_options

    parser = argparse.ArgumentParser("vidseg", description="Training-free video segmentation with diffusion models (VidSeg).")
    parser.add_argument("--version", action=Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_segment(commands.add_parser("segment", help="segment a clip", description=segment.__doc__))
    run = commands.add_parser("evaluate", help="score a method on a labelled set", description=evaluate.__doc__)
    run.set_defaults(run=evaluate, first_mask=None, size=None, strategy=None, window=None, prompt=None)
    add_settings(run.add_argument)
    add_options(run.add_argument)
    add_export(commands.add_parser("export", help="write a run for other tools", description=export.__doc__))
    commands.add_parser("models", help="list the models", description=models.__doc__).set_defaults(run=models)
    return parser


class Version(argparse.Action):
    """Looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and end."""
        from vidseg_core.io.provenance import PACKAGES, installed_version

        print(f"vidseg {installed_version(PACKAGES[0])}")
        parser.exit()


def _add_segment(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=segment)
    add = parser.add_argument
    add("clip", metavar="CLIP", help="a video (mp4, webm, mov, avi, gif), a folder of images, or a glob pattern in quotes")
    add("--out", metavar="DIR", help="where to write (default: outputs/NAME-OF-CLIP)")
    add("--overwrite", action="store_true", help="replace the result of an earlier run, and forget an unfinished one")
    add("--resume", action="store_true", help="go on with an unfinished run behind its last whole window")
    add_settings(add)
    add_masks(add)
    add("--names", metavar="FILE", help="names of the numbers, a JSON object or a text file with one a line")
    add("--frames", default="0:", metavar="START:STOP", help="which frames, counted from 0 (default: all)")
    add("--stride", type=int, default=1, metavar="N", help="take every Nth frame")
    add("--size", metavar="WxH", help="working size (default: near the model's native one); results have the clip's size")
    add("--strategy", choices=("direct", "guided", "reference"), help="stage 4: direct = one step, guided = the paper's "
        "schedule, far slower, reference = its scores too (default: the model's)")  # fmt: skip
    add("--window", type=int, metavar="N", help="frames that are segmented together (default: 14)")
    add("--prompt", metavar="TEXT", help="what image models are told (default: nothing, as in the paper)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="precision (default: float16 on cuda, else float32)")
    add("--offload", action="store_true", help="keep weights in main memory and move each part to the device while it runs")
