"""The command `segment`: one clip into a folder, or many into a folder each. It imports what it needs when it runs."""

import sys
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vidseg_core.common import InputError
from vidseg_core.io.options import frame_range, mask_files, num_threads, read_settings, results_folder
from vidseg_core.models.registry import MODELS

if TYPE_CHECKING:
    from vidseg_core.cluster.door import Workers
    from vidseg_core.io.clip_list import Entry


def segment(options: Namespace) -> int | None:
    """Segment a clip into a folder: masks/, overlay.mp4, frames.csv, segments.csv, contact_sheet.png, run.json; many clips into
    a folder each, beside a table, index.csv, and a sheet of their first frames, index.png. Stop it at any time: the same
    command with --resume continues."""
    from vidseg_core.cluster.door import Workers
    from vidseg_core.io.clip_list import named_entries, read_list

    if bool(options.list) == bool(options.clip):
        raise InputError("say what to segment, either by CLIP, one or several, or by a table of clips, --list FILE")
    entries = read_list(options.list) if options.list else named_entries(options.clip)
    workers, files = Workers(options.workers, options.scheduler), mask_files(options.first_mask, options.mask)
    if entries is not None:
        return _segment_all(options, entries, workers)
    options.clip, options.first_mask = options.clip[0], files.get(0)
    return _segment_one(options, files, workers)


def _segment_one(options: Namespace, files: dict[int, str], workers: "Workers") -> None:
    from vidseg_core.io.annotations import given_masks
    from vidseg_core.io.clip_task import refuse_own_input
    from vidseg_core.io.files import UnfinishedFolder
    from vidseg_core.io.job import Job
    from vidseg_core.io.masks import read_names
    from vidseg_core.io.progress import show_progress
    from vidseg_core.io.resume import default_folder
    from vidseg_core.io.run import run_job
    from vidseg_core.io.video import open_clip

    settings, threads = read_settings(options, 0 in files), num_threads(options)
    clip = open_clip(options.clip, *frame_range(options.frames), options.stride)
    masks, names = given_masks(files, clip, None if options.names is None else read_names(options.names))
    target = Path(options.out or default_folder(options.clip))
    refuse_own_input(target, options.clip, *files.values(), options.names, options.settings)
    words = {name: getattr(options, name) for name in ("clip", "frames", "stride", "first_mask", "mask", "names")}
    how = (options.model, options.device, options.dtype, options.offload)
    job = Job(clip, settings, masks, names, *how, words, threads, workers=workers)
    folder = UnfinishedFolder(target, options.overwrite)
    if (done := run_job(job, folder, options.resume, show_progress)) is None:
        print(f"{target} is complete: there is nothing to resume")
        return
    seconds = f"{sum(done.seconds.values()):.0f} s{' of all workers together' if workers else ''}"
    print(f"{done.frames} frames in {seconds}. Look at {target / 'overlay.mp4'}")
    print("Beside it: masks/, frames.csv, segments.csv, contact_sheet.png, run.json (as --settings, it makes the same masks)")


def _segment_all(options: Namespace, entries: tuple["Entry", ...], workers: "Workers") -> int:
    """Exit status 1 if a clip failed."""
    from vidseg_core.cluster.door import open_executor
    from vidseg_core.io.batch import Batch
    from vidseg_core.io.clip_list import absolute
    from vidseg_core.io.clip_task import Plan, refuse_own_input
    from vidseg_core.models.weights import resolve

    if options.first_mask or options.mask:
        raise InputError("--first-mask and --mask are of one clip. Give first masks of several by --list FILE, a line a clip.")
    settings = tuple(read_settings(options, masked) for masked in (False, True))
    for part in settings:
        part.resolve(resolve(options.model))  # what no clip can have is refused at once
    taken, words = (*frame_range(options.frames), options.stride), {"frames": options.frames, "stride": options.stride}
    model = options.model if options.model in MODELS or not Path(options.model).is_dir() else absolute(options.model)
    how = (model, options.device, options.dtype, options.offload)
    plan = Plan(settings, taken, how, num_threads(options), options.resume, options.overwrite, words)
    named = [replace(entry, names=entry.names or options.names) for entry in entries]
    batch = Batch(plan, named, results_folder(options))
    for task in batch.tasks:
        refuse_own_input(task.folder, options.settings)
    failed = batch.run(partial(open_executor, workers) if workers else nullcontext)
    print(f"{len(entries) - len(failed)} of {len(entries)} clips are in {batch.out}: look at index.png, read index.csv")
    for name, reason in failed:
        print(f"vidseg: {name} failed. {reason}", file=sys.stderr)
    return 1 if failed else 0
