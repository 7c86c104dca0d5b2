"""Every hyperparameter of the method: one frozen dataclass a stage, a reason for each default.

A field left `None` differs by model and is filled from the model's registry entry by `Settings.resolve`. What was used is
thus always a complete, printable, JSON-able record. FIELD numbers in comments are those of the paper's code
(QianWangX/VidSeg_diffusion), as summarised in the README under "What the reference does".
"""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vidseg_core.common import InputError
from vidseg_core.models.registry import Model, find_model
from vidseg_core.validation import check


@dataclass(frozen=True)
class ConditionSettings:
    """What the model is told beside the noisy frames. Each family reads its own fields; the embedded model none."""

    prompt: str = ""
    """Image models: the text. Paper: empty, so that nothing is looked for in particular."""
    fps: int = 14
    """Video models: frames per second of the window, as the network takes it (one less than what is shown). Paper: 14."""
    motion_bucket: int = 127
    """Video models: how much moves, 0..255. Paper: 127."""
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
    """Each token divided by its largest magnitude ("max", paper) or by its Euclidean norm ("l2"), with which no single channel
    says how far apart tokens are. The tiny model: "l2", as its queries were trained by cosines."""
    noise: Literal["shared", "independent"] = "shared"
    """One noise image for all frames, so that equal pixels give equal features; the paper draws one per frame."""
    ensemble: int = 1
    """Noises averaged over. 1: at low noise the second draw changes little and costs a full pass."""
    schedule: Literal["direct", "reference"] = "direct"
    """"direct": one unguided pass. "reference": the guided Euler steps before it are run too, as the paper's code does, with
    the steps, the start and the guidance of `upsample`."""
    position: float | None = None
    """Weight of two extra channels (y, x in [-1, 1]) in the context features; 0 leaves them out, as the paper does."""
    padding: int | None = None
    """Pixels of reflected border around the frame during this pass, cropped from the features: keeps the image border
    from becoming a segment of its own in small models."""
    chunk: int = 8
    """Frames per UNet pass of an image model; memory, not results, depends on it. A video model takes whole windows."""


@dataclass(frozen=True)
class ContextSettings:
    """Stage 2: K-means on the first window, then k-NN against a scene context that moves along."""

    naming: Literal["cells", "clusters"] = "cells"
    """Where a first-frame mask gives classes: to each cell of frame 0 the majority under that cell, or to each cluster that
    under its cells (paper), which loses every object without a cluster of its own. Label-free runs: no matter."""
    memory: Literal["anchored", "window"] = "anchored"
    """What the context remembers: the last window only (paper), or beside it, in equal number, what the clip began with:
    labels then drift less."""
    num_clusters: int = 20
    """K. Paper: 20."""
    restarts: int = 3
    """K-means runs with different seeds, best inertia kept. Paper: 10; 3 with k-means++ lose less than 1 % of inertia."""
    max_iterations: int = 100
    """Lloyd iterations; on the sample clips all runs converge earlier."""
    neighbours: int = 4
    """k of k-NN. Paper: 4."""
    weights: Literal["distance", "uniform"] = "distance"
    """What a neighbour's vote counts: 1 / its distance, or 1 (paper). Of equal votes two against two tie, and the smaller class
    number wins, whatever it stands for: small objects lose cells by that."""
    max_context: int | None = 4096
    """Reference tokens kept, drawn by seed and stratified by label: bounds time and memory. None (paper): all."""
    num_segments: int | None = None
    """Label-free runs: cut the merge tree of the clusters at this many segments. None: every cluster is a segment."""


@dataclass(frozen=True)
class RefineSettings:
    """Stage 3: tracks through the window vote."""

    method: Literal["neighbours", "tracks", "none"] = "neighbours"
    """Who votes on a cell: the cells around it in this frame and those near it in time, by similarity ("neighbours"), or its
    track ("tracks", paper), whose errors add up from hop to hop. "none" hands the coarse map on: for ablation."""
    radius: int = 1
    """"neighbours": cells to each side."""
    reach: int = 2
    """"neighbours": frames to each side, over window seams too."""
    temperature: float = 0.15
    """"neighbours" vote with weight exp((cosine - 1) / temperature). 0.1 to 0.2 make little difference; much below it only a
    cell's own label counts, above it small objects are outvoted."""
    anchor: Literal["none", "frame0"] = "none"
    """"frame0" (paper) mixes in the similarity to frame 0 with weight 1/(q+1) at hop q: the first hop is the identity."""
    max_jump: int = 1
    """Cells a track may move in one hop, along each axis. Paper: 1, that is 8 or 16 pixels of motion between two frames."""
    jump: Literal["absolute", "signed"] = "absolute"
    """"signed" (paper's code) forgets the absolute value, so that jumps up or left pass the filter."""
    on_jump: Literal["cut", "drop"] = "cut"
    """A track that jumps ends there and what it saw counts ("cut"), or is discarded as a whole ("drop", paper)."""
    precision: Literal["subcell", "cell"] = "subcell"
    """Moves between cell centres ("cell", paper) round motion below half a cell to none, in every frame anew."""
    start: Literal["uncovered", "frame0"] = "uncovered"
    """Tracks begin wherever no track passes, in any frame, or only in frame 0 (paper), where new objects get none."""
    majority: float = 0.7
    """Least share of a track's votes that overrules a cell. Paper: 0, the most common label always does; then tracks that
    slip over an object's border carry its label along."""
    collision: Literal["similarity", "last"] = "similarity"
    """Two tracks on one cell: the more similar hop wins, or the one written last (paper)."""


@dataclass(frozen=True)
class UpsampleSettings:
    """Stage 4: masked modulation."""

    strategy: Literal["direct", "reference"] | None = None
    """"direct": one unguided step with replay. "reference": the paper's schedule, about 100 times the compute."""
    block: str | None = None
    """Attention module whose output is modulated."""
    timestep: float | None = None
    """Noise level of the modulated step of "direct"."""
    strength: float | None = None
    """lambda: the constant that is added and subtracted inside the mask."""
    separation: int | None = 1
    """"direct": masks that are more than so many cells apart are modulated in one pass. None: each mask alone. With 1,
    5 passes do for 20 masks, a number that stops growing with K, and 99.1 % of pixels are as with None; with 2, one pass more
    and 99.4 % (`benchmarks/colouring.py`)."""
    damping: float = 0.0
    """Weight of the response outside the (blurred) coarse mask. Paper: 0.7, with which far halos win pixels."""
    mask_blur: float = 0.5
    """Standard deviation, in cells, of the Gaussian on the enlarged mask: coarse borders are wrong by half a cell. Paper: 0."""
    peak: float = 0.99
    """Quantile of a mask's response over the frame that counts as its full strength. Paper: 1, the maximum, a single pixel."""
    blur_size: int = 5
    """Pixels across of the Gaussian on the response map. Paper: 5."""
    blur_sigma: float = 3.0
    """Its standard deviation in pixels. Paper: 3."""
    mask_filter: Literal["bilinear", "lanczos"] = "bilinear"
    """How the coarse mask is enlarged for damping. Paper: Lanczos, whose overshoot buys nothing here."""
    response: Literal["float", "jpeg"] = "float"
    """"jpeg" (paper's code): uint8 differences that wrap around, saved as an 8-bit JPEG."""
    steps: int = 25
    """Euler steps of the whole schedule, of which "reference" runs those from `start_step` on. Paper: 25."""
    start_step: int | None = None
    """Index of the step at which "reference" adds noise and modulates. Paper: 22 for image models, 17 for video models."""
    blend_until: int | None = None
    """Last step of "reference" after which the latent outside the mask is taken from the unmodulated pass. Paper: 23 for image
    models (the last step, 24, is left alone), 24 for video models."""
    guidance: float | tuple[float, float] | None = None
    """Classifier-free guidance scale of "reference"; two numbers: on a window's first and last frame, linear between. Paper:
    5 for image models, (1, 2.5) for video models. 1 switches it off, and halves the cost."""
    chunk: int = 16
    """Images per UNet pass; memory, not results beyond rounding, depends on it. A video model takes at least a window."""

    @property
    def scale(self) -> float | tuple[float, float] | None:
        """What passes of "reference" are guided by: None for a guidance of 1, which is the conditional pass alone."""
        return None if self.guidance == 1 else self.guidance


@dataclass(frozen=True)
class Settings:
    """All of it. `window` is in frames (paper: 14); `seed` is the only source of randomness.

    `working_size` = (height, width) in pixels that the model sees; None: the model's native area at the clip's aspect ratio.
    """

    condition: ConditionSettings = field(default_factory=ConditionSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    context: ContextSettings = field(default_factory=ContextSettings)
    refine: RefineSettings = field(default_factory=RefineSettings)
    upsample: UpsampleSettings = field(default_factory=UpsampleSettings)
    window: int = 14
    working_size: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def reference(cls, model: str | Model) -> "Settings":
        """The paper's code for `model` (a registry entry or its name), its quirks included; see the README."""
        return cls(
            features=FeatureSettings(noise="independent", schedule="reference", combine="mean", normalise="max",
                                     position=0.0, padding=0),
            context=ContextSettings(naming="clusters", memory="window", weights="uniform", restarts=10, max_context=None),
            refine=RefineSettings(method="tracks", anchor="frame0", jump="signed", on_jump="drop", precision="cell",
                                  start="frame0", majority=0.0, collision="last"),
            upsample=UpsampleSettings(strategy="reference", strength=50.0, separation=None, damping=0.7, mask_blur=0.0,
                                      peak=1.0, mask_filter="lanczos", response="jpeg"),
        ).resolve(find_model(model) if isinstance(model, str) else model)  # fmt: skip

    def resolve(self, model: Model) -> "Settings":
        """Fill every None that differs by model from its registry entry."""
        features = _fill(self.features, blocks=model.blocks, match_blocks=model.match_blocks, timestep=model.feature_timestep,
                         combine=model.combine, normalise=model.normalise, position=model.position,
                         padding=model.padding)  # fmt: skip
        upsample = _fill(self.upsample, strategy=model.strategy, block=model.modulated, timestep=model.modulation_timestep,
                         strength=model.strength, start_step=model.start_step,
                         blend_until=model.blend_until, guidance=model.guidance)  # fmt: skip
        return replace(self, features=features, upsample=upsample)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Any) -> "Settings":
        """The inverse of `to_dict`; InputError for anything else, unknown names included."""
        stages = {
            "condition": ConditionSettings,
            "features": FeatureSettings,
            "context": ContextSettings,
            "refine": RefineSettings,
            "upsample": UpsampleSettings,
        }
        if not isinstance(data, dict):
            return _build(cls, data)
        try:
            return _build(cls, {k: _build(stages[k], v) if k in stages else v for k, v in data.items()})
        except TypeError as error:
            raise InputError(f"a setting has a value of the wrong kind ({error})") from error


def _build(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{kind.__name__} is read from an object with its fields, not from {data!r}")
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - known):
        raise InputError(f"{kind.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _fill(part: Any, **defaults: Any) -> Any:
    return replace(part, **{k: v for k, v in defaults.items() if getattr(part, k) is None})
