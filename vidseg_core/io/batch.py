"""Many clips segmented, a folder each, in this process or by an executor's workers: one bad clip does not end the others."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path

from vidseg_core.common import InputError
from vidseg_core.io.clip_list import Entry, absolute
from vidseg_core.io.clip_task import Outcome, Plan, Task, attempt, refuse_other_plan, refuse_own_input, segment_clip
from vidseg_core.io.frames import as_text
from vidseg_core.io.index import DONE, FAILED, OPEN, SHEET, TABLE, Row, finished_row, read_index, write_index, write_sheet
from vidseg_core.io.locks import sole_writer
from vidseg_core.io.progress import ClipProgress
from vidseg_core.io.resume import result_name, unique_name


class Batch:
    """Clips and the folder `out` of their results. Raises InputError for a folder that holds anything else, for one with
    results, unless they are to be replaced or gone on with, and if what is to be gone on with was made in another way."""

    def __init__(self, plan: Plan, entries: Sequence[Entry], out: Path):
        self.plan, self.out = plan, Path(absolute(str(out)))
        earlier = {row["clip"]: row for row in read_index(self.out)}
        if earlier and not (plan.resume or plan.overwrite):
            raise InputError(
                f"{out} holds the results of {len(earlier)} clips. Add --resume to go on with what is missing, --overwrite to "
                "make them anew, or choose another --out."
            )
        folders = result_folders(entries, {clip: row["folder"] for clip, row in earlier.items()})
        self.tasks = [Task.of(entry, self.out / folder) for entry, folder in zip(entries, folders, strict=True)]
        for task in self.tasks:
            refuse_own_input(task.folder, task.entry.clip, task.entry.first_mask, task.entry.names)
            if plan.resume and not plan.overwrite:
                refuse_other_plan(plan, task)
        self.rows = {_key(task.entry): _open_row(task) for task in self.tasks}
        self.rows |= {clip: row for clip, row in earlier.items() if clip not in self.rows or self._stands(row)}

    def run(self, workers: Callable[[], AbstractContextManager[Executor | None]]) -> list[tuple[str, str]]:
        """Segment what is missing, by the executor of `workers` if there is one. Returns the folders' names of clips that
        failed, each with the reason.

        Raises InputError if it is not a clip's fault, such as a full disk. Whatever ends the work, the table is up to date, and
        a note on the exception says what is kept.
        """
        with sole_writer(self.out):
            write_index(self.out, list(self.rows.values()))
            try:
                with workers() as executor, ClipProgress(len(self.tasks)) as shown:
                    self._work(executor, shown)
            except (KeyboardInterrupt, RuntimeError, InputError, OSError) as stop:
                stop.__notes__ = self._kept()
                raise
            for half in filter(Path.is_file, self.out.glob(".*.partial*")):  # what killed processes left
                half.unlink()
            write_sheet(self.out, [row for row in self.rows.values() if row["status"] == DONE])
        own = [self.rows[_key(task.entry)] for task in self.tasks]
        return [(row["folder"], row["error"]) for row in own if row["status"] == FAILED]

    def _work(self, executor: Executor | None, shown: ClipProgress) -> None:
        outcomes = _here(self.plan, self.tasks, shown) if executor is None else _spread(self.plan, self.tasks, executor)
        for task, outcome in outcomes:
            for line in outcome.remarks:
                shown.tell(f"{task.folder.name}: {line}")
            if outcome.ends:
                raise InputError(outcome.error)
            row = self.rows[_key(task.entry)] = _row(task, outcome)
            write_index(self.out, list(self.rows.values()))
            shown.clip(_line(row, outcome), outcome.worked and not outcome.error)

    def _stands(self, row: Row) -> bool:
        """Whether a row of before is true until its clip is looked at again."""
        return self.plan.resume and row["status"] == DONE and (self.out / row["folder"] / "run.json").is_file()

    def _kept(self) -> list[str]:
        """What there is, in words; nothing is, if the table is all there is, which then goes."""
        if {path.name for path in self.out.iterdir()} == {TABLE}:
            (self.out / TABLE).unlink()
            return []
        own = [self.rows[_key(task.entry)]["status"] for task in self.tasks]
        done = f"{own.count(DONE)} of {len(own)} clips are finished in {self.out}"
        return [f"{done}, and whole windows of others are kept: the same command with --resume goes on"]


def result_folders(entries: Sequence[Entry], known: dict[str, str]) -> list[str]:
    """The names of the clips' folders: as the table of before says (`known`, by clip), else as a clip alone is called; with a
    hash behind it if two would have one name."""
    plain = [result_name(entry.clip) for entry in entries]
    new = Counter(_fold(name) for entry, name in zip(entries, plain, strict=True) if _key(entry) not in known)
    taken = {_fold(name) for name in (TABLE, SHEET, *known.values())}
    folders = []
    for entry, name in zip(entries, plain, strict=True):
        before = known.get(_key(entry))
        free = new[_fold(name)] == 1 and _fold(name) not in taken if before is None else as_text(name) == before
        folders.append(name if free else unique_name(entry.clip))
    return folders


def _fold(name: str) -> str:
    """What two names share that are one on some file systems."""
    return unicodedata.normalize("NFC", as_text(name)).casefold()


def _key(entry: Entry) -> str:
    """A clip as the table names it."""
    return as_text(absolute(entry.clip))


def _here(plan: Plan, tasks: Sequence[Task], shown: ClipProgress) -> Iterator[tuple[Task, Outcome]]:
    """One clip after the other."""
    for task in tasks:
        yield task, attempt(plan, task, shown.part, lambda line, task=task: shown.tell(f"{task.folder.name}: {line}"))


def _spread(plan: Plan, tasks: Sequence[Task], executor: Executor) -> Iterator[tuple[Task, Outcome]]:
    """A clip a task, as they are finished."""
    from distributed.scheduler import KilledWorker

    futures = {executor.submit(segment_clip, plan, task): task for task in tasks}
    for future in as_completed(futures):
        try:
            yield futures[future], future.result()
        except KilledWorker:
            yield futures[future], Outcome("its workers were killed again and again (out of memory?): use fewer workers")


def _open_row(task: Task) -> Row:
    return {"clip": _key(task.entry), "folder": as_text(task.folder.name), "status": OPEN}


def _row(task: Task, outcome: Outcome) -> Row:
    if outcome.error:
        return {**_open_row(task), "status": FAILED, "error": outcome.error}
    try:
        return {**_open_row(task), **finished_row(task.folder), "status": DONE}
    except InputError as error:
        return {**_open_row(task), "status": FAILED, "error": str(error)}


def _line(row: Row, outcome: Outcome) -> str:
    if row["status"] == FAILED:
        return f"{row['folder']} failed. {row['error']}"
    how = f"{row['seconds']:.0f} s" if outcome.worked else "there already"
    return f"{row['folder']}, {row['frames']} frames, {row['segments']} segments, {how}"
