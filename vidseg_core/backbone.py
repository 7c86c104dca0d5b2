"""The pre-trained diffusion model: load, encode, decode, noise, and one UNet pass that can be looked into.

The only module that knows diffusers. Latents are in the variance-exploding convention of Karras et al. 2022: a noisy latent
is `z + sigma * noise`, and `denoise` maps it to an estimate of `z`, whatever the network itself predicts (table 1 there).
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vidseg_core import hooks
from vidseg_core.codec import AutoencoderCodec, BlockDCT, Codec
from vidseg_core.errors import InputError
from vidseg_core.registry import Model, data_folder, find_model


class Backbone:
    """An image diffusion model (`UNet2DConditionModel`) as the stages see it. Make one with `load_backbone`."""

    def __init__(self, model: Model, unet: nn.Module, codec: Codec, scheduler: dict, condition: Float[Tensor, "1 n d"]):
        self.model, self.unet, self.codec = model, unet.eval().requires_grad_(False), codec
        self.scheduler, self.condition = scheduler, condition.to(unet.device, unet.dtype)
        self.multiple = codec.factor * 2 ** (len(unet.config.block_out_channels) - 1)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.unet.device

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) near the model's native area at this aspect ratio, in multiples of what the network needs."""
        scale = (self.model.native[0] * self.model.native[1] / (height * width)) ** 0.5
        return tuple(max(4, round(side * scale / self.multiple)) * self.multiple for side in (height, width))

    def images(self, frames: UInt8[np.ndarray, "f H W 3"], size: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
        """Frames as RGB in [-1, 1] at `size`, resized with antialiasing (bicubic) where that differs."""
        return torch.cat([_image(frame, size) for frame in frames]).to(self.device)

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "f 3 H W"]) -> Float[Tensor, "f c h w"]:
        """RGB in [-1, 1], sides multiples of `multiple`, to latents."""
        return self.codec.encode(images).float()

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f 3 H W"]:
        """Latents to RGB, nominally in [-1, 1], not clipped."""
        return self.codec.decode(latents).float()

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
        """Timesteps [steps] and sigmas [steps + 1] of Euler's method with trailing spacing (FIELD: 999, 959, ..., 39)."""
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler.from_config(self.scheduler, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.tolist(), scheduler.sigmas.tolist()

    @torch.inference_mode()
    def denoise(
        self, noisy: Float[Tensor, "f c h w"], timestep: float, guidance: float | None = None
    ) -> Float[Tensor, "f c h w"]:
        """One UNet pass: the estimate of the clean latents.

        `guidance`: scale of classifier-free guidance (Ho & Salimans 2022) against a zero embedding; the pass then has
        batch 2f, unconditional half first. None: the conditional pass alone.
        """
        sigma = self.sigma(timestep)
        scaled = (noisy / (sigma**2 + 1) ** 0.5).to(self.unet.dtype)
        condition = self.condition.expand(len(noisy), -1, -1)
        if guidance is not None:
            scaled, condition = torch.cat([scaled, scaled]), torch.cat([torch.zeros_like(condition), condition])
        t = torch.full((len(scaled),), round(timestep), device=self.device)
        output = self.unet(scaled, t, encoder_hidden_states=condition).sample.float()
        if guidance is not None:
            unconditional, output = output.chunk(2)
            output = unconditional + guidance * (output - unconditional)
        if self.scheduler.get("prediction_type") == "v_prediction":
            return noisy / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
        return noisy - sigma * output

    def tap(self, paths: tuple[str, ...]) -> AbstractContextManager[dict[str, Tensor]]:
        """Read module outputs during passes; see `hooks.tapped`."""
        return hooks.tapped(self.unet, paths)

    def edit(self, edits: dict) -> AbstractContextManager[None]:
        """Change module outputs during passes; see `hooks.edited`."""
        return hooks.edited(self.unet, edits)

    def record(self, until: str) -> AbstractContextManager[hooks.Recording]:
        """Keep what a pass computes up to a module; see `hooks.recorded`."""
        return hooks.recorded(self.unet, until)

    def replay(self, record: hooks.Recording, rows: Tensor) -> AbstractContextManager[None]:
        """Start passes from a recording; see `hooks.replayed`."""
        return hooks.replayed(self.unet, record, rows)

    def decoder_attention(self) -> tuple[str, ...]:
        """Paths of all self- and cross-attention modules of the UNet's decoder (the original's output blocks 3-11)."""
        return tuple(p for p, _ in self.unet.named_modules() if p.startswith("up_blocks") and p.endswith((".attn1", ".attn2")))

    def _betas(self) -> Float[Tensor, "1000"]:
        config = self.scheduler
        if config.get("beta_schedule", "scaled_linear") != "scaled_linear":
            raise InputError(f"beta schedule {config['beta_schedule']!r} is not that of Stable Diffusion ('scaled_linear')")
        ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
        return torch.linspace(*ends, config["num_train_timesteps"], dtype=torch.float64) ** 2


def _image(frame: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """On the CPU and one at a time: a large frame is never a float tensor beside its neighbours."""
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def load_backbone(name_or_path: str | Path, device: str | None = None, dtype: torch.dtype | None = None) -> Backbone:
    """A pre-trained model by registry name ("tiny": embedded, offline; "sd21-base", ...) or from a folder that diffusers saved.

    `device` None: cuda, then mps, then cpu. `dtype` None: float16 on cuda, float32 elsewhere. Reads safetensors only, runs
    no code that comes with the weights. Raises InputError for a name that is unknown or weights that cannot be had.
    """
    from diffusers import UNet2DConditionModel

    model = find_model(name_or_path)
    device = device or _best_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} is not to be had here: take cpu, or leave it out for the best there is") from error
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    folder = _locate(model)
    options = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options).to(device)
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        codec, condition = _load_codec(folder, device, options), _empty_prompt(folder, unet)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the model in {folder} is incomplete ({reason}); download it again, as safetensors") from error
    return Backbone(model, unet, codec, scheduler, condition)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _locate(model: Model) -> Path:
    for source in model.sources:
        for folder in (data_folder() / source, Path(source)):
            if (folder / "unet").is_dir():
                return folder
    from huggingface_hub import snapshot_download

    files = ["*.json", "*/*.json", "*/*.txt", "*/*model.safetensors"]
    for source in model.sources:
        try:
            return Path(snapshot_download(source, allow_patterns=files))
        except Exception as error:
            reason = error
    raise InputError(
        f"the weights of {model.name!r} ({model.sources[0]}) could not be had ({type(reason).__name__}): "
        "download them where there is a network and give the folder, or use 'tiny', which needs none"
    ) from reason


def _load_codec(folder: Path, device: str, options: dict) -> Codec:
    if (folder / "codec.json").is_file():
        return BlockDCT.load(folder / "codec.json").to(torch.device(device), torch.float32)
    from diffusers import AutoencoderKL

    return AutoencoderCodec(AutoencoderKL.from_pretrained(folder / "vae", **options).to(device).eval().requires_grad_(False))


@torch.inference_mode()
def _empty_prompt(folder: Path, unet: nn.Module) -> Float[Tensor, "1 n d"]:
    if not (folder / "text_encoder").is_dir():  # an unconditional model: one zero token
        return torch.zeros(1, 1, unet.config.cross_attention_dim)
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, local_files_only=True)
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    return encoder(tokens.input_ids)[0]
