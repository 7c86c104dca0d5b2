"""The four stages, window after window: the only place that runs all of it."""

import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from numpy.typing import ArrayLike
from torch import Tensor

from vidseg_core.common import InputError
from vidseg_core.correspondence import Tracks
from vidseg_core.features import Features, extract_features
from vidseg_core.io.video import windows
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.memory import memory_checked
from vidseg_core.scene import Scene, check_drawn, check_mask, open_scene
from vidseg_core.settings import Settings
from vidseg_core.upsample import upsample

Cells = Integer[np.ndarray, "n h w"]
Pixels = Integer[np.ndarray, "n H W"]
Progress = Callable[[str, float], None]
"""Told (stage, frames finished since the last call); stages are "features", "context", "refine", "upsample"."""
Names = Mapping[int, str] | Sequence[str]
KEPT = ("features", "tracks")
"""The large intermediates: memory per frame is that of its features, tens of megabytes with Stable Diffusion."""


@dataclass(frozen=True)
class WindowResult:
    """What one window of n frames gave; `start` is its first frame's number. Label maps hold segment or class numbers,
    255 for void: `coarse`, `refined` [n, h, w] in cells, `labels` [n, H, W] in the frames' own pixels. `clusters` are
    (coarse, refined) before clusters were merged into segments."""

    start: int
    frames: UInt8[np.ndarray, "_ H W 3"] = field(repr=False)
    features: Features | None = field(repr=False)
    coarse: Cells = field(repr=False)
    tracks: Tracks | None = field(repr=False)
    refined: Cells = field(repr=False)
    confidence: Float[np.ndarray, "n h w"] = field(repr=False)
    labels: Pixels = field(repr=False)
    clusters: tuple[Cells, Cells] = field(repr=False)
    scene: "Scene" = field(repr=False)
    seconds: dict[str, float]


@dataclass(frozen=True)
class Segmentation:
    """A whole clip's result. Maps as in `WindowResult`, over all f frames; `features` (joined) and `tracks` (one a window,
    cells counted within it) are None unless kept; `timings` is in seconds per stage; `record` is what run.json holds."""

    frames: UInt8[np.ndarray, "_ H W 3"] = field(repr=False)
    features: Features | None = field(repr=False)
    coarse: Cells = field(repr=False)
    tracks: list[Tracks] | None = field(repr=False)
    refined: Cells = field(repr=False)
    confidence: Float[np.ndarray, "n h w"] = field(repr=False)
    labels: Pixels = field(repr=False)
    clusters: tuple[Cells, Cells] = field(repr=False)
    scene: Scene = field(repr=False)
    timings: dict[str, float]
    record: dict[str, Any] = field(repr=False)

    @property
    def names(self) -> dict[int, str]:
        """What each number in `labels` is called."""
        return self.scene.names

    def at(self, num_segments: int | None) -> tuple[Cells, Cells]:
        """(coarse, refined) of a label-free run with its clusters merged to `num_segments`: look-ups, nothing is recomputed."""
        scene = self.scene.cut(num_segments)
        return scene.segment[self.clusters[0]], scene.segment[self.clusters[1]]

    def save(self, folder: str | Path, fps: float = 25.0, overwrite: bool = False) -> Path:
        """Masks, overlay, table, contact sheet and run.json into `folder`, which must not exist unless `overwrite`."""
        from vidseg_core.io.files import RunFolder
        from vidseg_core.io.masks import write_masks
        from vidseg_core.io.results import write_run

        with RunFolder(folder, overwrite) as unfinished:
            write_masks(unfinished / "masks", 0, self.labels)
            write_run(unfinished, self.frames, fps, self.names, self.record)
        return Path(folder)


class VidSeg:
    """Segment clips with a backbone: `VidSeg(load_backbone("tiny"))(frames).labels`.

    Settings that are None are filled from the model's registry entry; `self.settings` is what is used.
    """

    def __init__(self, backbone: Backbone, settings: Settings | None = None):
        self.backbone = backbone
        self.settings = (settings or Settings()).resolve(backbone.model)
        _check_model(backbone, self.settings)
        size, multiple = self.settings.working_size, backbone.multiple
        if size is not None and any(side < multiple or side % multiple for side in size):
            near = tuple(max(1, round(side / multiple)) * multiple for side in size)
            raise InputError(
                f"working size {size} does not suit {backbone.model.name}: it takes multiples of {multiple}, such as {near}"
            )

    def __call__(
        self,
        frames: np.ndarray | Iterable[np.ndarray],
        first_mask: ArrayLike | None = None,
        names: Names | None = None,
        keep: Collection[str] = KEPT,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment a clip in memory: `frames` is uint8 RGB [f, H, W, 3], or what can be stacked to that, such as a `Clip`.

        `first_mask`: class numbers [H, W] of frame 0 (255 = void); `labels` then holds its classes (the paper's protocol).
        Without it the segments are anonymous. `names`: what to call the numbers; label-free segments of equal name become
        one. `keep`: which of "features" and "tracks" the result holds. Raises InputError for what can't be segmented.
        """
        if unknown := sorted(set(keep) - set(KEPT)):
            raise InputError(f"keep has {unknown[0]!r}; what can be kept or left out is {', '.join(KEPT)}")
        if first_mask is not None:
            check_drawn(np.asarray(first_mask))
        if not isinstance(frames, np.ndarray):
            frames = np.concatenate([*windows(frames, self.settings.window)] or [np.zeros((0, 1, 1, 3), np.uint8)])
        results = []
        for r in self.stream(frames, first_mask, names, progress):
            dropped = {name: None for name in KEPT if name not in keep}
            results.append(replace(r, frames=frames[:0], **dropped))
        joined = {k: np.concatenate([getattr(r, k) for r in results]) for k in ("coarse", "refined", "confidence", "labels")}
        features = None
        if "features" in keep:
            features = Features(*(torch.cat([getattr(r.features, part) for r in results]) for part in ("context", "match")))
        scene, timings = results[0].scene, {stage: sum(r.seconds[stage] for r in results) for stage in results[0].seconds}
        return Segmentation(
            frames=frames, features=features, tracks=[r.tracks for r in results] if "tracks" in keep else None, **joined,
            clusters=tuple(np.concatenate([r.clusters[i] for r in results]) for i in range(2)),
            scene=scene, timings=timings, record=self.record(timings),
        )  # fmt: skip

    def stream(
        self,
        frames: Iterable[np.ndarray],
        first_mask: ArrayLike | None = None,
        names: Names | None = None,
        progress: Progress | None = None,
        scene: Scene | None = None,
        start: int = 0,
    ) -> Iterator[WindowResult]:
        """Window after window in bounded memory; arguments as for calling. Frames may come from any iterable of equal
        uint8 images, such as a `Clip`. The first window is checked before the first result is asked for. To go on where a
        run stopped: the `scene` after its last whole window, and the frames from number `start`, where that ended."""
        groups = windows(frames, self.settings.window)
        first = next(groups, None)
        if first is None:
            raise InputError("there are no frames; give at least one")
        if first_mask is not None:
            first_mask = check_mask(np.asarray(first_mask), first.shape[1:3], self.settings)
        names = None if names is None else dict(names if isinstance(names, Mapping) else enumerate(names))
        groups = chain(iter([first]), groups)  # an iterator lets the first window go when it is through
        return self._run(groups, first_mask, names, progress or (lambda stage, frames: None), scene, start)

    def resegment(self, result: Segmentation, num_segments: int | None, progress: Progress | None = None) -> Segmentation:
        """A label-free result with another number of segments: only stage 4 runs again."""
        scene = result.scene.cut(num_segments)
        coarse, refined = result.at(num_segments)
        settings = replace(self.settings, context=replace(self.settings.context, num_segments=num_segments))
        timings, tick, labels = dict(result.timings), progress or (lambda stage, frames: None), []
        with _stage(self.backbone, timings, "upsample"):
            for start in range(0, len(refined), settings.window):
                part = slice(start, start + settings.window)
                labels.append(self._upsample(result.frames[part], refined[part], tick))
        return replace(result, coarse=coarse, refined=refined, labels=np.concatenate(labels), scene=scene, timings=timings,
                       record={**self.record(timings), "settings": settings.to_dict()})  # fmt: skip

    def record(self, timings: dict[str, float]) -> dict[str, Any]:
        """What it takes to make the same labels again, bit for bit, on the same machine."""
        packages = ("vidseg-workbook", "torch", "diffusers", "transformers", "numpy", "pillow", "av")
        return {
            "settings": self.settings.to_dict(), "model": self.backbone.model.name, "device": str(self.backbone.device),
            "dtype": str(self.backbone.unet.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
            "seconds": {stage: round(t, 3) for stage, t in timings.items()},
        }  # fmt: skip

    def _run(self, groups: Iterator[np.ndarray], first_mask, names, progress, scene, start) -> Iterator[WindowResult]:
        s = self.settings
        for frames in groups:
            seconds: dict[str, float] = {}
            with _stage(self.backbone, seconds, "features"):
                features = extract_features(self.backbone, self.images(frames), s, partial(progress, "features"))
            with _stage(self.backbone, seconds, "context"):
                scene = scene or open_scene(features, s, first_mask, names)
                coarse = scene.context.predict(features.context)
                progress("context", len(frames))
            with _stage(self.backbone, seconds, "refine"):
                refined = scene.refine(features, coarse, s.refine)
                progress("refine", len(frames))
            clusters = tuple(maps.cpu().numpy() for maps in (coarse, refined.labels))
            with _stage(self.backbone, seconds, "upsample"):
                labels = self._upsample(frames, scene.segment[clusters[1]], progress)
            yield WindowResult(
                start=start, frames=frames, features=Features(features.context.cpu(), features.match.cpu()),
                coarse=scene.segment[clusters[0]], tracks=refined.tracks.cpu(), refined=scene.segment[clusters[1]],
                confidence=refined.confidence.cpu().numpy(), labels=labels, clusters=clusters, scene=scene, seconds=seconds,
            )  # fmt: skip
            start += len(frames)

    def images(self, frames: UInt8[np.ndarray, "f H W 3"]) -> Tensor:
        """Frames at the working size, as the stages take them: [f, 3, h, w] in [-1, 1]."""
        return self.backbone.images(frames, self.settings.working_size or self.backbone.working_size(*frames.shape[1:3]))

    def _upsample(self, frames: np.ndarray, refined: np.ndarray, progress: Progress) -> np.ndarray:
        cells, tick = torch.from_numpy(refined).to(self.backbone.device), partial(progress, "upsample")
        return upsample(self.backbone, self.images(frames), cells, frames.shape[1:3], self.settings, tick).cpu().numpy()


def _check_model(backbone: Backbone, settings: Settings) -> None:
    """Refuse blocks, noise levels and padding that this model does not have, before any work."""
    f, u = settings.features, settings.upsample
    known = {path for path, _ in backbone.unet.named_modules()}
    for path in (*f.blocks, *f.match_blocks, u.block):
        if path not in known:
            raise InputError(f"{backbone.model.name} has no block {path!r}: these settings are for another model")
    backbone.sigma(f.timestep), backbone.sigma(u.timestep)
    if isinstance(u.guidance, tuple) and not backbone.coupled:
        raise InputError(f"upsample.guidance is {u.guidance}; {backbone.model.name} is an image model and takes one number")
    if f.padding % backbone.multiple:
        raise InputError(f"features.padding is {f.padding}; {backbone.model.name} takes multiples of {backbone.multiple}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


@contextmanager
def _stage(backbone: Backbone, seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Measure a stage; also what `Pieces` does not divide, such as the codec, may run out of memory there."""
    backbone.synchronize()
    started = time.perf_counter()
    with memory_checked():
        yield
    backbone.synchronize()
    seconds[stage] = time.perf_counter() - started
