"""One clip's evaluation on disk: a method runs over it window by window, and its labels are scored.

What a window gave is kept (written aside and renamed), so a run that was killed resumes after its last complete window.
Scores are made from these files when all windows are there: they need no state of their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidseg_core.common import InputError
from vidseg_core.evaluation.labelled import AnyClip
from vidseg_core.evaluation.scoring import Rules, Window, given_mask, score
from vidseg_core.io.files import replacing
from vidseg_core.io.provenance import differences, model_record
from vidseg_core.io.results import write_json
from vidseg_core.settings import Settings

if TYPE_CHECKING:
    from vidseg_core.evaluation.baselines import Method


@dataclass(frozen=True)
class Plan:
    """What a worker needs to know besides the clip. `settings` are resolved; `made` is what the finished part was made with
    ("weights", "device", "dtype", "threads"), None if there is none; `threads` of torch, None: its own choice; `dtype` as for
    `load_backbone`."""

    out: Path
    rules: Rules
    method: str
    model: str
    settings: Settings
    device: str | None = None
    threads: int | None = None
    made: dict[str, Any] | None = None
    dtype: str | None = None


class Store:
    """A clip's files in an evaluation's folder: windows/CLIP/START.npz, state-START.npz beside the last, clips/CLIP.json.
    Iterate over its whole windows, from the first on and without a gap, as often as need be."""

    def __init__(self, out: Path, clip: str):
        self.folder, self.result = out / "windows" / clip, out / "clips" / f"{clip}.json"

    def __iter__(self) -> Iterator[Window]:
        end = 0
        while (path := self.window(end)).is_file():
            with np.load(path, allow_pickle=False) as arrays:
                window = Window(end, dict(arrays))
            yield window
            end += len(window)

    def window(self, start: int) -> Path:
        """The file of the window that begins with frame `start`."""
        return self.folder / f"{start:06}.npz"

    def state(self, start: int) -> Path:
        """The file of the method's state behind that window."""
        return self.folder / f"state-{start:06}.npz"

    def write(self, start: int, maps: dict[str, np.ndarray], state: dict[str, np.ndarray], made: str) -> None:
        """Keep a window; `made`: with what, as JSON. Its state comes first: once the window's own file is there, the run can
        go on behind it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for target, arrays in ((self.state(start), {**state, "made": np.array(made)}), (self.window(start), maps)):
            with replacing(target) as partial:
                np.savez_compressed(partial, **arrays)
        self.clean(start)

    def clean(self, last: int | None = None) -> None:
        """Remove the states of the windows before `last`, or of all. One behind it is another process's, which is ahead."""
        for path in self.folder.glob("state-*.npz"):
            if last is None or int(path.stem.removeprefix("state-")) < last:
                path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _method(
    name: str, model: str, device: str | None, dtype: str | None, settings: Settings
) -> tuple["Method", dict[str, Any]]:
    """A process keeps its method, and so the model, from clip to clip; and with what it computes, but for the threads."""
    from vidseg_core.evaluation.baselines import make_method
    from vidseg_core.models.loading import load_backbone

    backbone = load_backbone(model, device, dtype)
    return make_method(name, backbone, settings), model_record(backbone)


def evaluate_clip(plan: Plan, clip: AnyClip) -> dict[str, Any]:
    """Run what is missing of a clip, score it and keep the result; the result if it is there already.

    It has the tally of each stage ("stages"), "frames", "labelled", "strays" (values without a meaning and in how many frames)
    and "made" (see `Plan`). Raises InputError if the finished part was made with something else.
    """
    store = Store(plan.out, clip.name)
    if store.result.is_file():
        return json.loads(store.result.read_text(encoding="utf-8"))
    made = run_clip(plan, clip, store)
    scores = score(clip, store, plan.rules)
    result = {
        "stages": {stage: tally.to_dict() for stage, tally in scores.tallies.items()}, "frames": clip.num_frames,
        "labelled": len(clip.labels), "strays": scores.strays, "made": made,
    }  # fmt: skip
    store.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(store.result, result)
    store.clean()
    return result


def run_clip(plan: Plan, clip: AnyClip, store: Store) -> dict[str, Any]:
    """The windows of a clip that are not on disk, from the newest that has a state; returns with what they are made."""
    import torch

    if plan.threads:
        torch.set_num_threads(plan.threads)  # sums are rounded in the order of the threads
    method, made = _method(plan.method, plan.model, plan.device, plan.dtype, plan.settings)
    made = {**made, "threads": torch.get_num_threads()}
    refuse_other(plan, plan.made or made, made)
    start, state = _behind(plan, store, made)
    if start == clip.num_frames:
        return made
    first = state is None and plan.rules.protocol == "first"
    mask = given_mask(clip, plan.settings.context.num_clusters) if first else None
    for window in method.stream(clip.read(start), mask, start, state):
        maps = {name: labels.astype(np.uint8) for name, labels in window.maps.items()}
        store.write(window.start, maps, dict(window.state), json.dumps(made))
    return made


def _behind(plan: Plan, store: Store, made: dict[str, Any]) -> tuple[int, dict[str, np.ndarray] | None]:
    """The first frame that is to be made, and the state from which: that behind the newest window that has one."""
    ends = {w.start: w.start + len(w) for w in store if store.state(w.start).is_file()}
    if not ends:
        return 0, None
    with np.load(store.state(max(ends)), allow_pickle=False) as arrays:
        state = dict(arrays)
    refuse_other(plan, json.loads(str(state.pop("made"))), made)
    return ends[max(ends)], state


def refuse_other_weights(plan: Plan) -> None:
    """Raises InputError if a finished run, which needs no model any more, was made with other weights than this machine has;
    says nothing if it has none, or would compute in another precision."""
    from vidseg_core.models.weights import on_disk, resolve

    if plan.made and on_disk(resolve(plan.model)):
        _, made = _method(plan.method, plan.model, plan.device, plan.dtype, plan.settings)
        if made["dtype"] == plan.made.get("dtype"):
            refuse_other(plan, plan.made, {"weights": made["weights"]})


def refuse_other(plan: Plan, known: dict[str, Any], made: dict[str, Any]) -> None:
    """Raises InputError if what is there was made with something else."""
    if other := differences(known, made):
        raise InputError(f"{plan.out} was started with {other}: choose another --out, or remove it")
