"""`python -m vidseg_core evaluate`: a method scored on a labelled set, clip by clip, to be stopped and gone on with at will."""

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from vidseg_core.common import InputError
from vidseg_core.evaluation.datasets import READERS, SAMPLES, open_dataset
from vidseg_core.evaluation.labelled import AnyClip, Dataset, LabelledArrays
from vidseg_core.evaluation.report import clip_scores, never_found, percent, write_report
from vidseg_core.evaluation.scoring import PROTOCOLS, Plan, Store, refuse_other_weights
from vidseg_core.evaluation.tally import Tally
from vidseg_core.io.results import write_json
from vidseg_core.models.weights import resolve
from vidseg_core.paper import reference_settings
from vidseg_core.settings import Settings


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated. `settings` need not be resolved; `protocol` None: the set's own; `restart`: every window is a
    clip of its own. Raises InputError, on `run`, for what can't be."""

    dataset: Dataset
    root: str = ""
    method: str = "vidseg"
    model: str = "tiny"
    settings: Settings = field(default_factory=Settings)
    protocol: str | None = None
    restart: bool = False

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
        self, out: str | Path, workers: int = 0, scheduler: str | None = None, device: str | None = None,
        threads: int | None = None, tell=lambda line: None,
    ) -> str:  # fmt: skip
        """Evaluate what is not yet in `out`, one line a clip to `tell`; writes results.csv, .json and .md there and returns
        the last. Raises InputError if `out` holds something else, and at the end, with the tables of the others written, if a
        clip could not be evaluated."""
        from vidseg_core.evaluation.baselines import METHODS
        from vidseg_core.evaluation.workers import spread_clips

        record, out = self.record(), Path(out)
        if self.method not in METHODS:
            raise InputError(f"no method {self.method!r}; there are {', '.join(METHODS)}")
        if record["protocol"] not in PROTOCOLS:
            raise InputError(f"no protocol {record['protocol']!r}; there are {', '.join(PROTOCOLS)}")
        claim_folder(out, record)
        results = {clip.name: read_result(out, clip.name) for clip in self.clips()}
        open_ = [clip for clip in self.clips() if results[clip.name] is None]
        made = made_with(out, results)
        plan = Plan(out.resolve(), len(self.dataset.classes), self.dataset.official_vc, self.method, self.model,
                    self.settings.resolve(resolve(self.model)), record["protocol"], device, threads, made,
                    self.dataset.objects)  # fmt: skip
        if not open_:
            refuse_other_weights(plan)
        failed, begun = {}, time.perf_counter()
        if len(open_) < len(results):
            tell(f"{len(results) - len(open_)} of {len(results)} clips are in {out} already")
        for clip, result in spread_clips(plan, open_, workers, scheduler):
            if isinstance(result, InputError):
                failed[clip.name] = str(result)
                tell(f"{clip.name}: failed. {result}")
                continue
            results[clip.name] = result
            tell(f"{self.line(clip.name, result)}  {time.perf_counter() - begun:.0f} s")
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
        try:
            known = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): remove {out}, or choose another --out") from error
        differing = [difference(key, known.get(key), record[key]) for key in record if known.get(key) != record[key]]
        if differing:
            raise InputError(f"{out} holds another evaluation, with {'; '.join(differing)}: choose another --out, or remove it")
        return
    # a kill amid the very first write leaves half a run.json
    if out.exists() and (not out.is_dir() or any(not fnmatch(path.name, ".*.partial*") for path in out.iterdir())):
        raise InputError(f"{out} is not empty and no evaluation: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
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


def difference(key: str, before: Any, now: Any) -> str:
    """The first thing in which two values differ, by its path."""
    while isinstance(before, dict) and isinstance(now, dict):
        inner = next(k for k in [*before, *now] if before.get(k) != now.get(k))
        key, before, now = f"{key}.{inner}", before.get(inner), now.get(inner)
    return f"{key} = {_short(before)}, not {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def read_result(out: Path, clip: str) -> dict[str, Any] | None:
    """A clip's result, None if it is not finished."""
    path = Store(out, clip).result
    return json.loads(path.read_text()) if path.is_file() else None


def made_with(out: Path, results: dict[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    """With what the part that is there was made (`Plan.made`), be it finished clips or windows; None if there is none."""
    if known := next((result["made"] for result in results.values() if result), None):
        return known
    for path in sorted(out.glob("windows/*/state-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(str(arrays["made"]))
    return None


def evaluate(options: argparse.Namespace) -> None:
    """Score a method on a labelled set: results.csv, results.json and results.md. Stop it at will: the same command goes on."""
    settings = read_settings(options)
    dataset = open_dataset(options.dataset, options.root, options.split)
    if options.clips:
        wanted = options.clips.split(",")
        if unknown := sorted(set(wanted) - {clip.name for clip in dataset.clips}):
            raise InputError(f"no clip {unknown[0]!r}; there are {', '.join(clip.name for clip in dataset.clips)}")
        dataset = replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.name in wanted))
    root = str(Path(options.root).expanduser().resolve()) if options.root else ""
    run = Evaluation(dataset, root, options.method, options.model, settings, options.protocol, options.restart)
    if options.protocol == "matched" and settings.context.num_segments is None:
        print("every cluster is a segment, of which most find no class; --segments N merges them first", file=sys.stderr)
    out = Path(options.out or Path("outputs", f"evaluate-{options.dataset}-{options.method}"))
    threads = options.threads or (1 if options.workers else None)
    try:
        table = run.run(out, options.workers, options.scheduler, options.device, threads, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"\nvidseg: stopped. {out} keeps every whole window: the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"\n{table}\nIn {out}: results.csv, results.json, results.md")


def read_settings(options: argparse.Namespace) -> Settings:
    """Settings of a file or of the paper, and the options that stand beside it."""
    if options.settings and options.reference:
        raise InputError("--reference and --settings both say what all settings are: give one of them")
    if options.settings:
        try:
            data = json.loads(Path(options.settings).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{options.settings} cannot be read as settings ({error}): give a run.json") from error
        base = Settings.from_dict(data.get("settings", data) if isinstance(data, dict) else data)
    else:
        base = reference_settings(options.model) if options.reference else Settings()
    context = {"num_clusters": options.clusters, "num_segments": options.segments}
    context = replace(base.context, **{name: value for name, value in context.items() if value is not None})
    return replace(base, context=context, seed=base.seed if options.seed is None else options.seed)


def add_command(commands: Any) -> None:
    """The subcommand, for a parser's subparsers."""
    parser = commands.add_parser("evaluate", help="score a method on a labelled set", description=evaluate.__doc__)
    parser.set_defaults(run=evaluate)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help=f"{', '.join((*READERS, *SAMPLES))}")
    add("--root", metavar="DIR", help="where the set is, in its owner's layout (not for the last ones, which come along)")
    add("--split", metavar="NAME", help="which list of clips (default: val; SegNet's CamVid: test)")
    add("--clips", metavar="A,B", help="only these clips")
    add("--method", default="vidseg", metavar="NAME", help="vidseg or a baseline: bilinear, colour, cnn, kmeans, frames, "
        "propagation, cnn-propagation (default: vidseg)")  # fmt: skip
    add("--model", default="tiny", metavar="NAME", help="as for segment (default: tiny)")
    add("--protocol", choices=PROTOCOLS, help="how clusters get names: first = the true mask of frame 0 is given (the "
        "paper's); named = by the first labelled frame, afterwards; matched = by all labels (Hungarian)")  # fmt: skip
    add("--restart", action="store_true", help="each window is a clip of its own, with its own first mask")
    add("--settings", metavar="FILE", help="settings from a run.json")
    add("--reference", action="store_true", help="all settings as the paper's code has them")
    add("--clusters", type=int, metavar="K", help="clusters of K-means (default: 20)")
    add("--segments", type=int, metavar="N", help="merge the clusters to N segments (protocols named and matched)")
    add("--seed", type=int, metavar="N", help="the only source of randomness (default: 0)")
    add("--out", metavar="DIR", help="where to write, and go on (default: outputs/evaluate-DATASET-METHOD)")
    add("--workers", type=int, default=0, metavar="N", help="spread clips over N processes, one a GPU where there are GPUs")
    add("--scheduler", metavar="ADDRESS", help="spread clips over this Dask cluster, such as tcp://host:8786")
    add("--threads", type=int, metavar="N", help="threads of each process (default: torch's choice; 1 with --workers)")
    add("--device", metavar="NAME", help="cuda, mps or cpu (default: the first of these that is there)")
