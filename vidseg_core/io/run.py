"""Segments a clip onto the disk, window by window: clips of any length, and runs that stopped resume.

What is on disk is finished: first the masks of a window, then the file that says so and holds what the next window needs
(`RunState`). Each is written aside and renamed, so a crash at any moment leaves complete windows; the rest is made
again. Overlay, table and sheet come from the masks at the end; then the folder gets its name.
"""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidseg_core.cluster.door import open_executor
from vidseg_core.common import VOID, InputError
from vidseg_core.io.files import UnfinishedFolder
from vidseg_core.io.frames import TABLE, frame_table, mask_names
from vidseg_core.io.job import Job, models_loaded
from vidseg_core.io.masks import MaskFolder, drop_masks, write_masks
from vidseg_core.io.provenance import run_record
from vidseg_core.io.remarks import tell_device, tell_input, tell_scene
from vidseg_core.io.results import write_run, write_table
from vidseg_core.io.resume import Complete, Fresh, RunState, Unfinished, decide, refuse_gaps, refuse_other
from vidseg_core.io.video import Clip

if TYPE_CHECKING:
    from vidseg_core.pipeline import VidSeg

Tick = Callable[[str, float], None]
"""Called with a stage and how many frames more have passed it."""
Bars = Callable[[int, int], AbstractContextManager[Tick]]
"""Shows how far a run is: (frames, of which are finished) to a context that gives a `Tick`."""


def run_job(job: Job, folder: UnfinishedFolder, resume: bool, bars: Bars) -> RunState | None:
    """Segment a clip into `folder`, going on with what is unfinished there if `resume`; None if nothing was left to do.

    Raises InputError for what can't be segmented, if another process is writing `folder`, and as `decide`. Whole windows are
    kept, whatever ends the run: a note on the exception says how many.
    """
    refuse_result(job.clip)
    request = job.request()
    with folder:
        there = decide(folder, request, resume)
        if isinstance(there, Complete):
            return None
        tell_input(job)
        _rehearse(job, request)
        if isinstance(there, Unfinished):
            refuse_gaps(folder, _masks(job, folder, there.state), there.state.frames)
        loads = models_loaded()
        vidseg, begun = job.load(_threads(job, there)), RunState(0, {}, {}, {})
        record = {**request, **run_record(vidseg.backbone, vidseg.settings)}
        if models_loaded() > loads:
            tell_device(job, record)
        if isinstance(there, Unfinished):
            begun = there.state
            refuse_other(folder, begun.record, record)
            job.tell(f"{begun.frames} frames are done: continuing from there")
        else:
            begun = replace(begun, record={"input": job.words, "masks": _kind_of_names(job.clip), **record})
        try:
            with bars(job.clip.num_frames, begun.frames) as tick:
                with open_executor(job.workers) if job.workers else nullcontext() as vidseg.executor:
                    done = _segment(job, vidseg, folder, begun, tick)
                _write_rest(job, folder, done, tick)
            folder.publish()
        except (KeyboardInterrupt, InputError, OSError) as stop:
            if kept := _kept(folder, begun.record, job.clip.num_frames):
                stop.add_note(kept)
            raise
        return done


def refuse_result(clip: Clip) -> None:
    """Raises InputError if the clip's images are what a run left: its sheet, or its masks."""
    for folder in {folder for path in clip.files for folder in (path.parent, path.parent.parent)}:
        wrote = {folder / "contact_sheet.png", *(folder / "masks").glob("*.png")}
        if (folder / "run.json").is_file() and not wrote.isdisjoint(clip.files):
            raise InputError(f"{clip.source} is what a run left, not a clip: give that of which {folder} is the result")


def _rehearse(job: Job, request: dict[str, Any]) -> None:
    """Write all that a run leaves, for one black frame and elsewhere: what fails at the end would fail here, hours earlier."""
    frame = np.zeros((*job.clip.size, 3), np.uint8)
    names = job.names or {}
    labels = np.resize([number for number in names if 0 <= number <= VOID] or [0], job.clip.size)  # every name in the legend
    with tempfile.TemporaryDirectory() as folder:
        write_masks(MaskFolder(Path(folder, "masks")), 0, labels[None])
        write_run(Path(folder), [frame], job.clip.fps, names, {"input": job.words, **request}, aspect=job.clip.aspect)


def _kind_of_names(clip: Clip) -> str:
    return "named like the frames" if mask_names(clip) else "numbered"


def _masks(job: Job, folder: UnfinishedFolder, state: RunState) -> MaskFolder:
    """Where the masks of an unfinished run lie; one that was begun before masks had names goes on with numbers."""
    named = state.record.get("masks", "numbered") != "numbered"
    return MaskFolder(folder.partial / "masks", mask_names(job.clip) if named else ())


def _threads(job: Job, there: Fresh | Unfinished) -> int | None:
    return there.state.record.get("threads") if isinstance(there, Unfinished) else job.threads


def _segment(job: Job, vidseg: "VidSeg", folder: UnfinishedFolder, done: RunState, tick: Tick) -> RunState:
    """The windows that are missing, each onto the disk as it comes."""
    from vidseg_core.scene import Scene

    masks = _masks(job, folder, done)
    if done.frames:
        drop_masks(masks, done.frames)
    if done.frames == job.clip.num_frames:
        return done
    scene = Scene.from_state(done.scene, vidseg.settings, vidseg.backbone.device) if done.frames else None
    first, names = (None, None) if scene else (job.masks.get(0), job.names)
    later, before = {n: mask for n, mask in job.masks.items() if n and n >= done.frames}, scene and (scene.names, scene.lost)
    rest = replace(job.clip, indices=job.clip.indices[done.frames :])
    for window in vidseg.stream(rest, first, names, tick, scene, later):
        if not done.frames:  # the first of a new run: only now is it clear that there will be one
            folder.clear()
        write_masks(masks, done.frames, window.labels)
        tell_scene(window.scene, before, vidseg.settings, done.frames + len(window.labels), job)
        before = window.scene.names, window.scene.lost
        done = done.after(window)
        done.write(folder.state)
        del window  # or it stays in memory while the next one is made
    return done


def _write_rest(job: Job, folder: UnfinishedFolder, done: RunState, tick: Tick) -> None:
    from vidseg_core.scene import Scene

    names = Scene.from_state(done.scene, job.settings).names
    record = {**done.record, "seconds": {stage: round(t, 3) for stage, t in done.seconds.items()}}
    write_table(folder.partial / TABLE, frame_table(job.clip, _masks(job, folder, done)))
    write_run(folder.partial, job.clip, job.clip.fps, names, record, lambda frames: tick("write", frames), job.clip.aspect)


def _kept(folder: UnfinishedFolder, record: dict[str, Any], total: int) -> str:
    """What is on disk of the run with this record, in words; empty if nothing is."""
    if folder.published:
        return f"{folder.folder} is complete"
    try:
        there = RunState.read(folder.state)
    except InputError:  # nothing yet, or a damaged one of before
        return ""
    if there.record != record:
        return ""
    return f"{there.frames} of {total} frames are done and kept: the same command with --resume continues"
