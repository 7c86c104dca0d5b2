"""Every hyperparameter of the method: one frozen dataclass a stage, a reason for each default.

A field left `None` differs by model and is filled from the model's registry entry by `Settings.resolve`. What was used is
thus always a complete, printable, JSON-able record. "Paper:" stands for the paper's code (QianWangX/VidSeg_diffusion), which
`docs/differences.md` compares with the defaults; `paper` has its quirks.
"""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from vidseg_core.common import InputError
from vidseg_core.validation import check

if TYPE_CHECKING:
    from vidseg_core.models.registry import Model


@dataclass(frozen=True)
class ConditionSettings:
    """Conditioning beside the noisy frames. Each family reads its own fields; the embedded image model reads none."""

    prompt: str = ""
    """Image models: the text. Paper: empty, so that the model looks for nothing in particular."""
    fps: int = 14
    """Video models: frames per second of the window, as the network takes it (one less than what is shown). Paper: 14."""
    motion_bucket: int = 127
    """Video models: the amount of motion, 0..255. Paper: 127."""
    noise_augmentation: float = 0.02
    """Video models: deviation of the noise on the conditioning frame, RGB in [-1, 1]. Paper: 0.02."""


@dataclass(frozen=True)
class FeatureSettings:
    """Stage 1: which activations of the UNet are the features, and at which noise level."""

    blocks: tuple[str, ...] | None = None
    """Attention blocks whose self-attention queries make the context features, as paths in the diffusers module."""
    match_blocks: tuple[str, ...] | None = None
    """The same for the features that correspondence compares (the paper: the middle block of the feature blocks)."""
    timestep: float | None = None
    """Noise level of the pass, in the model's own time (see `registry.Model`): low, since the queries should describe this
    frame and not a guess at it."""
    combine: Literal["mean", "concat"] | None = None
    """How several blocks become one feature. Paper: mean; the tiny model's two blocks differ in role, so concat."""
    normalise: Literal["max", "l2"] | None = None
    """Each token is divided by its largest magnitude ("max", paper) or by its Euclidean norm ("l2"), so that no single channel
    decides how far apart tokens are. The tiny model: "l2", as its queries were trained by cosines."""
    noise: Literal["shared", "independent"] = "shared"
    """One noise image for all frames, so that equal pixels give equal features; the paper draws one per frame."""
    ensemble: int = 1
    """Noises averaged over. 1: at low noise the second draw changes little and costs a full pass."""
    schedule: Literal["direct", "reference"] = "direct"
    """"direct": one unguided pass. "reference": the guided Euler steps before it are run too, as the paper's code does, with
    the steps, the start and the guidance of `paper`, and from a sample of the autoencoder's posterior."""
    scales: tuple[float, ...] | None = None
    """Multiples of the working size at which the model sees a frame: the first makes the cells, the features of others are
    joined to its own. Paper: 1. The tiny model: 1.5, at two to three times the time of this stage (`benchmarks/speed.py`)."""
    shifts: int = 1
    """Passes along each axis over frames displaced by a part of a cell, interleaved: 2 makes four times the passes, and four
    times the cells at a scale that the model knows."""
    position: float | None = None
    """Weight of two extra channels (y, x in [-1, 1]) in the context features; 0 leaves them out, as the paper does."""
    chunk: int = 8
    """Frames per UNet pass of an image model; memory, not results, depends on it. A video model takes whole windows."""


@dataclass(frozen=True)
class ContextSettings:
    """Stage 2: K-means on the first window, then k-NN against a scene context that moves along."""

    naming: Literal["cells", "clusters"] = "cells"
    """What a mask of the first frame names: each cell of frame 0, by the majority under the cell; or each cluster, by that
    under its cells (paper: `paper.name_clusters`), which loses every object without a cluster of its own. No effect without
    a mask."""
    memory: Literal["anchored", "window"] = "anchored"
    """What the context remembers: the last window only ("window", paper), or also, in equal number, the beginning of the
    clip ("anchored"): labels then drift less."""
    num_clusters: int = 20
    """K. Paper: 20."""
    restarts: int = 3
    """K-means runs with different seeds, best inertia kept. Paper: 10; 3 with k-means++ lose less than 1 % of inertia."""
    neighbours: int = 4
    """k of k-NN. Paper: 4."""
    weights: Literal["distance", "uniform"] = "distance"
    """What a neighbour's vote counts: 1 / its distance, or 1 (paper). Equal votes tie at two against two; the smaller class
    number then wins, whatever it stands for, and small objects lose cells."""
    max_context: int | None = 6144
    """The most reference tokens kept (drawn by seed, stratified by label), and the most that K-means sees: bounds time and
    memory. Half may be anchored, which is room for all of frame 0 with the tiny model. None (paper): all."""
    num_segments: int | Literal["auto"] | None = "auto"
    """Label-free runs: cut the merge tree of the clusters at this many segments; "auto": where the cost of merging jumps
    (`merging.natural_cut`). None (paper): every cluster is a segment."""
    births: int = 2
    """Label-free runs: for how many successive windows something that resembles nothing remembered must be present before it
    becomes a segment (`births`); 0: it never does, as in the paper."""
    size_weight: float = 0.25
    """What a cluster of n tokens weighs in that tree: n to this power. Ward's cost has 1, and so merges small clusters first,
    however different they are (`benchmarks/label_free.py`)."""


@dataclass(frozen=True)
class RefineSettings:
    """Stage 3: correspondences in neighbouring frames vote, or the cells along a track."""

    method: Literal["neighbours", "tracks", "reference", "none"] = "neighbours"
    """Who votes on a cell: it and its correspondences in neighbouring frames ("neighbours"), or the cells along its track
    ("tracks"; "reference": the paper's code), whose errors add up from hop to hop. "none" skips the stage, for
    ablations."""
    radius: int = 2
    """"neighbours": how many cells to each side of its place a cell's correspondence may lie."""
    reach: int = 2
    """"neighbours": how many frames to each side vote, across the seams of windows too."""
    temperature: float = 0.5
    """"neighbours" vote with weight exp((cosine - 1) / temperature). Below 0.1 only a cell's own votes count."""
    max_jump: int = 1
    """"tracks": the most cells a hop covers along an axis. Paper: 1, that is 8 or 16 pixels of motion between two frames."""
    majority: float = 0.7
    """"tracks": the least share of a track's votes that overrules a cell. Paper: 0, the most common label always does; tracks
    that slip across an object's border then carry its label along."""


@dataclass(frozen=True)
class UpsampleSettings:
    """Stage 4: masked modulation."""

    strategy: Literal["direct", "guided", "reference"] | None = None
    """"direct": one unguided step with replay. "guided": the paper's schedule, mask by mask, about 100 times the compute.
    "reference": the same, and the paper's code from the responses to the labels as well (`paper.score`)."""
    block: str | None = None
    """Attention module whose output is modulated."""
    timestep: float | None = None
    """Noise level of the modulated step of "direct"."""
    strength: float | None = None
    """lambda: the constant that is added (and, two-sided, subtracted) inside the mask."""
    difference: Literal["one-sided", "two-sided"] = "one-sided"
    """"direct": +lambda is compared with no modulation, which is computed anyway, or with -lambda (paper), which takes another
    pass."""
    separation: int | None = 1
    """"direct": masks more than this many cells apart are modulated in one pass. None: each mask alone. With 1,
    6 or 7 passes suffice for 20 masks, a number that stops growing with K, and 99.6 % of pixels are as with None; with 2, one
    pass more and 99.7 % (`benchmarks/colouring.py`)."""
    edges: float = 0.5
    """Radius, in cells, of the squares in which scores follow the frame's edges (`edges`); 0: they do not, as in the paper."""
    damping: float = 0.0
    """Weight of the response where the votes are for other labels. Paper: 0.7 outside the coarse mask, which lets distant halos
    win pixels."""
    floor: float = 2.0
    """Added to a response, whose full strength is 1, before the votes weight it: where nothing responds, the votes decide."""
    peak: float = 0.9
    """Quantile of a mask's response over the frame that counts as its full strength. Paper: 1, the maximum, a single pixel."""
    chunk: int = 16
    """Images per UNet pass; memory, not results beyond rounding, depends on it. A video model takes at least a window."""


@dataclass(frozen=True)
class PaperSettings:
    """For the paper's schedule alone: `features.schedule` = "reference", and every `upsample.strategy` except "direct"."""

    steps: int = 25
    """Euler steps of the whole schedule, of which those from `start_step` on are run. Paper: 25."""
    start_step: int | None = None
    """Index of the step that adds noise and modulates masks. Paper: 22 for image models, 17 for video models."""
    blend_until: int | None = None
    """Last step after which the latent outside the mask is taken from the unmodulated pass. Paper: 23 for image models (the
    last step, 24, is left alone), 24 for video models."""
    guidance: float | tuple[float, float] | None = None
    """Classifier-free guidance scale; two numbers: on a window's first and last frame, linear between. Paper: 5 for image
    models, (1, 2.5) for video models. 1 switches it off, and halves the cost."""

    @property
    def scale(self) -> float | tuple[float, float] | None:
        """The guidance of a pass; None for a guidance of 1, which is the conditional pass alone."""
        return None if self.guidance == 1 else self.guidance


@dataclass(frozen=True)
class Settings:
    """All settings. `window` is in frames (paper: 14); `seed` is the only source of randomness.

    `working_size` = (height, width) in pixels that the model sees; None: the model's native area at the clip's aspect ratio;
    "clip" (paper): the clip's own sides, each cut down to a multiple of 64.
    """

    condition: ConditionSettings = field(default_factory=ConditionSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    context: ContextSettings = field(default_factory=ContextSettings)
    refine: RefineSettings = field(default_factory=RefineSettings)
    upsample: UpsampleSettings = field(default_factory=UpsampleSettings)
    paper: PaperSettings = field(default_factory=PaperSettings)
    window: int = 14
    working_size: tuple[int, int] | Literal["clip"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)

    def resolve(self, model: "Model") -> "Settings":
        """Fill every None that differs by model from its registry entry."""
        features = _fill(self.features, blocks=model.blocks, match_blocks=model.match_blocks, timestep=model.feature_timestep,
                         combine=model.combine, normalise=model.normalise, position=model.position,
                         scales=model.scales)  # fmt: skip
        upsample = _fill(self.upsample, strategy=model.strategy, block=model.modulated, timestep=model.modulation_timestep,
                         strength=model.strength)  # fmt: skip
        paper = _fill(self.paper, start_step=model.start_step, blend_until=model.blend_until, guidance=model.guidance)
        return replace(self, features=features, upsample=upsample, paper=paper)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Any) -> "Settings":
        """The inverse of `to_dict`; InputError for anything else, unknown names included."""
        if not isinstance(data, dict):
            return _build(cls, data)
        try:
            return _build(cls, {k: _build(STAGES[k], v) if k in STAGES else v for k, v in data.items()})
        except TypeError as error:
            raise InputError(f"a setting has a value of the wrong kind ({error})") from error


STAGES = {"condition": ConditionSettings, "features": FeatureSettings, "context": ContextSettings, "refine": RefineSettings,
          "upsample": UpsampleSettings, "paper": PaperSettings}  # fmt: skip


def _build(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{kind.__name__} is read from an object with its fields, not from {data!r}")
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - known):
        raise InputError(f"{kind.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _fill(part: Any, **defaults: Any) -> Any:
    return replace(part, **{k: v for k, v in defaults.items() if getattr(part, k) is None})
