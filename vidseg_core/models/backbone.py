"""The pre-trained diffusion model: encode, decode, noise, and one UNet pass that can be looked into.

With `video_backbone` and `loading` the only module that knows diffusers. Latents are in the variance-exploding convention of
Karras et al. 2022: a noisy latent is `z + sigma * noise`, and `denoise` maps it to an estimate of `z`, whatever the network
itself predicts (table 1 there).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vidseg_core.common import InputError
from vidseg_core.models import hooks
from vidseg_core.models.codec import Codec, Known
from vidseg_core.models.elsewhere import Recipe
from vidseg_core.models.memory import Pieces
from vidseg_core.models.registry import Model
from vidseg_core.settings import ConditionSettings, Settings

Guidance = float | int | tuple[float, float]
POSTERIOR_SEED, CONDITION_SEED = 1_000_003, 2_000_003
"""Added to a run's seed for what is drawn beside the latents' noise; from the same seed the numbers would be the same."""


@dataclass(frozen=True)
class Condition:
    """Conditioning of a pass, beside the noisy latents: an embedding [1, n, d], how many frames the window has and, for video
    models, the latent of its first frame [1, c, h, w] and three numbers [1, 3] (fps, motion bucket, noise augmentation)."""

    embedding: Float[Tensor, "1 n d"]
    frames: int
    first: Float[Tensor, "1 c h w"] | None = None
    numbers: Float[Tensor, "1 3"] | None = None


class Backbone:
    """An image diffusion model (`UNet2DConditionModel`) as the stages see it. Make one with `load_backbone`."""

    coupled = False
    """Whether the frames of a pass see each other, so that a pass has to hold whole windows."""
    recipe: Recipe | None = None
    """How another process makes the same; `load_backbone` says it."""

    def __init__(
        self, model: Model, unet: nn.Module, codec: Codec, scheduler: dict, prompt: Callable[[str], Float[Tensor, "1 n d"]],
        device: str | torch.device | None = None,
    ):  # fmt: skip
        """`prompt` embeds a text; `device` is where passes run, which differs from where weights lie if they are offloaded."""
        self.model, self.unet, self.codec = model, unet.eval().requires_grad_(False), codec
        self.scheduler, self.prompt, self.pieces = scheduler, prompt, Pieces()
        self.device = torch.device(device or unet.device)
        self.multiple = codec.factor * 2 ** (len(unet.config.block_out_channels) - 1)

    def check(self, settings: Settings) -> None:
        """Refuse blocks, noise levels and sizes that this model does not have, before any work."""
        f, u, name = settings.features, settings.upsample, self.model.name
        known = {path for path, _ in self.unet.named_modules()}
        for path in (*f.blocks, *f.match_blocks, u.block):
            if path not in known:
                raise InputError(f"{name} has no block {path!r}: these settings are for another model")
        self.sigma(f.timestep), self.sigma(u.timestep)
        if isinstance(settings.paper.guidance, tuple) and not self.coupled:
            raise InputError(f"paper.guidance is {settings.paper.guidance}; {name} is an image model and takes one number")
        size, multiple = settings.working_size, self.multiple
        if isinstance(size, tuple) and any(side < multiple or side % multiple for side in size):
            near = tuple(max(1, round(side / multiple)) * multiple for side in size)
            raise InputError(
                f"working size {size} (height, width) does not suit {name}: give multiples of {multiple}, such as {near}"
            )

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) near the model's native area at this aspect ratio, in multiples of what the network needs."""
        scale = (self.model.native[0] * self.model.native[1] / (height * width)) ** 0.5
        return tuple(max(4, round(side * scale / self.multiple)) * self.multiple for side in (height, width))

    def images(self, frames: UInt8[np.ndarray, "f H W 3"], size: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
        """Frames as RGB in [-1, 1] at `size`, resized with antialiasing (bicubic) where that differs."""
        return torch.cat([_image(frame, size) for frame in frames]).to(self.device)

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "f 3 H W"], sample: int | None = None) -> Float[Tensor, "f c h w"]:
        """RGB in [-1, 1], sides multiples of `multiple`, to latents: the mean of the codec's posterior, or a draw from it with
        the seed `sample`."""
        return self.codec.encode(images, None if sample is None else sample + POSTERIOR_SEED).float()

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f 3 H W"]:
        """Latents to RGB, nominally in [-1, 1], not clipped."""
        return self.codec.decode(latents).float()

    @torch.inference_mode()
    def decode_difference(
        self, a: Float[Tensor, "f c h w"], b: Float[Tensor, "f c h w"], known: Known | None = None
    ) -> Float[Tensor, "f 3 H W"]:
        """decode(a) - decode(b), in float32; `known` keeps what `b` was decoded to (see `Codec.decode_difference`)."""
        return self.codec.decode_difference(a, b, known).float()

    def noise(self, like: Float[Tensor, "f c h w"], seed: int, shared: bool) -> Float[Tensor, "_ c h w"]:
        """Unit Gaussian noise, the same on every device: one image for all frames (`shared`) or one for each."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, *like.shape[1:]) if shared else like.shape
        return torch.randn(shape, generator=generator).to(like.device)

    def sigma(self, timestep: float) -> float:
        """Noise level of a training timestep in 0..999: sqrt((1 - a) / a), a the cumulative product of the alphas."""
        betas = self._betas()
        if not 0 <= timestep < len(betas):
            raise InputError(f"timestep {timestep} is outside 0..{len(betas) - 1}")
        alpha = torch.cumprod(1 - betas, 0)[round(timestep)]
        return float(((1 - alpha) / alpha).sqrt())

    def schedule(self, steps: int) -> tuple[list[float], list[float]]:
        """Timesteps [steps] and sigmas [steps + 1] of Euler's method: trailing spacing (FIELD: 999, 959, ..., 39), or Karras'
        where the model's own configuration asks for it (FIELD: 700 to 0.002)."""
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler.from_config(self.scheduler, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.tolist(), scheduler.sigmas.tolist()

    def condition(self, images: Float[Tensor, "f 3 H W"], settings: ConditionSettings, seed: int) -> Condition:
        """Conditioning for the window `images`: the prompt; in video models, the first frame."""
        return self._told(settings.prompt, len(images))

    def _told(self, prompt: str, frames: int) -> Condition:
        return Condition(self.prompt(prompt).to(self.device, self.unet.dtype), frames)

    def _default_condition(self, frames: int) -> Condition:
        return self._told("", frames)

    @torch.inference_mode()
    def denoise(
        self,
        noisy: Float[Tensor, "f c h w"],
        timestep: float,
        guidance: Guidance | None = None,
        condition: Condition | None = None,
    ) -> Float[Tensor, "f c h w"]:
        """One UNet pass: the estimate of the clean latents.

        `guidance`: scale of classifier-free guidance (Ho & Salimans 2022) against a zero embedding; the pass then has
        batch 2f, unconditional half first. None: the conditional pass alone. `condition` None: the empty prompt.
        """
        sigma = self.sigma(timestep)
        scaled = (noisy / (sigma**2 + 1) ** 0.5).to(self.unet.dtype)
        condition = condition or self._default_condition(len(noisy))
        output = self._guided(scaled, timestep, guidance, condition).float()
        if self.scheduler.get("prediction_type") == "v_prediction":
            return noisy / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
        return noisy - sigma * output

    def _guided(self, scaled: Tensor, timestep: float, guidance: Guidance | None, condition: Condition) -> Tensor:
        embedding = condition.embedding.expand(len(scaled), -1, -1)
        if guidance is not None:
            scaled, embedding = torch.cat([scaled, scaled]), torch.cat([torch.zeros_like(embedding), embedding])
        t = torch.full((len(scaled),), round(timestep), device=self.device)
        output = self.unet(scaled, t, encoder_hidden_states=embedding).sample
        if guidance is None:
            return output
        unconditional, output = output.float().chunk(2)
        return unconditional + guidance * (output - unconditional)

    def in_pieces(self, images: int, window: int, size: int, work: Callable[[slice], Any]) -> Iterator[Any]:
        """`work(slice)` over so many images, `size` at most in a pass, fewer if memory is short (see `Pieces.run`). A video
        model's passes hold whole windows, `window` images each."""
        unit = window if self.coupled else 1
        scaled = lambda part: work(slice(part.start * unit, part.stop * unit))  # noqa: E731
        return self.pieces.run(images // unit, max(1, size // unit), scaled)

    def cell(self, block: str) -> int:
        """Pixels across a cell of a block of the decoder, whose blocks double the resolution one after the other."""
        return self.multiple // 2 ** int(block.split(".")[1])

    def tap(self, paths: tuple[str, ...], enough: bool = False) -> AbstractContextManager[dict[str, Tensor]]:
        """Read module outputs during passes; see `hooks.tapped`."""
        return hooks.tapped(self.unet, paths, enough)

    def edit(self, edits: dict) -> AbstractContextManager[None]:
        """Change module outputs during passes; see `hooks.edited`."""
        return hooks.edited(self.unet, edits)

    def record(self, until: str) -> AbstractContextManager[hooks.Recording]:
        """Keep what a pass computes up to a module; see `hooks.recorded`."""
        return hooks.recorded(self.unet, until)

    def replay(self, record: hooks.Recording, rows: Tensor) -> AbstractContextManager[None]:
        """Start passes from a recording, at the batch rows [n] of the recorded pass; see `hooks.replayed`."""
        return hooks.replayed(self.unet, record, lambda value: value.index_select(0, rows.to(value.device)))

    def modulation(self, block: str, shift: Float[Tensor, "n h w"], frames: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Edits that add `shift` (a constant per cell, for each of the n images of a pass, that is of n / `frames` windows) to
        the output of attention `block` [n, h * w, d], on all channels."""
        tokens = shift.flatten(1)[:, :, None]
        return {block: lambda output: add_to_tokens(output, tokens)}

    def injected(self) -> tuple[str, ...]:
        """Modules whose output the paper's schedule takes from the unmodulated pass: queries and keys of self- and
        cross-attention in the UNet's decoder (the original's output blocks 3-11)."""
        return tuple(
            path
            for path, _ in self.unet.named_modules()
            if path.startswith("up_blocks") and path.endswith(("attn1.to_q", "attn1.to_k", "attn2.to_q", "attn2.to_k"))
        )

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def _betas(self) -> Float[Tensor, "1000"]:
        config = self.scheduler
        if config.get("beta_schedule", "scaled_linear") != "scaled_linear":
            raise InputError(f"beta schedule {config['beta_schedule']!r} is not that of Stable Diffusion ('scaled_linear')")
        ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
        return torch.linspace(*ends, config["num_train_timesteps"], dtype=torch.float64) ** 2


def add_to_tokens(output: Float[Tensor, "n t d"], shift: Float[Tensor, "_ _ 1"]) -> Float[Tensor, "n t d"]:
    """An attention output plus `shift`; ValueError for a layer of another resolution."""
    if output.shape[:2] != shift.shape[:2]:
        raise ValueError(
            f"the modulated layer gives {tuple(output.shape[:2])} tokens, the masks {tuple(shift.shape[:2])}: "
            "use a block of that resolution"
        )
    return output + shift.to(output.dtype)


def _image(frame: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """On the CPU and one at a time: a large frame is never a float tensor beside its neighbours."""
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
