"""Evaluates a method on a labelled set, clip by clip; it may stop at any time and resume."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from vidseg_core.cluster.door import HERE, Workers
from vidseg_core.common import InputError
from vidseg_core.evaluation.clips import Plan, Store, refuse_other_weights
from vidseg_core.evaluation.labelled import AnyClip, Dataset, LabelledArrays
from vidseg_core.evaluation.report import clip_scores, never_found, percent, write_report
from vidseg_core.evaluation.scoring import PROTOCOLS, Rules
from vidseg_core.evaluation.tally import Tally
from vidseg_core.evaluation.workers import spread_clips
from vidseg_core.io.files import read_json
from vidseg_core.io.provenance import differences
from vidseg_core.io.results import write_json
from vidseg_core.models.weights import resolve
from vidseg_core.settings import Settings

Results = dict[str, dict[str, Any] | None]
"""What `evaluate_clip` gave, by the clip's name; None: not finished."""


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate. `settings` need not be resolved; `protocol` None: the set's own; `restart`: every window is a
    clip of its own; `dtype`: the precision, as for `load_backbone`. Raises InputError, on `run`, for what can't be."""

    dataset: Dataset
    root: str = ""
    method: str = "vidseg"
    model: str = "tiny"
    settings: Settings = field(default_factory=Settings)
    protocol: str | None = None
    restart: bool = False
    dtype: str | None = None

    def record(self) -> dict[str, Any]:
        """Everything that decides the scores, as it stands in run.json: a run goes on only if this is the same. Of the files of
        a clip the names, sizes and times of change are compared, not the contents."""
        clips = {c.name: {"frames": c.num_frames, "labels": len(c.labels), "files": digest_of(c)} for c in self.clips()}
        return {
            "dataset": self.dataset.name, "root": self.root, "classes": list(self.dataset.classes), "method": self.method,
            "model": self.model, "protocol": self.protocol or self.dataset.protocol,
            "restart": self.settings.window if self.restart else 0,
            "settings": self.settings.resolve(resolve(self.model)).to_dict(), "clips": clips,
        }  # fmt: skip

    def clips(self) -> tuple[AnyClip, ...]:
        """The clips as they are evaluated."""
        return (self.dataset.restart(self.settings.window) if self.restart else self.dataset).clips

    def run(
        self, out: str | Path, workers: Workers = HERE, device: str | None = None, threads: int | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> str:  # fmt: skip
        """Evaluate what is not yet in `out`, one line a clip to `tell`; writes results.csv, .json and .md there and returns
        the last. Raises InputError if `out` holds something else, and at the end, with the tables of the others written, if a
        clip could not be evaluated. Every whole window is kept, whatever ends the run: a note on the exception says so."""
        record, out = self._checked_record(), Path(out)
        claim_folder(out, record)
        results = {clip.name: read_result(out, clip.name) for clip in self.clips()}
        rules, settings = Rules.of(self.dataset, self.protocol), self.settings.resolve(resolve(self.model))
        made = made_with(out, results)
        plan = Plan(out.resolve(), rules, self.method, self.model, settings, device, threads, made, self.dtype)
        if all(results.values()):
            refuse_other_weights(plan)
        if finished := sum(map(bool, results.values())):
            tell(f"{finished} of {len(results)} clips are in {out} already")
        try:
            failed = self._run_open(plan, results, workers, tell)
        except (KeyboardInterrupt, OSError) as stop:
            stop.add_note(f"{out} keeps every complete window: the same command resumes from there")
            raise
        return self._report(out, record, results, failed)

    def _checked_record(self) -> dict[str, Any]:
        from vidseg_core.evaluation.baselines import METHODS

        record = self.record()
        if self.method not in METHODS:
            raise InputError(f"no method {self.method!r}; there are {', '.join(METHODS)}")
        if record["protocol"] not in PROTOCOLS:
            raise InputError(f"no protocol {record['protocol']!r}; there are {', '.join(PROTOCOLS)}")
        return record

    def _run_open(self, plan: Plan, results: Results, workers: Workers, tell: Callable[[str], None]) -> dict[str, str]:
        """Put the results that are missing into `results`; returns why there is none, for clips that failed."""
        open_, failed = [clip for clip in self.clips() if not results[clip.name]], {}
        begun = time.perf_counter()
        for clip, result in spread_clips(plan, open_, workers):
            if isinstance(result, InputError):
                failed[clip.name] = str(result)
                tell(f"{clip.name}: failed. {result}")
                continue
            results[clip.name] = result
            tell(f"{self.line(clip.name, result)}  {time.perf_counter() - begun:.0f} s")
        return failed

    def _report(self, out: Path, record: dict[str, Any], results: Results, failed: dict[str, str]) -> str:
        """The tables. Raises InputError if a clip failed."""
        done = {name: result for name, result in results.items() if result}
        for half in out.rglob(".*.partial*"):  # what killed runs left; nobody writes any more
            half.unlink(missing_ok=True)
        table = write_report(out, record, done, self.dataset.classes, self.dataset.objects, failed) if done else ""
        if failed:
            without = f"are not in the tables in {out}" if done else "have no result, so there is no table"
            raise InputError(f"{len(failed)} of {len(results)} clips {without}. {': '.join(next(iter(failed.items())))}")
        return table

    def line(self, name: str, result: dict[str, Any]) -> str:
        """A clip's line: the scores of the last stage."""
        tally = Tally.from_dict(list(result["stages"].values())[-1])
        scores, missed = clip_scores(tally, self.dataset.objects), ", ".join(never_found(tally, self.dataset.classes))
        shown = "  ".join(f"{k} {percent(scores[k]):>5}" for k in ("mIoU", "mVC8", "F", "stability"))
        strays = ", ".join(f"{value} in {count} frames" for value, count in result["strays"].items())
        notes = (f"  never found: {missed}" if missed else "") + (f"  values taken for void: {strays}" if strays else "")
        return f"{name:24} {result['frames']:4} frames  {shown}{notes}"


def claim_folder(out: Path, record: dict[str, Any]) -> None:
    """Make `out` the folder of the evaluation `record`. Raises InputError if it is of another, or holds other things."""
    path = out / "run.json"
    if path.is_file():
        if other := differences(read_json(path, f"remove {out}, or choose another --out"), record):
            raise InputError(f"{out} holds another evaluation, with {other}: choose another --out, or remove it")
        return
    # a kill amid the very first write leaves half a run.json
    if out.exists() and (not out.is_dir() or any(not fnmatch(path.name, ".*.partial*") for path in out.iterdir())):
        raise InputError(f"{out} is not empty and holds no evaluation: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # below a file, or where one may not write
        raise InputError(f"{out} cannot be made ({error.strerror}): choose another --out") from error
    write_json(path, record)


def digest_of(clip: AnyClip) -> str:
    """Sixteen hex digits that change with a clip: of files, with the name (from the first frame's folder), size and time of
    change of each frame and label file, and with what their values mean; in memory, with the pixels."""
    if isinstance(clip, LabelledArrays):
        known = [clip.images, *(clip.labels[n] for n in sorted(clip.labels))]
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in known)).hexdigest()[:16]
    folder, lines = clip.files[0].parent, [clip.codes.table, clip.codes.colours]
    for path in (*clip.files, *(clip.labels[n] for n in sorted(clip.labels))):
        about = path.stat() if path.exists() else None  # what is missing is said when it is read
        lines.append((os.path.relpath(path, folder), about and (about.st_size, about.st_mtime_ns)))
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]


def read_result(out: Path, clip: str) -> dict[str, Any] | None:
    """A clip's result, None if it is not finished."""
    path = Store(out, clip).result
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def made_with(out: Path, results: Results) -> dict[str, Any] | None:
    """With what the part that is there was made (`Plan.made`), be it finished clips or windows; None if there is none."""
    if known := next((result["made"] for result in results.values() if result), None):
        return known
    for path in sorted(out.glob("windows/*/state-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(str(arrays["made"]))
    return None
