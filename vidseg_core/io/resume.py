"""What a run has left on disk, and what remains to be done: everything, the rest, or nothing."""

import glob
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from vidseg_core.common import InputError
from vidseg_core.io.files import STATE, UnfinishedFolder, read_json, replacing, unfinished
from vidseg_core.io.masks import MaskFolder
from vidseg_core.io.provenance import differences

if TYPE_CHECKING:
    from vidseg_core.pipeline import WindowResult


FORMAT = 3
"""Of the file that says how far a run is; another version's is refused before any work."""

BEFORE = {"later_masks_sha256": None}
"""What records of earlier versions do not name, and was so."""


@dataclass(frozen=True)
class RunState:
    """How far a run is: the masks of its first `frames` frames are finished, in `seconds` per stage. `record` has all that
    determines the masks, `scene` the state after the last window."""

    frames: int
    record: dict[str, Any]
    seconds: dict[str, float]
    scene: dict[str, np.ndarray] = field(repr=False)

    def write(self, path: Path) -> None:
        """Replace the file at `path`, at once."""
        words = json.dumps({"frames": self.frames, "record": self.record, "seconds": self.seconds, "format": FORMAT})
        with replacing(path) as partial:
            np.savez(partial, run=np.array(words), **self.scene)

    @classmethod
    def read(cls, path: Path) -> "RunState":
        """What `write` wrote. Raises InputError if it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                scene = dict(arrays)
            words = json.loads(str(scene.pop("run")))
            if words.pop("format", 1) != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            return cls(**words, scene=scene)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(
                f"{path} is damaged or of another version ({error}): remove {path.parent} to start anew"
            ) from error

    def after(self, window: "WindowResult") -> "RunState":
        """This and the next window."""
        seconds = {stage: self.seconds.get(stage, 0.0) + s for stage, s in window.seconds.items()}
        return replace(self, frames=self.frames + len(window.labels), seconds=seconds, scene=window.scene.state())


@dataclass(frozen=True)
class Fresh:
    """Nothing of a run is there."""


@dataclass(frozen=True)
class Unfinished:
    """A run stopped and can continue after `state`."""

    state: RunState


@dataclass(frozen=True)
class Complete:
    """A run is finished; `record` is its run.json."""

    record: dict[str, Any]


def default_folder(clip: str) -> Path:
    """Where a clip's result goes unless one says it: outputs/NAME-OF-CLIP, with a hash behind it if the result of another clip
    of this name is there."""
    plain = Path("outputs", result_name(clip))
    own, source = Path("outputs", unique_name(clip)), _resolved(clip)
    taken = own.exists() or unfinished(own).exists() or any(_resolved(other) != source for other in _clips_in(plain))
    return own if taken else plain


def result_name(clip: str) -> str:
    """What a clip's result is called: like the clip. A pattern has the name of the folder that it looks into."""
    path = Path(os.path.expanduser(clip))
    pattern = glob.has_magic(clip) and not path.exists()
    while pattern and glob.has_magic(str(path)):
        path = path.parent
    path = path if path.name not in ("", "..") else path.resolve()
    return (path.name if pattern or path.is_dir() else path.stem).lstrip(".") or "clip"


def unique_name(clip: str) -> str:
    """The same with a hash of the clip's place behind it, so that no other clip has it."""
    return f"{result_name(clip)}-{hashlib.sha256(os.fsencode(_resolved(clip))).hexdigest()[:8]}"


def _resolved(clip: str) -> Path:
    return Path(os.path.expanduser(clip)).resolve()


def _clips_in(folder: Path) -> list[str]:
    """What the finished and the unfinished run in a folder were made of, "" where their records do not say."""
    records = []
    for path, read in ((unfinished(folder) / STATE, lambda p: RunState.read(p).record), (folder / "run.json", _read_record)):
        try:
            records += [read(path)] if path.exists() else []
        except InputError:  # damaged: said by whoever goes on with it
            continue
    inputs = [record.get("input") if isinstance(record, dict) else None for record in records]
    return [str(given.get("clip", "")) if isinstance(given, dict) else "" for given in inputs]


def _read_record(path: Path) -> Any:
    return read_json(path, "choose another --out")


def inspect(folder: UnfinishedFolder) -> Fresh | Unfinished | Complete:
    """What is there of a run. Raises InputError if it cannot be read."""
    if folder.state.exists():
        return Unfinished(RunState.read(folder.state))
    path = folder.folder / "run.json"
    return Complete(_read_record(path)) if path.exists() else Fresh()


def decide(folder: UnfinishedFolder, request: dict[str, Any], resume: bool) -> Fresh | Unfinished | Complete:
    """What a call has to do: all of it, the rest behind an unfinished run, or nothing.

    Raises InputError if `folder` may not be replaced, if there is an unfinished run and neither `resume` nor
    `folder.overwrite`, if a run to go on with is not of this `request`, and if it is damaged.
    """
    there = inspect(folder) if resume or not folder.overwrite else Fresh()
    if isinstance(there, Complete) and resume:
        record = {**BEFORE, **there.record}
        other = differences(record, {key: value for key, value in request.items() if key in record})
        if not other:
            return there
        if not folder.overwrite:
            raise InputError(f"{folder.folder} is finished, with {other}. Choose another --out, or add --overwrite.")
        there = Fresh()
    if isinstance(there, Unfinished) and not resume:
        reason = f"{folder.partial} is an unfinished run, {there.state.frames} frames are done."
        raise InputError(f"{reason} Add --resume to continue it, or --overwrite to start anew.")
    folder.check()
    if isinstance(there, Unfinished):
        refuse_other(folder, there.state.record, request)
    elif resume:
        print(f"nothing to resume in {folder.folder}: starting with the first frame", file=sys.stderr)
    return there


def refuse_other(folder: UnfinishedFolder, known: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises InputError if the unfinished run in `folder` is, by its record, not the one that is wanted now."""
    if other := differences(known, now):
        reason = f"The unfinished run in {folder.partial} has {other}."
        raise InputError(f"{reason} Give what it was started with, or add --overwrite without --resume to start anew.")


def refuse_gaps(folder: UnfinishedFolder, masks: MaskFolder, frames: int) -> None:
    """Raises InputError if one of the first `frames` masks is gone."""
    if missing := [n for n in range(frames) if not masks.path(n).exists()]:
        gone = f"{folder.partial} lacks the mask of frame {missing[0]} ({masks.path(missing[0]).name})"
        raise InputError(f"{gone}. Start anew with --overwrite.")
