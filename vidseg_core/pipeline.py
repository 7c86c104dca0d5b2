"""Runs the four stages, window after window."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from numpy.typing import ArrayLike

from vidseg_core.common import InputError
from vidseg_core.context import Votes
from vidseg_core.correspondence import refine
from vidseg_core.features import Features, frame_features, working_images
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.elsewhere import Errand, placed
from vidseg_core.models.relay import Crew, Task, Window, relay
from vidseg_core.models.watch import Progress, Watch, timed
from vidseg_core.scene import Scene, check_masks, open_scene
from vidseg_core.settings import Settings
from vidseg_core.upsample import upsample

Frames = UInt8[np.ndarray, "n H W 3"]
Cells = Integer[np.ndarray, "n h w"]
Shares = Float[np.ndarray, "n h w K"]
Pixels = Integer[np.ndarray, "n H W"]
Names = Mapping[int, str] | Sequence[str]
Masks = Mapping[int, ArrayLike]
KEPT = ("features",)
"""The large intermediates: memory per frame is that of its features, tens of megabytes with Stable Diffusion."""


@dataclass(frozen=True)
class WindowResult:
    """What one window of n frames gave; `start` is its first frame's number. Label maps hold segment or class numbers, 255 for
    void: `coarse`, `refined` in cells, `labels` in the frames' own pixels (None from `VidSeg.cells`). `votes` are the shares
    (coarse, refined) before clusters were merged into segments, `confidence` is the share of the label in `refined`. `scene` is
    the state behind the window, from which a stream can go on. `seconds` by stage."""

    start: int
    frames: UInt8[np.ndarray, "_ H W 3"] = field(repr=False)
    features: Features | None = field(repr=False)
    coarse: Cells = field(repr=False)
    refined: Cells = field(repr=False)
    confidence: Float[np.ndarray, "n h w"] = field(repr=False)
    labels: Pixels | None = field(repr=False)
    votes: tuple[Shares, Shares] = field(repr=False)
    scene: Scene = field(repr=False)
    seconds: dict[str, float]


@dataclass(frozen=True)
class Segmentation:
    """A whole clip's result. Maps as in `WindowResult`, over all f frames; `features` (joined) is None unless kept; `timings`
    is in seconds per stage."""

    frames: UInt8[np.ndarray, "_ H W 3"] = field(repr=False)
    features: Features | None = field(repr=False)
    coarse: Cells = field(repr=False)
    refined: Cells = field(repr=False)
    confidence: Float[np.ndarray, "n h w"] = field(repr=False)
    labels: Pixels = field(repr=False)
    votes: tuple[Shares, Shares] = field(repr=False)
    scene: Scene = field(repr=False)
    settings: Settings = field(repr=False)
    timings: dict[str, float]

    @property
    def names(self) -> dict[int, str]:
        """What each number in `labels` is called."""
        return self.scene.names

    def at(self, num_segments: int | None) -> tuple[Cells, Cells]:
        """(coarse, refined) of a label-free run with its clusters merged to `num_segments` (None: none merged), their shares
        added up, beside the segments that were born on the way."""
        scene = self.scene.cut(num_segments)
        return tuple(scene.named(torch.from_numpy(shares)).labels.numpy() for shares in self.votes)


class VidSeg:
    """Segment clips with a backbone: `VidSeg(load_backbone("tiny"))(frames).labels`.

    Settings that are None are filled from the model's registry entry; `self.settings` is what is used. `extract`: another first
    stage, from frames to `Features`, for comparisons. `executor`: its workers do stages 1 and 4 of clips, of several windows at
    a time; the results are the same. Raises InputError for settings that the model can't run.
    """

    def __init__(
        self, backbone: Backbone, settings: Settings | None = None, extract: Callable[[np.ndarray], Features] | None = None,
        executor: Executor | None = None,
    ):  # fmt: skip
        self.backbone, self.executor = backbone, executor
        self.settings = (settings or Settings()).resolve(backbone.model)
        self._again = partial(type(self), settings=self.settings, extract=extract)
        self.extract = extract or partial(frame_features, backbone, settings=self.settings)
        backbone.check(self.settings)

    def __call__(
        self, frames: np.ndarray | Iterable[np.ndarray], first_mask: ArrayLike | None = None, names: Names | None = None,
        keep: Collection[str] = KEPT, progress: Progress | None = None, masks: Masks | None = None,
    ) -> Segmentation:  # fmt: skip
        """Segment a clip in memory: `frames` is uint8 RGB [f, H, W, 3], or what can be stacked to that, such as a `Clip`.

        `first_mask`: class numbers [H, W] of frame 0 (255 = void); `labels` then holds its classes (the paper's protocol).
        Without it the segments are anonymous. `masks`: those of any frames by number, from 0; a later one adds its cells and
        classes to the context from its window on, and corrects it. `names`: what to call the numbers; label-free segments of
        equal name become one. `keep`: whether the result holds "features". Raises InputError for what can't be segmented.
        """
        if unknown := sorted(set(keep) - set(KEPT)):
            raise InputError(f"keep has {unknown[0]!r}; what can be kept or left out is {', '.join(KEPT)}")
        if not isinstance(frames, np.ndarray):
            frames = np.concatenate([*windows(frames, self.settings.window)] or [np.zeros((0, 1, 1, 3), np.uint8)])
        results = []
        for r in self.stream(frames, first_mask, names, progress, masks=masks):
            results.append(replace(r, frames=frames[:0], features=r.features if keep else None))
            results[-2:-1] = [replace(before, scene=r.scene) for before in results[-2:-1]]  # memory holds the newest alone
        maps = {k: np.concatenate([getattr(r, k) for r in results]) for k in ("coarse", "refined", "confidence", "labels")}
        known = results[-1].scene.context.count
        votes = tuple(np.concatenate([_widen(r.votes[i], known) for r in results]) for i in range(2))
        features = None
        if keep:
            features = Features(*(torch.cat([getattr(r.features, part) for r in results]) for part in ("context", "match")))
        timings = {stage: sum(r.seconds[stage] for r in results) for stage in results[0].seconds}
        return Segmentation(frames, features, **maps, votes=votes, scene=results[-1].scene, settings=self.settings,
                            timings=timings)  # fmt: skip

    def stream(
        self, frames: Iterable[np.ndarray], first_mask: ArrayLike | None = None, names: Names | None = None,
        progress: Progress | None = None, scene: Scene | None = None, masks: Masks | None = None,
    ) -> Iterator[WindowResult]:  # fmt: skip
        """Window after window in bounded memory; arguments as for calling. Frames may come from any iterable of equal
        uint8 images, such as a `Clip`. The first window is checked before the first result is asked for. To go on where a
        run stopped: the `scene` of its last whole window, which has its masks so far and its names, the frames behind that,
        and the masks of these, still by their numbers in the whole clip."""
        return self._run(self._start(frames, first_mask, names, scene, masks or {}), progress, pixels=True)

    def cells(
        self, frames: Iterable[np.ndarray], first_mask: ArrayLike | None = None, names: Names | None = None,
        progress: Progress | None = None, scene: Scene | None = None, masks: Masks | None = None,
    ) -> Iterator[WindowResult]:  # fmt: skip
        """As `stream`, but without stage 4: `labels` is None."""
        return self._run(self._start(frames, first_mask, names, scene, masks or {}), progress, pixels=False)

    def resegment(self, result: Segmentation, num_segments: int | None, progress: Progress | None = None) -> Segmentation:
        """A label-free result with another number of segments, as by `Segmentation.at`: only stage 4 runs again."""
        scene, (coarse, refined) = result.scene.cut(num_segments), result.at(num_segments)
        votes = scene.named(torch.from_numpy(result.votes[1]).to(self.backbone.device))
        labels, timings = [], {**result.timings, "upsample": 0.0}
        for start in range(0, len(refined), self.settings.window):
            part = slice(start, start + self.settings.window)
            watch = Watch(self.backbone, progress, len(refined[part]))
            labels.append(watch("upsample", self.enlarge, result.frames[part], Votes(votes.shares[part], votes.numbers)))
            timings["upsample"] += watch.seconds["upsample"]
        settings = replace(self.settings, context=replace(self.settings.context, num_segments=num_segments))
        return replace(result, coarse=coarse, refined=refined, confidence=votes.confidence.cpu().numpy(),
                       labels=np.concatenate(labels), scene=scene, settings=settings, timings=timings)  # fmt: skip

    def images(self, frames: Frames) -> Float[torch.Tensor, "n 3 h w"]:
        """Frames as the stages take them: see `working_images`."""
        return working_images(self.backbone, frames, self.settings)

    def enlarge(self, frames: Frames, votes: Votes) -> Pixels:
        """Stage 4: labels of pixels from the votes on cells."""
        return upsample(self.backbone, frames, votes, self.settings).cpu().numpy()

    def compute(self, stage: str, *arguments: Any) -> tuple[Any, float]:
        """Stage 1 ("features" of frames) or 4 ("upsample" frames by votes), and its seconds."""
        function = {"features": self.extract, "upsample": self.enlarge}[stage]
        return timed(self.backbone, function, *(placed(given, self.backbone.device) for given in arguments))

    def _start(self, frames: Iterable, first_mask: Any, names: Any, scene: Scene | None, masks: Masks) -> "_Stream":
        """Check what is given, the first window included."""
        groups = windows(frames, self.settings.window)
        first = next(groups, None)
        if first is None:
            raise InputError("there are no frames; give at least one")
        if scene is not None and not (first_mask is None and names is None):
            raise InputError("a scene has its first mask and its names already: leave them out, or start without a scene")
        begin = scene.frames if scene else 0
        count = len(frames) if hasattr(frames, "__len__") else getattr(frames, "num_frames", None)  # a Clip has no length
        given = [*([] if first_mask is None else [(0, first_mask)]), *masks.items()]
        checked = check_masks(given, first.shape[1:3], self.settings, begin, count)
        names = None if names is None else dict(names if isinstance(names, Mapping) else enumerate(names))
        return _Stream(chain(iter([first]), groups), checked, names, scene)  # an iterator lets the first window go afterwards

    def _run(self, stream: "_Stream", progress: Progress | None, pixels: bool) -> Iterator[WindowResult]:
        crew = Crew(self.executor, self.compute, lambda: Errand.of(self.backbone, self._again))
        yield from relay(map(partial(self._window, stream, progress, pixels), stream.windows), crew)
        if beyond := [n for n in stream.masks if n >= (count := stream.scene.frames)]:  # its length was not known before
            raise InputError(f"there is a mask of frame {beyond[0]}, but the clip has {count} frames, counted from 0")

    def _window(self, stream: "_Stream", progress: Progress | None, pixels: bool, frames: Frames) -> Window:
        """The method, for one window. What it yields is done by any worker; between, windows follow one another."""
        watch = Watch(self.backbone, progress, len(frames))
        masks = stream.masks
        features = yield Task(watch, "features", (frames,))
        scene = stream.scene or watch("context", open_scene, features, self.settings, masks.get(0), stream.names, masks)
        scene = watch("context", scene.told, features, masks)
        coarse = watch("context", scene.predict, features)
        refined = watch("refine", refine, features, coarse, scene.overlap, self.settings.refine)
        stream.scene = after = scene.after(features, coarse, refined)
        before, votes = scene.named(coarse), scene.named(refined)
        labels = (yield Task(watch, "upsample", (frames, votes))) if pixels else None
        return WindowResult(
            start=scene.frames, frames=frames, features=Features(features.context.cpu(), features.match.cpu()),
            coarse=before.labels.cpu().numpy(), refined=votes.labels.cpu().numpy(), confidence=votes.confidence.cpu().numpy(),
            labels=labels, votes=(coarse.cpu().numpy(), refined.cpu().numpy()), scene=after, seconds=watch.seconds,
        )  # fmt: skip


def _widen(shares: Shares, count: int) -> Float[np.ndarray, "n h w count"]:
    """Shares of `count` labels: none for those that were born later."""
    return np.pad(shares, [(0, 0)] * 3 + [(0, count - shares.shape[-1])])


@dataclass
class _Stream:
    """What a stream begins with, checked; `scene` becomes that behind the last window whose labels of cells are known."""

    windows: Iterator[np.ndarray]
    masks: dict[int, np.ndarray]
    names: dict[int, str] | None
    scene: Scene | None


def windows(frames: Iterable[np.ndarray], size: int) -> Iterator[Frames]:
    """Groups of `size` consecutive frames, the last one shorter. InputError for what is no frame."""
    shape, group = None, []
    for frame in frames:
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise InputError(
                f"a frame is {frame.dtype} {frame.shape}: frames are uint8 RGB, [H, W, 3] each and [f, H, W, 3] together"
            )
        shape = shape or frame.shape
        if frame.shape != shape:
            raise InputError(f"a frame is {frame.shape[:2]} after frames of {shape[:2]}: all frames of a clip have one size")
        group.append(frame)
        if len(group) == size:
            yield np.stack(group)
            group = []
    if group:
        yield np.stack(group)
