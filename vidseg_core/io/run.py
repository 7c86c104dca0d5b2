"""A clip segmented onto the disk, window by window: any length, and a run that stopped can go on.

What is on disk is finished: first the masks of a window, then the file that says so and holds what the next window needs
(`Finished`). Each is written aside and renamed, so that a kill at any moment leaves whole windows, and what is beyond them is
made again. Overlay, table and sheet come from the masks at the end; then the folder gets its name.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from vidseg_core.common import InputError
from vidseg_core.evaluation.evaluate import difference
from vidseg_core.io.files import UnfinishedFolder, replacing
from vidseg_core.io.masks import drop_masks, write_masks
from vidseg_core.io.results import write_run
from vidseg_core.io.video import Clip
from vidseg_core.models.registry import TINY
from vidseg_core.models.weights import resolve
from vidseg_core.settings import Settings

if TYPE_CHECKING:
    from vidseg_core.pipeline import VidSeg, WindowResult

Bars = Callable[[int, int], AbstractContextManager[Callable[[str, float], None]]]
"""Shows how far a run is: (frames, of which are finished) to a context that gives what is told (stage, further frames)."""


@dataclass(frozen=True)
class Finished:
    """What is finished of a run: the masks of its first `frames` frames, in `seconds` per stage. `record` is what these and all
    further masks depend on, `scene` the state that the last window left."""

    frames: int
    record: dict[str, Any]
    seconds: dict[str, float]
    scene: dict[str, np.ndarray] = field(repr=False)

    def write(self, path: Path) -> None:
        """Replace the file at `path`, at once."""
        words = json.dumps({"frames": self.frames, "record": self.record, "seconds": self.seconds})
        with replacing(path) as partial:
            np.savez(partial, run=np.array(words), **self.scene)

    @classmethod
    def read(cls, path: Path) -> "Finished | None":
        """What `write` wrote; None if there is no such file. Raises InputError if it is damaged."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                scene = dict(arrays)
            return cls(**json.loads(str(scene.pop("run"))), scene=scene)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(
                f"{path} is damaged or of another version ({error}): remove {path.parent} to start anew"
            ) from error

    def after(self, window: "WindowResult") -> "Finished":
        """This and the next window."""
        seconds = {stage: self.seconds.get(stage, 0.0) + s for stage, s in window.seconds.items()}
        return replace(self, frames=window.start + len(window.labels), seconds=seconds, scene=window.scene.state())


@dataclass(frozen=True)
class Job:
    """What is to be segmented and how. `model`, `device`, `dtype` and `offload` are those of `load_backbone`, `mask` and
    `names` those of `VidSeg`; `words` is how the input was named, for the record only."""

    clip: Clip
    settings: Settings
    mask: np.ndarray | None = None
    names: dict[int, str] | None = None
    model: str = "tiny"
    device: str | None = None
    dtype: str | None = None
    offload: bool = False
    words: dict[str, Any] = field(default_factory=dict)

    def asked(self) -> dict[str, Any]:
        """What decides the masks, as far as it is known before the model is loaded, ready for JSON."""
        model, indices = resolve(self.model), self.clip.indices
        mask = None if self.mask is None else hashlib.sha256(repr(self.mask.shape).encode() + self.mask.tobytes()).hexdigest()
        return {
            "clip_sha256": _content(self.clip), "frames": [indices[0], indices[-1], indices.step], "first_mask_sha256": mask,
            "given_names": None if self.names is None else {str(n): name for n, name in sorted(self.names.items())},
            "model": model.name, "settings": self.settings.resolve(model).to_dict(),
        }  # fmt: skip

    def load(self, threads: int | None) -> tuple["VidSeg", dict[str, Any]]:
        """The pipeline, computing with so many threads (None: torch's choice), and all that decides the masks."""
        # torch and diffusers take seconds to import: not before the input is checked
        import torch

        from vidseg_core.io.provenance import fingerprint_parts, run_record
        from vidseg_core.models.loading import load_backbone
        from vidseg_core.pipeline import VidSeg

        if threads is not None:
            torch.set_num_threads(threads)  # sums are rounded in the order of the threads
        backbone = load_backbone(self.model, self.device, self.dtype, self.offload)
        vidseg = VidSeg(backbone, self.settings)
        return vidseg, {**run_record(backbone, vidseg.settings), "weights": fingerprint_parts(backbone)}


def run_job(job: Job, folder: UnfinishedFolder, resume: bool, bars: Bars) -> Finished | None:
    """Segment a clip into `folder`, going on with what is unfinished there if `resume`; None if nothing was left to do.

    Raises InputError for what can't be segmented, if `folder` may not be replaced, if another process is writing it, if there
    is an unfinished run and neither `resume` nor `folder.overwrite`, and if that run is another than `job`. Whole windows
    are kept then, and at a KeyboardInterrupt, whose text says so.
    """
    asked = job.asked()
    with folder, _said(folder, job.clip.num_frames):
        begun = Finished.read(folder.state) if resume or not folder.overwrite else None
        if begun is None and resume and _is_complete(folder, asked):
            return None
        _check_begun(folder, begun, resume, asked)
        vidseg, record = job.load(begun and begun.record.get("threads"))
        _say_where(job, record)
        record = {"input": job.words, **asked, **record}
        if begun is not None:
            _refuse_other(folder, begun.record, record)
            print(f"{begun.frames} frames are done: going on from there", file=sys.stderr)
        with bars(job.clip.num_frames, begun.frames if begun else 0) as tick:
            done = _segment(job, vidseg, folder, begun or Finished(0, record, {}, {}), tick)
            _write_rest(job, folder, done, tick)
        folder.publish()
        return done


def _say_where(job: Job, record: dict[str, Any]) -> None:
    """A real model takes hours where there is no GPU, and one that torch cannot use is no error; the embedded one is fast."""
    if record["model"] == TINY.name:
        return
    hint = "; no GPU that torch can use was found, see pytorch.org for a build with CUDA"
    alone = record["device"] == "cpu" and job.device is None
    print(f"{record['model']} on {record['device']}, {record['dtype']}{hint if alone else ''}", file=sys.stderr)


def _segment(job: Job, vidseg: "VidSeg", folder: UnfinishedFolder, done: Finished, tick) -> Finished:
    """The windows that are missing, each onto the disk as it comes."""
    from vidseg_core.scene import Scene

    if done.frames:
        drop_masks(folder.partial / "masks", done.frames)
    if done.frames == job.clip.num_frames:
        return done
    scene = Scene.from_state(done.scene, vidseg.settings, vidseg.backbone.device) if done.frames else None
    rest = replace(job.clip, indices=job.clip.indices[done.frames :])
    begin = (None, None) if scene else (job.mask, job.names)
    for window in vidseg.stream(rest, *begin, tick, scene):
        if not done.frames:  # the first of a new run: only now is it clear that there will be one
            folder.clear()
        write_masks(folder.partial / "masks", window.start, window.labels)
        if window.start == 0 and window.scene.lost:
            lost = ", ".join(window.scene.names[n] for n in window.scene.lost)
            print(f"too small in the first mask for a cell (or cluster) of its own: {lost}", file=sys.stderr)
        done = done.after(window)
        done.write(folder.state)
        del window  # or it stays in memory while the next one is made
    return done


def _write_rest(job: Job, folder: UnfinishedFolder, done: Finished, tick) -> None:
    from vidseg_core.scene import Scene

    names = Scene.from_state(done.scene, job.settings).names
    record = {**done.record, "seconds": {stage: round(t, 3) for stage, t in done.seconds.items()}}
    write_run(folder.partial, job.clip, job.clip.fps, names, record, lambda frames: tick("write", frames))


def _is_complete(folder: UnfinishedFolder, asked: dict[str, Any]) -> bool:
    """Whether a finished run of the same job is there; one of another job is refused, or may be replaced."""
    try:
        known = json.loads((folder.folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{folder.folder / 'run.json'} cannot be read ({error}). Choose another --out.") from error
    if other := _differences(known, {key: value for key, value in asked.items() if key in known}):
        if not folder.overwrite:
            raise InputError(f"{folder.folder} is finished, with {other}. Choose another --out, or add --overwrite.")
        return False
    return True


def _check_begun(folder: UnfinishedFolder, begun: Finished | None, resume: bool, asked: dict[str, Any]) -> None:
    if begun is not None and not resume:
        reason = f"{folder.partial} is an unfinished run, {begun.frames} frames are done."
        raise InputError(f"{reason} Add --resume to go on with it, or --overwrite to start anew.")
    folder.check()
    if begun is not None:
        _refuse_other(folder, begun.record, asked)
        if missing := set(range(begun.frames)) - {int(p.stem) for p in (folder.partial / "masks").glob("[0-9]*.png")}:
            raise InputError(f"{folder.partial} lacks the mask of frame {min(missing)}. Start anew with --overwrite.")
    elif resume:
        print(f"nothing to resume in {folder.folder}: starting with the first frame", file=sys.stderr)


def _refuse_other(folder: UnfinishedFolder, known: dict[str, Any], now: dict[str, Any]) -> None:
    if other := _differences(known, {key: value for key, value in now.items() if key != "input"}):
        reason = f"The unfinished run in {folder.partial} has {other}."
        raise InputError(f"{reason} Give what it was begun with, or add --overwrite without --resume to start anew.")


def _differences(known: dict[str, Any], now: dict[str, Any]) -> str:
    """In what a run differs from what is wanted now, in words; empty if in nothing."""
    said = {"clip_sha256": "another clip", "first_mask_sha256": "another first mask"}
    differing = [key for key, value in now.items() if known.get(key) != value]
    return "; ".join(said[key] if key in said else difference(key, known.get(key), now[key]) for key in differing)


@contextmanager
def _said(folder: UnfinishedFolder, total: int) -> Iterator[None]:
    """What ends a run also says what is kept of it."""
    before = folder.state.stat().st_mtime_ns if folder.state.exists() else None
    try:
        yield
    except KeyboardInterrupt:
        if folder.published:
            raise KeyboardInterrupt(f"{folder.folder} is complete") from None
        raise KeyboardInterrupt(_kept(folder, total)) from None
    except (InputError, OSError) as error:
        if folder.published or not folder.state.exists() or folder.state.stat().st_mtime_ns == before:
            raise
        raise InputError(f"{error} ({_kept(folder, total)})") from error


def _kept(folder: UnfinishedFolder, total: int) -> str:
    done = Finished.read(folder.state)
    return f"{done.frames} of {total} frames are done and kept: the same command with --resume goes on" if done else ""


def _content(clip: Clip) -> str:
    """A hash of the files that a clip is read from, those of its frames only."""
    digest = hashlib.sha256()
    for path in (clip.files[n] for n in clip.indices) if clip.files else (clip.source,):
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
