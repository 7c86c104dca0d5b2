"""What VidSeg is compared with, and VidSeg itself, behind one interface.

A method is called with frames and the mask of the first one and gives labels; `stream` is the same window after window, and
can continue from the state after any window. An evaluation need not know which method it runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int16, Integer, UInt8
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.common import InputError
from vidseg_core.context import Clusters, Votes, kmeans, name_clusters
from vidseg_core.evaluation.extractors import Extractor, cnn_features, colour_features, model_features
from vidseg_core.evaluation.scoring import Window
from vidseg_core.models.backbone import Backbone
from vidseg_core.pipeline import VidSeg, windows
from vidseg_core.scene import Scene, check_mask
from vidseg_core.settings import Settings

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Predicted(Window):
    """A method's window; `stream` continues from the arrays of `state`."""

    state: State = field(repr=False)


class Method(ABC):
    """Frames and first mask in, labels out. `stages`: the keys of the maps it makes, the last of them the result."""

    stages: tuple[str, ...]

    def __call__(
        self, frames: UInt8[np.ndarray, "f H W 3"], first_mask: Integer[np.ndarray, "H W"] | None = None
    ) -> np.ndarray:
        """Labels [f, H, W] of a clip: the classes of `first_mask` (255 = void) or, without it, numbers of segments."""
        return np.concatenate([window.maps[self.stages[-1]] for window in self.stream(frames, first_mask)])

    @abstractmethod
    def stream(
        self, frames: Iterable[np.ndarray], first_mask: np.ndarray | None = None, start: int = 0, state: State | None = None
    ) -> Iterator[Predicted]:
        """Window after window; with the `state` that a window left, `frames` are those behind it, from number `start` on."""


class CellMethod(Method):
    """A method that labels cells; its masks are enlarged bilinearly. Subclasses say how one window is labelled."""

    stages = ("coarse", "bilinear")

    def __init__(self, extract: Extractor, settings: Settings, device: torch.device | str = "cpu"):
        self.extract, self.settings, self.device = extract, settings, device

    def stream(self, frames, first_mask=None, start=0, state=None):
        """See `Method`."""
        for group in windows(frames, self.settings.window):
            if state is None and first_mask is not None:
                first_mask = check_mask(np.asarray(first_mask), group.shape[1:3], self.settings)
            maps, state = self.label(group, first_mask, state)
            if "bilinear" not in maps:
                maps["bilinear"] = bilinear(maps[self.stages[-2]], group.shape[1:3])
            yield Predicted(start, maps, state)
            start += len(group)

    @abstractmethod
    def label(
        self, frames: np.ndarray, first_mask: np.ndarray | None, state: State | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Maps of cells of one window, and the state behind it."""


class ContextMethod(Method):
    """The first three stages of VidSeg, on any features; the refined masks are enlarged bilinearly."""

    stages = ("coarse", "refined", "bilinear")

    def __init__(self, backbone: Backbone, settings: Settings, extract: Extractor | None = None):
        self.vidseg = VidSeg(backbone, settings, extract)
        self.run = self.vidseg.cells

    def stream(self, frames, first_mask=None, start=0, state=None):
        """See `Method`."""
        v = self.vidseg
        scene = None if state is None else Scene.from_state(state, v.settings, v.backbone.device)
        for r in self.run(frames, None if state else first_mask, scene=scene):
            maps = {
                "coarse": r.coarse,
                "refined": r.refined,
                "bilinear": bilinear_votes(r.scene.named(torch.from_numpy(r.votes[1])), r.frames.shape[1:3]),
            }
            yield Predicted(r.start, maps if r.labels is None else {**maps, "full": r.labels}, r.scene.state())


class FullMethod(ContextMethod):
    """VidSeg with all its stages; "bilinear" is what enlarging the refined masks would give instead of the last one."""

    stages = (*ContextMethod.stages, "full")

    def __init__(self, backbone: Backbone, settings: Settings, extract: Extractor | None = None):
        super().__init__(backbone, settings, extract)
        self.run = self.vidseg.stream


class FrameMethod(CellMethod):
    """Each frame clustered on its own, as methods for images do. Clusters of frame 0 are named by its mask; those of any
    other frame have no truth to be named by, so each takes the name of the nearest centroid of frame 0."""

    def label(self, frames, first_mask, state):
        """See `CellMethod`."""
        maps = []
        features = self.extract(frames).context
        for tokens in features:
            clusters = self._cluster(tokens.flatten(0, 1))
            if state is None:
                cells = clusters.labels.reshape(tokens.shape[:2])
                count = len(clusters.centroids)
                names = torch.arange(count) if first_mask is None else name_clusters(cells, first_mask, count).cpu()
                state = {"centroids": clusters.centroids.cpu().numpy(), "names": names.numpy()}
            first = torch.from_numpy(state["centroids"]).to(tokens.device)
            nearest = torch.cdist(clusters.centroids, first).argmin(1)[clusters.labels]
            maps.append(state["names"][nearest.cpu().numpy()].reshape(tokens.shape[:2]))
        return {"coarse": np.stack(maps)}, dict(state)

    def _cluster(self, tokens: Float[Tensor, "n d"]) -> Clusters:
        s = self.settings.context
        count = s.num_segments if isinstance(s.num_segments, int) else s.num_clusters
        return kmeans(tokens, replace(s, num_clusters=count), self.settings.seed)


@dataclass(frozen=True)
class PropagationSettings:
    """How labels travel from frame to frame; the values are those of the usual protocol on DAVIS (Jabri et al. 2020)."""

    memory: int = 7
    """Frames before this one that are looked at, besides frame 0."""
    neighbours: int = 10
    """Cells of those frames that vote."""
    temperature: float = 0.1
    """Votes weigh exp(cosine / temperature)."""
    radius: float = 0.2
    """How far a cell may have moved, as a share of the height: 12 of the 60 rows of cells in a frame of 480 pixels."""


class PropagationMethod(CellMethod):
    """The first mask carried along: each cell takes the labels of the most similar cells near it in frame 0 and in the last
    frames, as correspondence features are tested (Jabri et al. 2020; DIFT, Tang et al. 2023). No clusters, so no limit to the
    number of classes but those of the mask; and none that is not in it."""

    def __init__(self, extract: Extractor, settings: Settings, device="cpu", how: PropagationSettings | None = None):
        super().__init__(extract, settings, device)
        self.how = how or PropagationSettings()

    def label(self, frames, first_mask, state):
        """See `CellMethod`."""
        if first_mask is None and state is None:
            raise InputError("propagation carries the first mask along: it cannot run without one, so use another method")
        tokens, size, coarse, fine = F.normalize(self.extract(frames).match, dim=-1), frames.shape[1:3], [], []
        for frame in tokens:
            if state is None:
                classes = np.unique(first_mask)
                masks = torch.from_numpy(first_mask[None] == classes[:, None, None]).float()
                shares = F.interpolate(masks[None], size=frame.shape[:2], mode="area")[0].permute(1, 2, 0).to(frame.device)
                state = {"tokens": frame[None], "shares": shares[None], "classes": classes}
            else:
                memory = {name: torch.as_tensor(state[name], device=frame.device) for name in ("tokens", "shares")}
                shares = propagate(frame, memory["tokens"], memory["shares"], self.how)
                kept = [0, *range(max(1, len(memory["tokens"]) + 1 - self.how.memory), len(memory["tokens"]))]
                state = {
                    "tokens": torch.cat([memory["tokens"][kept], frame[None]]),
                    "shares": torch.cat([memory["shares"][kept], shares[None]]), "classes": state["classes"],
                }  # fmt: skip
            coarse.append(state["classes"][shares.argmax(-1).cpu().numpy()])
            fine.append(_largest(shares.permute(2, 0, 1).cpu(), state["classes"], size))
        arrays = {name: torch.as_tensor(state[name]).cpu().numpy() for name in ("tokens", "shares")}
        return {"coarse": np.stack(coarse), "bilinear": np.stack(fine)}, {**arrays, "classes": state["classes"]}


def propagate(
    frame: Float[Tensor, "h w d"], tokens: Float[Tensor, "m h w d"], shares: Float[Tensor, "m h w c"], how: PropagationSettings
) -> Float[Tensor, "h w c"]:
    """Shares of the classes in a frame's cells from those of m remembered frames; tokens have unit length."""
    h, w, d = frame.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([y, x], -1).reshape(-1, 2).float().to(frame.device)
    far = torch.cdist(place, place) > how.radius * h
    similar = torch.stack([(frame.reshape(-1, d) @ t.reshape(-1, d).T).masked_fill(far, -torch.inf) for t in tokens], 1)
    best = similar.flatten(1).topk(min(how.neighbours, similar[0].numel()), dim=1)
    weights = (best.values / how.temperature).softmax(1)
    return (weights[:, :, None] * shares.reshape(-1, shares.shape[-1])[best.indices]).sum(1).reshape(h, w, -1)


def bilinear(cells: Integer[np.ndarray, "n h w"], size: tuple[int, int]) -> Integer[np.ndarray, "n H W"]:
    """Label maps at `size` = (H, W): each label's mask is enlarged bilinearly, and the largest takes the pixel."""
    values = [np.unique(frame) for frame in cells]
    masks = [torch.from_numpy(frame[None] == v[:, None, None]).float() for frame, v in zip(cells, values, strict=True)]
    return np.stack([_largest(mask, v, size) for mask, v in zip(masks, values, strict=True)]).astype(cells.dtype)


def bilinear_votes(votes: Votes, size: tuple[int, int]) -> Int16[np.ndarray, "n H W"]:
    """The same for shares instead of masks: the label with the largest enlarged share."""
    frames = votes.shares.permute(0, 3, 1, 2)
    return np.stack([_largest(shares, votes.numbers.numpy(), size) for shares in frames]).astype(np.int16)


def _largest(shares: Float[Tensor, "c h w"], classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return classes[F.interpolate(shares[None], size=size, mode="bilinear")[0].argmax(0).numpy()]


def _context(features: Callable, backbone: Backbone, settings: Settings) -> Method:
    settings = settings.resolve(backbone.model)
    return ContextMethod(backbone, settings, features(backbone, settings))


def _cells(kind: type[CellMethod], features: Callable, backbone: Backbone, settings: Settings) -> Method:
    settings = settings.resolve(backbone.model)
    return kind(features(backbone, settings), settings, backbone.device)


METHODS: dict[str, Callable[[Backbone, Settings], Method]] = {
    "vidseg": FullMethod,
    "bilinear": ContextMethod,
    "colour": partial(_context, colour_features),
    "cnn": partial(_context, cnn_features),
    "kmeans": partial(_cells, FrameMethod, colour_features),
    "frames": partial(_cells, FrameMethod, model_features),
    "propagation": partial(_cells, PropagationMethod, model_features),
    "cnn-propagation": partial(_cells, PropagationMethod, cnn_features),
}
"""By name: VidSeg; its first three stages enlarged bilinearly; the same on colour + position and on features of an ImageNet
CNN; K-means on colour + position, and the model's features clustered, frame by frame; the first mask propagated."""


def make_method(name: str, backbone: Backbone, settings: Settings) -> Method:
    """A method of `METHODS`. Raises InputError for another name, and for one whose package is not installed."""
    if name not in METHODS:
        raise InputError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name](backbone, settings)
