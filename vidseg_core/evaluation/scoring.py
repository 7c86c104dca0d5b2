"""One clip's evaluation: a method runs over it window by window, and each stage's labels are scored.

What a window gave is kept on disk (written aside and renamed), so that a run that was killed goes on behind its last whole
window. Scores are made from these files when all windows are there: they need no state of their own.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from vidseg_core.common import InputError, enlarge
from vidseg_core.evaluation.labelled import AnyClip
from vidseg_core.evaluation.metrics import VOID, majority_segments, match_segments
from vidseg_core.evaluation.tally import Meter, Tally
from vidseg_core.io.files import replacing
from vidseg_core.io.provenance import fingerprint_parts
from vidseg_core.io.results import write_json
from vidseg_core.settings import Settings

if TYPE_CHECKING:
    from vidseg_core.evaluation.baselines import Method

PROTOCOLS = ("first", "named", "matched")
"""How clusters come by names: the mask of frame 0 is given to the method (the paper's); the method runs without labels, and
each segment is called what most of its pixels are in the first labelled frame; the same, but called so that most pixels of the
whole clip are right, one segment a class (Hungarian matching)."""


@dataclass(frozen=True)
class Plan:
    """What a worker has to know, besides the clip. `settings` are resolved; `made` is what the finished part was made with
    ("weights", "device", "dtype", "threads"), None if there is none; `threads` of torch, None: its own choice. `objects`: as
    for `tally.Meter`."""

    out: Path
    num_classes: int
    official_vc: bool
    method: str
    model: str
    settings: Settings
    protocol: str
    device: str | None = None
    threads: int | None = None
    made: dict[str, Any] | None = None
    objects: bool = False


@dataclass(frozen=True)
class Window:
    """What is on disk of one window: `maps` of each stage, cells or pixels."""

    start: int
    maps: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.maps.values())))


class Store:
    """A clip's files in an evaluation's folder: windows/CLIP/START.npz, state-START.npz beside the last, clips/CLIP.json."""

    def __init__(self, out: Path, clip: str):
        self.folder, self.result = out / "windows" / clip, out / "clips" / f"{clip}.json"

    def windows(self) -> list[Path]:
        """The whole windows from the first on, without a gap."""
        paths, end = [], 0
        while (path := self.folder / f"{end:06}.npz").is_file():
            paths.append(path)
            end += len(load_window(path))
        return paths

    def state(self, window: Path) -> Path:
        """The file of the method's state behind a window."""
        return window.with_name(f"state-{window.name}")

    def write(self, start: int, maps: dict[str, np.ndarray], state: dict[str, np.ndarray], made: str) -> None:
        """Keep a window; `made`: with what, as JSON. Its state comes first: once the window's own file is there, the run can
        go on behind it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{start:06}.npz"
        for target, arrays in ((self.state(path), {**state, "made": np.array(made)}), (path, maps)):
            with replacing(target) as partial:
                np.savez_compressed(partial, **arrays)
        self.clean(path)

    def clean(self, last: Path | None = None) -> None:
        """Remove the states of the windows before `last`, or of all. One behind it is another process's, which is ahead."""
        for path in self.folder.glob("state-*.npz"):
            if last is None or int(path.stem.removeprefix("state-")) < int(last.stem):
                path.unlink(missing_ok=True)


def load_window(path: Path) -> Window:
    """Read a window's file."""
    with np.load(path, allow_pickle=False) as arrays:
        return Window(int(path.stem), dict(arrays))


@lru_cache(maxsize=1)
def _method(name: str, model: str, device: str | None, settings: Settings) -> tuple["Method", dict[str, Any]]:
    """A process keeps its method, and so the model, from clip to clip; and with what it computes, but for the threads."""
    from vidseg_core.evaluation.baselines import make_method
    from vidseg_core.models.loading import load_backbone

    backbone = load_backbone(model, device)
    dtype = str(backbone.unet.dtype).removeprefix("torch.")
    made = {"weights": fingerprint_parts(backbone), "device": backbone.device.type, "dtype": dtype}
    return make_method(name, backbone, settings), made


def evaluate_clip(plan: Plan, clip: AnyClip) -> dict[str, Any]:
    """Run what is missing of a clip, score it and keep the result; the result if it is there already.

    It has the tally of each stage ("stages"), "frames", "labelled", "strays" (values without a meaning and in how many frames)
    and "made" (see `Plan`). Raises InputError if the finished part was made with something else.
    """
    store = Store(plan.out, clip.name)
    if store.result.is_file():
        return json.loads(store.result.read_text())
    made = run_clip(plan, clip, store)
    paths, strays = store.windows(), Counter()
    tallies = score_windows(plan, clip, paths, segment_names(plan, clip, paths), strays)
    result = {
        "stages": {stage: tally.to_dict() for stage, tally in tallies.items()}, "frames": clip.num_frames,
        "labelled": len(clip.labels), "strays": dict(sorted(strays.items())), "made": made,
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
    method, made = _method(plan.method, plan.model, plan.device, plan.settings)
    made = {**made, "threads": torch.get_num_threads()}
    done, start, state = [path for path in store.windows() if store.state(path).is_file()], 0, None
    refuse_other(plan, plan.made or made, made)
    if done:
        with np.load(store.state(done[-1]), allow_pickle=False) as arrays:
            state = dict(arrays)
        refuse_other(plan, json.loads(str(state.pop("made"))), made)
        start = int(done[-1].stem) + len(load_window(done[-1]))
    if start == clip.num_frames:
        return made
    mask = given_mask(plan, clip) if state is None and plan.protocol == "first" else None
    for window in method.stream(clip.read(start), mask, start, state):
        maps = {name: labels.astype(np.uint8) for name, labels in window.maps.items()}
        store.write(window.start, maps, dict(window.state), json.dumps(made))
    return made


def refuse_other_weights(plan: Plan) -> None:
    """Raises InputError if a finished run, which needs no model any more, was made with other weights than this machine has;
    says nothing if it has none, or would compute in another precision."""
    from vidseg_core.models.weights import on_disk, resolve

    if plan.made and on_disk(resolve(plan.model)):
        _, made = _method(plan.method, plan.model, plan.device, plan.settings)
        if made["dtype"] == plan.made.get("dtype"):
            refuse_other(plan, plan.made, {"weights": made["weights"]})


def refuse_other(plan: Plan, known: dict[str, Any], made: dict[str, Any]) -> None:
    """Raises InputError if what is there was made with something else."""
    for key, now in made.items():
        if known.get(key) != now:
            other = f"other weights of {plan.model}" if key == "weights" else f"{key} {known.get(key)}, not {now}"
            raise InputError(f"{plan.out} was begun with {other}: choose another --out, or remove it")


def given_mask(plan: Plan, clip: AnyClip) -> Int64[np.ndarray, "H W"]:
    """Frame 0's classes. K clusters can't bear more than K names: of more classes only the largest are given, the rest void."""
    if 0 not in clip.labels:
        raise InputError(
            f"frame 0 of {clip.name} has no labels, which protocol 'first' gives to the method: use --protocol named or matched"
        )
    mask = clip.read_labels(0)[0]
    areas = np.bincount(mask.ravel(), minlength=256)[:VOID]
    kept = np.argsort(-areas, kind="stable")[: plan.settings.context.num_clusters]
    return np.where(np.isin(mask, kept), mask, VOID)


def segment_names(plan: Plan, clip: AnyClip, paths: list[Path]) -> dict[str, np.ndarray]:
    """For each stage the class [256] of each label number: itself, or for anonymous segments as the protocol has it. Segments
    without a class get numbers beyond the classes, so that they remain apart."""
    if plan.protocol == "first":
        return dict.fromkeys(load_window(paths[0]).maps, np.arange(256))
    used = {min(clip.labels)} if plan.protocol == "named" else set(clip.labels)
    counts: dict[str, np.ndarray] = {}
    for window in map(load_window, paths):
        for n in sorted(used & set(range(window.start, window.start + len(window)))):
            truth = clip.read_labels(n)[0]
            for stage, maps in window.maps.items():
                pairs = truth * 256 + enlarge(maps[n - window.start], truth.shape)
                counts[stage] = counts.get(stage, 0) + np.bincount(pairs.ravel(), minlength=65536).reshape(256, 256)
    how, tables = majority_segments if plan.protocol == "named" else match_segments, {}
    for stage, pixels in counts.items():
        tables[stage] = names = how(pixels[: plan.num_classes])
        nameless = names == VOID
        names[nameless] = np.minimum(plan.num_classes + np.arange(nameless.sum()), VOID)
        names[VOID] = VOID
    return tables


def score_windows(
    plan: Plan, clip: AnyClip, paths: list[Path], names: dict[str, np.ndarray], strays: Counter
) -> dict[str, Tally]:
    """The tally of each stage; cells are enlarged to the pixels of the frame (every pixel has the label of its cell). Values
    without a meaning are counted in `strays`, once a frame."""
    meters, size = {stage: Meter(plan.num_classes, plan.official_vc, plan.objects) for stage in names}, clip.size
    for window in map(load_window, paths):
        for i in range(len(window)):
            n, truth = window.start + i, None
            if n in clip.labels:
                truth, values = clip.read_labels(n)
                strays.update(values)
            for stage, meter in meters.items():
                labels = names[stage][enlarge(window.maps[stage][i], size)]
                meter.add(labels, truth, clip.scored(n), i == 0 and n > 0, *clip.motion(n))
    return {stage: meter.finish() for stage, meter in meters.items()}
