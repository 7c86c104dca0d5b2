"""What shapes a training, and which values are refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from vidseg_core.common import InputError

CELL = 8  # pixels per query token
LAST_BLOCK = 15  # of EfficientNet-Lite0
MODELS = ("tiny", "tiny-video")
FREE = ("steps", "minutes")
"""Settings that may change when a run goes on: the budget."""


def option(default: object, about: str) -> object:
    """A field with the text that `--help` shows for it."""
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class TrainSettings:
    """Everything on the command line that shapes the result; recorded beside the weights."""

    model: str = option("tiny", "what is trained: tiny (images) or tiny-video (windows of frames)")
    seed: int = option(0, "of weights, crops and noise")
    steps: int | None = option(
        None, "stop after so many; with one thread count, and without --minutes, a run can be repeated exactly"
    )
    minutes: float | None = option(None, "stop after so much training time, over all resumes")
    batch: int = option(24, "crops a step; 24 of 96x128 is what two CPU cores turn over in about a second")
    height: int = option(96, "of a crop, pixels")
    width: int = option(128, "of a crop; 96x128 is a 12x16 grid of queries: large enough for objects, small enough for a CPU")
    side: int = option(192, "short side to which larger images are reduced, so that a crop sees a good part of them")
    scale_low: float = option(0.8, "smallest side of a crop's box in the image over the crop's own")
    scale_high: float = option(1.5, "largest; objects are seen in several sizes, as far as the image allows")
    lr: float = option(4e-4, "learning rate; from scratch. Rather less when going on from weights")
    warmup: int = option(100, "steps until the full learning rate; those of --head-steps count among them")
    head_steps: int = option(100, "steps at the start in which the new head learns alone, when weights are given")
    head_lr_factor: float = option(3.0, "the head is two 1x1 convolutions, bears a higher rate and must not lag behind")
    query_lr_factor: float = option(1.0, "for the tapped queries and the keys beside them: what is measured is linear in them")
    weight_decay: float = option(1e-2, "of AdamW")
    clip: float = option(1.0, "largest norm of the gradient")
    ema: float = option(0.999, "decay of the average of weights that is written: a half-life of 700 steps, shorter at first")
    timestep_power: float = option(2.0, "t = 1000 u^power: low timesteps, where queries are read, come up more often")
    align_weight: float = option(
        1.0, "of the cosine between head and feature; 0 and --relation-weight 0: a plain diffusion model"
    )
    relation_weight: float = option(0.5, "of the difference of token-token cosines: K-means works on queries, not on the head")
    relation_tokens: int = option(1024, "tokens drawn from a batch for it: pairs within and across images")
    border_weight: float = option(
        0.1, "of the difference of mean queries at the border and inside; without it a frame is a cluster"
    )
    frames: int = option(8, "tiny-video: frames of a clip; --batch counts clips")
    real_share: float = option(0.3, "tiny-video: clips that are real; the others are pseudo-videos made from the images")
    cutout_share: float = option(0.7, "tiny-video: pseudo-videos in which a piece of another image moves across")
    speed: float = option(
        1.0, "tiny-video: how fast pseudo-videos move; at 1 a camera crosses up to 0.4 of the picture's width in 14 frames"
    )
    noise_mean: float = option(-1.0, "tiny-video: mean of the logarithm of noise levels; the features are read at low ones")
    noise_deviation: float = option(1.6, "tiny-video: its deviation")
    shared_noise: float = option(0.25, "tiny-video: clips with one noise for all frames, as the pipeline's features have it")
    hidden_share: float = option(
        0.5, "tiny-video: clips of which parts are hidden by noise in some frames: only other frames tell what is there"
    )
    drop: float = option(0.1, "tiny-video: clips without their first frame as condition, for guidance")
    concept_weight: float = option(0.2, "tiny-video: of the cosine between the image encoder's embedding and the CNN's mean")
    correspondence_weight: float = option(
        0.0, "tiny-video: of finding each cell of a pseudo-video again in another frame, by the queries that stage 3 compares"
    )
    teacher_weight: float = option(
        0.0, "tiny-video: of the queries of the embedded image model, which sees each frame clean, among the targets"
    )
    enlarge: int = option(2, "the CNN sees images enlarged so much: its stride of 16 then is our 8")
    blocks: tuple[int, ...] = option((4, 10, 15), "of the CNN, whose output is the target: strides 8, 16, 32")
    block_weights: tuple[float, ...] = option((0.35, 0.35, 0.3), "of each block in both alignment terms")

    @property
    def aligned(self) -> bool:
        """Whether the CNN is needed at all."""
        return self.align_weight > 0 or self.relation_weight > 0

    @property
    def target_weights(self) -> tuple[float, ...]:
        """Of each block of the CNN and, where there is one, of the teacher."""
        if not self.teacher_weight:
            return self.block_weights
        return (*((1 - self.teacher_weight) * w for w in self.block_weights), self.teacher_weight)

    @property
    def batch_images(self) -> int:
        """Images a step: of a video model, the frames of all clips."""
        return self.batch * (1 if self.model == "tiny" else self.frames)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of queries."""
        return self.height // CELL, self.width // CELL

    def check(self) -> None:
        """Raises InputError for a value that cannot work, with the option's name and what is expected."""
        if self.steps is None and self.minutes is None:
            raise InputError("give a budget: --minutes, --steps or both; the learning rate falls to zero at its end")
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            least, most = RANGES.get(name, (0, ANY))
            for v in value if isinstance(value, tuple) else () if value is None or isinstance(value, str) else (value,):
                if not (math.isfinite(v) and least <= v <= most):
                    above = (
                        "more than 0" if least == SMALL else f"{least:g} or more" if most == ANY else f"{least:g} to {most:g}"
                    )
                    raise InputError(f"{spelled(name)} {v:g}: expected {above}")
        if self.model not in MODELS:
            raise InputError(f"--model {self.model}: expected one of {', '.join(MODELS)}")
        if self.height % 16 or self.width % 16:
            raise InputError(f"crops of {self.height}x{self.width}: --height and --width must be multiples of 16")
        if self.scale_low > self.scale_high:
            raise InputError(f"--scale-low {self.scale_low:g} is above --scale-high {self.scale_high:g}")
        if not self.blocks or sorted(set(self.blocks)) != list(self.blocks):
            raise InputError(
                f"--blocks {' '.join(map(str, self.blocks))}: expected different blocks in rising order, e.g. 4 10 15"
            )
        if len(self.blocks) != len(self.block_weights) or not sum(self.block_weights):
            raise InputError(f"--blocks has {len(self.blocks)} entries: give as many --block-weights, not all of them 0")

    def check_resumed(self, before: Mapping[str, object]) -> None:
        """Raises InputError if a run that began with other settings would go on with these; its budget may change."""
        for name in (f.name for f in fields(self) if f.name not in FREE):
            old, new = before.get(name), getattr(self, name)
            if (tuple(old) if isinstance(old, list) else old) != new:
                asked = f"the run began with {spelled(name)} {old}, and is asked to go on with {new}"
                raise InputError(f"{asked}: give the value that it began with, or choose another OUT")


def spelled(name: str) -> str:
    """The field as an option of the command line."""
    return "--" + name.replace("_", "-")


SMALL, ANY = 1e-6, math.inf
# The border loss compares the two outer rings with cells 3 and 4 from either side: seven cells, so 64 pixels.
RANGES = {
    "seed": (0, 2**32 - 1), "minutes": (SMALL, ANY), "batch": (1, ANY), "height": (64, ANY), "width": (64, ANY),
    "side": (64, ANY), "scale_low": (0.01, ANY), "scale_high": (0.01, ANY), "lr": (0, 1), "clip": (SMALL, ANY),
    "ema": (0, 1 - SMALL), "timestep_power": (SMALL, ANY), "relation_tokens": (2, ANY), "enlarge": (1, 8),
    "blocks": (0, LAST_BLOCK), "frames": (1, 64), "real_share": (0, 1), "cutout_share": (0, 1), "shared_noise": (0, 1),
    "drop": (0, 1), "hidden_share": (0, 1), "teacher_weight": (0, 1), "noise_mean": (-5, 4), "noise_deviation": (SMALL, 4),
}  # fmt: skip
"""Smallest and largest value of a setting; of the others, 0 and any."""
