"""The video family: Stable Video Diffusion (Blattmann et al. 2023) behind the interface of `Backbone`.

What differs from an image model: the frames of a window are denoised together, given the window's first frame; noise levels
are a continuum, preconditioned as in EDM (Karras et al. 2022, table 1: c_in = 1 / sqrt(sigma^2 + 1), c_noise = ln(sigma) / 4,
the network predicts v); attention is spatial ([f, h * w, d]) and temporal ([h * w, f, d]).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidseg_core.common import InputError
from vidseg_core.models import hooks
from vidseg_core.models.backbone import CONDITION_SEED, Backbone, Condition, Guidance, add_to_tokens
from vidseg_core.settings import ConditionSettings

SPATIAL, TEMPORAL = ".transformer_blocks.", ".temporal_transformer_blocks."


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers neither draws progress bars for weights that load in no time, nor advises torchvision,
    which nothing here uses."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class ImageEncoder:
    """CLIP's vision tower and the preprocessing it was trained with: sides in pixels, mean and deviation of RGB in [0, 1]."""

    network: nn.Module
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 1 d"]:
        """The embeddings of images in [-1, 1], blurred and squeezed to a square as SVD's own code does."""
        with quiet():
            from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as pipeline
        small = pipeline._resize_with_antialiasing(images, (self.side, self.side)) * 0.5 + 0.5
        mean, deviation = (images.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.deviation))
        pixels = ((small - mean) / deviation).to(self.network.dtype)
        return self.network(pixels).image_embeds[:, None]


class VideoBackbone(Backbone):
    """A video diffusion model (`UNetSpatioTemporalConditionModel`). Every pass holds n whole windows of f frames, window
    after window along the batch; one window, or two with guidance, unless a caller repeats it (masked modulation)."""

    coupled = True

    def __init__(self, *args, image_encoder: ImageEncoder, **kwargs):
        """As `Backbone`, and CLIP's vision tower for the conditioning frame."""
        super().__init__(*args, **kwargs)
        self.image_encoder = image_encoder

    def sigma(self, timestep: float) -> float:
        """Noise level of c_noise = ln(sigma) / 4, the network's own time: exp(4 t)."""
        if not -4 <= timestep <= 4:
            raise InputError(f"timestep {timestep} is outside -4..4: a video model's time is ln(sigma) / 4")
        return math.exp(4 * timestep)

    @torch.inference_mode()
    def condition(self, images: Float[Tensor, "f 3 H W"], settings: ConditionSettings, seed: int) -> Condition:
        """The window's first frame, as CLIP's embedding and, slightly noised, as an unscaled latent; and three numbers."""
        first = images[:1].to(self.device, torch.float32)
        noised = first + settings.noise_augmentation * self.noise(first, seed + CONDITION_SEED, shared=True)
        numbers = torch.tensor([[settings.fps, settings.motion_bucket, settings.noise_augmentation]], device=self.device)
        latent = self.codec.encode(noised) / self.codec.scale
        dtype = self.unet.dtype
        return Condition(self.image_encoder(first).to(dtype), len(images), latent.to(dtype), numbers.to(dtype))

    def _default_condition(self, frames: int) -> Condition:
        raise ValueError("a video model's pass needs the condition of its window: give denoise the result of condition(images)")

    def _guided(self, scaled: Tensor, timestep: float, guidance: Guidance | None, condition: Condition) -> Tensor:
        clips = scaled.unflatten(0, (-1, condition.frames))
        n, f = clips.shape[:2]
        embedding, first = condition.embedding.expand(n, -1, -1), condition.first.expand(n, f, -1, -1, -1)
        if guidance is not None:
            clips, n = torch.cat([clips, clips]), 2 * n
            embedding, first = (torch.cat([torch.zeros_like(c), c]) for c in (embedding, first))
        t = torch.tensor(timestep, device=self.device)
        numbers = condition.numbers.expand(n, -1)
        output = self.unet(torch.cat([clips, first], 2), t, encoder_hidden_states=embedding, added_time_ids=numbers).sample
        if guidance is None:
            return output.flatten(0, 1)
        low, high = guidance if isinstance(guidance, tuple) else (guidance, guidance)
        scale = torch.linspace(low, high, f, device=self.device).view(1, f, 1, 1, 1)
        unconditional, output = output.float().chunk(2)
        return (unconditional + scale * (output - unconditional)).flatten(0, 1)

    def replay(self, record: hooks.Recording, rows: Tensor) -> AbstractContextManager[None]:
        """As for an image model, but `rows` [n * f] must be the whole window of f frames, n times."""
        f = int(rows.max()) + 1
        repeats = len(rows) // f
        if not torch.equal(rows.cpu(), torch.arange(f).repeat(repeats)):
            raise ValueError("a video model replays whole windows: rows must be 0..f-1, over and over")
        return hooks.replayed(self.unet, record, lambda value: value.repeat(repeats, *[1] * (value.dim() - 1)))

    def modulation(self, block: str, shift: Float[Tensor, "n h w"], frames: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Both the spatial attention `block`, [n, h * w, d], and its temporal twin, [windows * h * w, f, d], are shifted."""
        if SPATIAL not in block or TEMPORAL in block:
            raise InputError(f"upsample.block is {block!r}; give a spatial one (..{SPATIAL}..), its temporal twin follows")
        tokens = shift.flatten(1)
        in_time = tokens.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)[:, :, None]
        return {
            **super().modulation(block, shift, frames),
            block.replace(SPATIAL, TEMPORAL): lambda output: add_to_tokens(output, in_time),
        }

    def injected(self) -> tuple[str, ...]:
        """Queries and keys of temporal self-attention alone (FIELD)."""
        return tuple(p for p in super().injected() if TEMPORAL in p and ".attn1." in p)
