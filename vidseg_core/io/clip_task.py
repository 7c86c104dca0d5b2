"""One clip of many: what a worker is told, what it does, and what it answers."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.io.annotations import given_masks
from vidseg_core.io.clip_list import Entry, absolute
from vidseg_core.io.files import UnfinishedFolder, read_json
from vidseg_core.io.job import Job, ModelError, say
from vidseg_core.io.masks import read_names
from vidseg_core.io.provenance import differences
from vidseg_core.io.resume import Complete, Fresh, decide, inspect
from vidseg_core.io.run import Bars, Tick, run_job
from vidseg_core.io.video import Clip, image_files, open_clip
from vidseg_core.models.weights import resolve
from vidseg_core.settings import Settings

FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk that is full is so for all clips."""
PATIENCE = 30
"""Seconds that a folder is waited for which another process is writing: a worker may outlive the command that was killed."""


@dataclass(frozen=True)
class Plan:
    """What is the same for all clips. `settings` are those without and with a first mask, `taken` start, stop and stride of the
    frames, `how` model, device, dtype and offload; `words`, how it was said, is for the records only."""

    settings: tuple[Settings, Settings]
    taken: tuple[int, int | None, int] = (0, None, 1)
    how: tuple[str, str | None, str | None, bool] = ("tiny", None, None, False)
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False
    words: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A clip as it was named, for the record; its files by whole paths, as a worker may be at work elsewhere; and the folder of
    its result."""

    entry: Entry
    files: Entry
    folder: Path

    @classmethod
    def of(cls, entry: Entry, folder: Path) -> "Task":
        """With paths as they are in this process."""
        paths = {name: path and absolute(path) for name, path in vars(entry).items() if name != "place"}
        return cls(entry, replace(entry, **paths), folder)


@dataclass(frozen=True)
class Outcome:
    """What became of a clip: `error` says why there is no result, "" if there is one; `worked`: it was not there before;
    `ends`: no other clip would do better; `remarks`: what was to be told on the way."""

    error: str = ""
    worked: bool = True
    ends: bool = False
    remarks: tuple[str, ...] = ()


def refuse_own_input(target: Path, *inputs: str | None) -> None:
    """Raises InputError if what a run reads lies in the folder that its result would replace."""
    for path in inputs:
        if path and Path(absolute(path)).resolve().is_relative_to(target.resolve()):
            raise InputError(f"{path} lies in {target}, which the result would replace: choose another --out")


def refuse_other_plan(plan: Plan, task: Task) -> None:
    """Raises InputError if what is there of a clip has other settings, another model or other frames than are wanted now. What
    can't be read is the clip's own fault, and told when it is its turn."""
    folder = UnfinishedFolder(task.folder, plan.overwrite)
    try:
        there = inspect(folder)
        if isinstance(there, Fresh):
            return
        record = there.record if isinstance(there, Complete) else there.state.record
        model = resolve(plan.how[0])
        wanted = {"model": model.name, "settings": plan.settings[bool(task.entry.first_mask)].resolve(model).to_dict()}
        other = differences(record, wanted) or _other_frames(plan, task, record)
    except (InputError, OSError, LookupError, TypeError, AttributeError):
        return
    if other:
        raise InputError(
            f"{task.folder} was made with {other}. Give what it was made with, choose another --out, or add --overwrite."
        )


def _other_frames(plan: Plan, task: Task, record: dict[str, Any]) -> str:
    """How the frames that are wanted differ from a record's, in words; if these differ only in form, the clip tells."""
    said = differences(record["input"], {name: plan.words[name] for name in ("frames", "stride")})
    indices = open_clip(task.files.clip, *plan.taken).indices if said else ()
    return said if said and record["frames"] != [indices[0], indices[-1], indices.step] else ""


def segment_clip(plan: Plan, task: Task) -> Outcome:
    """`attempt`, in a worker. One whose worker died is made again: it goes on, except where all is to be made anew."""
    remarks: list[str] = []
    return replace(attempt(plan, task, _unseen, remarks.append), remarks=tuple(remarks))


@contextmanager
def _unseen(total: int, finished: int) -> Iterator[Tick]:
    yield lambda stage, frames: None


def attempt(plan: Plan, task: Task, bars: Bars, tell: Callable[[str], None]) -> Outcome:
    """Segment a clip, or say why it can't be."""
    import torch

    threads = torch.get_num_threads()  # a run that goes on sets what it was begun with
    try:
        return Outcome(worked=_segment(plan, task, bars, tell))
    except (InputError, OSError) as error:
        ends = isinstance(error, ModelError) or getattr(error, "errno", None) in FULL
        return Outcome(f"{task.entry.place}: {error}".removeprefix(": "), ends=ends)
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps what is raised while a class is made
            raise KeyboardInterrupt from error
        return Outcome(f"{type(error).__name__}: {error} (a fault of the program; segment this clip alone to see where)")
    finally:
        torch.set_num_threads(threads)


def _segment(plan: Plan, task: Task, bars: Bars, tell: Callable[[str], None]) -> bool:
    """Whether there was something left to do."""
    folder = UnfinishedFolder(task.folder, plan.overwrite)
    record = folder.folder / "run.json"
    if plan.resume and record.exists() and _is_finished(plan, task, folder, read_json(record, "make the run anew")):
        return False
    clip = open_clip(task.files.clip, *plan.taken)
    # without --overwrite there is nothing but what a task of this command left when its worker died
    again = plan.resume or not plan.overwrite
    job, until = _job(plan, task, clip, tell), time.monotonic() + PATIENCE
    while True:
        try:
            return run_job(job, folder, again and (folder.state.exists() or record.exists()), bars) is not None
        except InputError as error:
            if not isinstance(error.__cause__, BlockingIOError) or time.monotonic() > until:
                raise
        time.sleep(1)


def _is_finished(plan: Plan, task: Task, folder: UnfinishedFolder, record: Any) -> bool:
    """Whether a result is the one that is wanted, without decoding the clip: what has its hash has its frames."""
    try:
        if any(record["input"][name] != plan.words[name] for name in ("frames", "stride")):
            return False
        (first, last, step), path = record["frames"], Path(task.files.clip)
        clip = Clip(path, (0, 0), 0.0, range(first, last + 1, step), image_files(path))
        return isinstance(decide(folder, _job(plan, task, clip).request(), True), Complete)
    except (InputError, OSError, LookupError, TypeError, ValueError):
        return False


def _job(plan: Plan, task: Task, clip: Clip, tell: Callable[[str], None] = say) -> Job:
    entry, files = task.entry, task.files
    given = {0: files.first_mask} if files.first_mask else {}
    masks, names = given_masks(given, clip, None if files.names is None else read_names(files.names))
    words = {"clip": entry.clip, **plan.words, "first_mask": entry.first_mask, "mask": [], "names": entry.names}
    return Job(clip, plan.settings[bool(masks)], masks, names, *plan.how, words, plan.threads, tell)
