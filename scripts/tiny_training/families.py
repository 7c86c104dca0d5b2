"""The two models that can be trained, behind one interface: `tiny` sees images, `tiny-video` windows of frames.

Both keep `tiny`'s codec and its levels; both are aligned at the same two attention blocks of the decoder.
"""

import copy
import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tiny_training.settings import TrainSettings
from tiny_training.widening import begin_from_image
from vidseg_core import sample_clip
from vidseg_core.common import InputError
from vidseg_core.models.codec import BlockDCT
from vidseg_core.models.registry import TINY_VIDEO, data_folder
from vidseg_core.models.video_backbone import ImageEncoder, VideoBackbone
from vidseg_core.settings import ConditionSettings

TINY = data_folder() / "models" / "tiny"  # architecture, codec and scheduler of the image model; the codec of both
VIDEO_UNET = {
    "in_channels": 24, "out_channels": 12, "sample_size": 32, "num_frames": 14, "layers_per_block": 1,
    "block_out_channels": (64, 96, 192), "num_attention_heads": (2, 3, 6), "cross_attention_dim": 32,
    "down_block_types": ("DownBlockSpatioTemporal", *["CrossAttnDownBlockSpatioTemporal"] * 2),
    "up_block_types": (*["CrossAttnUpBlockSpatioTemporal"] * 2, "UpBlockSpatioTemporal"),
    "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96,
}  # fmt: skip
VIDEO_ENCODER = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64,
    "patch_size": 8, "projection_dim": 32,
}  # fmt: skip
VIDEO_SCHEDULER = {
    "prediction_type": "v_prediction", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 80.0,
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_type": "continuous",
}  # fmt: skip
LAST = ("conv2.", "to_out.0.", "net.2.")  # a residual layer's last part: zero there is the identity
HALF = (0.5, 0.5, 0.5)  # mean and deviation of the encoder's pixels


@dataclass(frozen=True)
class NoisyPass:
    """What came of one pass: the denoising loss, each image's certainty [n] in 0..1 (the share of signal in what the network
    saw) and, of a video model, the embeddings of the clips' first frames [clips, d]."""

    denoising: Tensor
    certainty: Tensor
    embedding: Tensor | None = None


class Family(ABC):
    """What the trainer needs to know of a model. A network is all that is averaged and saved."""

    embedding = 0
    """Width of the embedding of a clip's first frame; 0 if the model has none."""

    @abstractmethod
    def create(self) -> nn.Module:
        """Random weights."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """The weights of a folder in diffusers' layout, float32. Raises InputError if they are not those of this model."""

    @abstractmethod
    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the folder in half precision."""

    @abstractmethod
    def noisy_pass(self, network: nn.Module, images: Tensor, settings: TrainSettings, noise: torch.Generator) -> NoisyPass:
        """One pass on noisy latents of images [n, 3, H, W] in [-1, 1]."""

    @abstractmethod
    def samples(self, network: nn.Module, settings: TrainSettings, steps: int, count: int) -> Tensor:
        """Pictures [rows, columns, 3, H, W] in [-1, 1] to look at, not picked."""

    def unet(self, network: nn.Module) -> nn.Module:
        """The UNet within the network."""
        return network

    def tapped(self, network: nn.Module) -> nn.ModuleList:
        """The decoder's attention blocks at 1/8 of the image, whose self-attention queries are the features."""
        return self.unet(network).up_blocks[1].attentions


class ImageFamily(Family):
    """`tiny`: latent diffusion with epsilon prediction on SD's scaled-linear betas."""

    def __init__(self):
        self.codec = BlockDCT.load(TINY / "codec.json")
        self.alphas = DDIMScheduler.from_pretrained(TINY / "scheduler").alphas_cumprod

    def create(self) -> nn.Module:
        """See `Family.create`."""
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(TINY / "unet"))
        return unet.to(memory_format=torch.channels_last)

    def load(self, folder: Path) -> nn.Module:
        """See `Family.load`."""
        ours = UNet2DConditionModel.load_config(TINY / "unet", local_files_only=True)
        return read_network(UNet2DConditionModel, folder, "unet", ours).to(memory_format=torch.channels_last)

    def save(self, network: nn.Module, folder: Path) -> None:
        """See `Family.save`."""
        write_network(network, folder / "unet")
        shutil.copytree(TINY / "scheduler", folder / "scheduler", dirs_exist_ok=True)
        shutil.copyfile(TINY / "codec.json", folder / "codec.json")

    def noisy_pass(self, network: nn.Module, images: Tensor, settings: TrainSettings, noise: torch.Generator) -> NoisyPass:
        """See `Family.noisy_pass`."""
        latents = self.codec.encode(images)
        steps = (torch.rand(len(images), generator=noise) ** settings.timestep_power * len(self.alphas)).long()
        steps = steps.clamp(max=len(self.alphas) - 1)
        signal, drawn = self.alphas[steps], torch.randn(latents.shape, generator=noise)
        noisy = signal.sqrt().view(-1, 1, 1, 1) * latents + (1 - signal).sqrt().view(-1, 1, 1, 1) * drawn
        context = torch.zeros(len(images), 1, network.config.cross_attention_dim)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = network(noisy.to(memory_format=torch.channels_last), steps, context).sample
        return NoisyPass(F.mse_loss(predicted.float(), drawn), signal.sqrt())

    @torch.inference_mode()
    def samples(self, network: nn.Module, settings: TrainSettings, steps: int, count: int) -> Tensor:
        """See `Family.samples`: DDIM from noise."""
        scheduler = DDIMScheduler.from_pretrained(TINY / "scheduler")
        scheduler.set_timesteps(steps)
        shape = (count, self.codec.channels, settings.height // self.codec.factor, settings.width // self.codec.factor)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))
        context = torch.zeros(count, 1, network.config.cross_attention_dim)
        for t in scheduler.timesteps:
            latents = scheduler.step(network(latents, t, context).sample, t, latents).prev_sample
        return self.codec.decode(latents).unflatten(0, (-1, 4))


class VideoNetwork(nn.Module):
    """The video UNet and its image encoder."""

    def __init__(self, unet: nn.Module, encoder: nn.Module):
        super().__init__()
        self.unet, self.encoder = unet, encoder


class VideoFamily(Family):
    """`tiny-video`: v-prediction with EDM's preconditioning on a continuum of noise levels (Karras et al. 2022), given the
    clip's first frame, as Stable Video Diffusion is."""

    embedding = VIDEO_ENCODER["projection_dim"]

    def __init__(self):
        self.codec = BlockDCT.load(TINY / "codec.json")

    def unet(self, network: nn.Module) -> nn.Module:
        """See `Family.unet`."""
        return network.unet

    def create(self) -> nn.Module:
        """See `Family.create`: temporal layers begin as the identity."""
        unet = UNetSpatioTemporalConditionModel(**VIDEO_UNET)
        for name, parameter in unet.named_parameters():
            if any(end in name for end in LAST if "temporal" in name) or "time_pos_embed.linear_2" in name:
                nn.init.zeros_(parameter)
        return VideoNetwork(unet, CLIPVisionModelWithProjection(CLIPVisionConfig(**VIDEO_ENCODER)))

    def load(self, folder: Path) -> nn.Module:
        """See `Family.load`; weights of an image model such as `tiny` are a start as well (`begin_from_image`)."""
        config = folder / "unet" / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("_class_name") == "UNet2DConditionModel":
            network = self.create()
            begin_from_image(network.unet, ImageFamily().load(folder))
            return network
        unet = UNetSpatioTemporalConditionModel(**VIDEO_UNET)
        ours = {k: list(v) if isinstance(v, tuple) else v for k, v in unet.config.items()}
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", local_files_only=True).float()
        return VideoNetwork(read_network(UNetSpatioTemporalConditionModel, folder, "unet", ours), encoder)

    def save(self, network: nn.Module, folder: Path) -> None:
        """See `Family.save`."""
        write_network(network.unet, folder / "unet")
        write_network(network.encoder, folder / "image_encoder")
        EulerDiscreteScheduler(**VIDEO_SCHEDULER).save_pretrained(folder / "scheduler")
        (folder / "feature_extractor").mkdir(exist_ok=True)
        about = {"image_mean": HALF, "image_std": HALF, "size": {"shortest_edge": VIDEO_ENCODER["image_size"]}}
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(about, indent=1) + "\n")
        shutil.copyfile(TINY / "codec.json", folder / "codec.json")

    def noisy_pass(self, network: nn.Module, images: Tensor, settings: TrainSettings, noise: torch.Generator) -> NoisyPass:
        """See `Family.noisy_pass`. `images` are clips one after the other, `settings.frames` each."""
        f = settings.frames
        clips, latents = images.unflatten(0, (-1, f)), self.codec.encode(images).unflatten(0, (-1, f))
        n, draw = len(clips), lambda *shape: torch.randn(*shape, generator=noise)
        sigma = (settings.noise_mean + settings.noise_deviation * draw(n)).clamp(-6, 4.3).exp()
        drawn, still = draw(latents.shape), torch.rand(n, generator=noise) < settings.shared_noise
        drawn[still] = drawn[still][:, :1]  # one noise for all frames, as in the pipeline's features
        wide = sigma.view(-1, 1, 1, 1, 1)
        scaled = (latents + wide * drawn) / (wide**2 + 1).sqrt()
        target = (drawn - wide * latents) / (wide**2 + 1).sqrt()
        hidden = hide(latents, settings.hidden_share, noise)
        level = (1.7 * torch.rand(n, f, 1, 1, 1, generator=noise) - 0.5).exp()  # fainter than a picture or louder
        scaled = torch.where(hidden, level * draw(latents.shape), scaled)
        seen = self.encoder(network)(clips[:, 0])
        embedding, first, numbers = self.condition(seen, clips, settings, noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inputs = torch.cat([scaled, first[:, None].expand(-1, f, -1, -1, -1)], 2)
            predicted = network.unet(inputs, sigma.log() / 4, embedding, numbers).sample
        certainty = (1 / (sigma**2 + 1).sqrt()).repeat_interleave(f)
        error = (predicted.float() - target).square().masked_fill(hidden, 0)
        return NoisyPass(error.mean(), certainty, seen)

    def condition(
        self, embedding: Tensor, clips: Tensor, settings: TrainSettings, noise: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first frames' embeddings [n, 1, d], their slightly noised latents [n, c, h, w] and three numbers [n, 3]; the
        first two are zero for a share of the clips, so that the model also works without (guidance)."""
        n, first = len(clips), clips[:, 0]
        level = (-3.5 + 0.5 * torch.randn(n, generator=noise)).exp()
        latent = self.codec.encode(first + level.view(-1, 1, 1, 1) * torch.randn(first.shape, generator=noise))
        kept = (torch.rand(n, generator=noise) >= settings.drop).float()
        rate = torch.randint(6, 31, (n,), generator=noise).float()
        numbers = torch.stack([rate, motion_bucket(clips), level], 1)
        return embedding * kept.view(-1, 1, 1), latent * kept.view(-1, 1, 1, 1), numbers

    def encoder(self, network: nn.Module) -> ImageEncoder:
        """The network's image encoder with its preprocessing."""
        return ImageEncoder(network.encoder, VIDEO_ENCODER["image_size"], HALF, HALF)

    @torch.inference_mode()
    def samples(self, network: nn.Module, settings: TrainSettings, steps: int, count: int) -> Tensor:
        """See `Family.samples`: for `count` sample clips three rows, the frames, what is generated from the first alone,
        and what one pass makes of all of them under noise of deviation 1."""
        rows, size = [], (settings.height, settings.width)
        for name in ("cup", "box")[:count]:
            backbone = self.backbone(network)
            frames = sample_clip(name).frames[: 3 * settings.frames : 3]
            images = backbone.images(np.ascontiguousarray(frames), size)
            condition = backbone.condition(images, ConditionSettings(), settings.seed)
            noise = backbone.noise(backbone.encode(images), settings.seed, shared=False)
            made = backbone.denoise(backbone.encode(images) + noise, 0.0, condition=condition)
            rows += [images, backbone.decode(self.generate(backbone, noise, condition, steps)), backbone.decode(made)]
        return torch.stack(rows)

    def generate(self, backbone: VideoBackbone, noise: Tensor, condition: object, steps: int) -> Tensor:
        """Latents by Euler's method along the model's own schedule."""
        times, sigmas = backbone.schedule(steps)
        latents = noise * sigmas[0]
        for time, (sigma, lower) in zip(times, pairwise(sigmas), strict=True):
            clean = backbone.denoise(latents, time, condition=condition)
            latents = clean + (latents - clean) * lower / sigma
        return latents

    def backbone(self, network: nn.Module) -> VideoBackbone:
        """The network as the pipeline sees it."""
        scheduler = dict(EulerDiscreteScheduler(**VIDEO_SCHEDULER).config)
        prompt = lambda text: torch.zeros(1, 1, VIDEO_UNET["cross_attention_dim"])  # noqa: E731
        return VideoBackbone(TINY_VIDEO, network.unet, self.codec, scheduler, prompt, image_encoder=self.encoder(network))


FAMILIES = {"tiny": ImageFamily, "tiny-video": VideoFamily}


def hide(latents: Tensor, share: float, noise: torch.Generator) -> Tensor:
    """Which cells [n, f, 1, h, w] of latents [n, f, c, h, w] are hidden: in a share of the clips a rectangle in half of the
    frames, each side of it a quarter of the picture's at least."""
    n, f, _, h, w = latents.shape
    drawn = torch.rand(6, n, f, 1, 1, 1, generator=noise)
    height, width = (0.25 + 0.75 * drawn[k] for k in (0, 1))
    top, left = drawn[2] * (1 - height), drawn[3] * (1 - width)
    y, x = ((torch.arange(side) + 0.5) / side for side in (h, w))
    inside = (y[:, None] >= top) & (y[:, None] <= top + height) & (x >= left) & (x <= left + width)
    return inside & (drawn[4] < 0.5) & (drawn[5][:, :1] < share)


def motion_bucket(clips: Tensor) -> Tensor:
    """How much moves in clips [n, f, 3, H, W], 0 to 255: 512 times the mean absolute difference of successive frames."""
    if clips.shape[1] == 1:
        return torch.zeros(len(clips))
    return (512 * clips.diff(dim=1).abs().mean((1, 2, 3, 4))).clamp(max=255).round()


def read_network(kind: type, folder: Path, part: str, ours: dict) -> nn.Module:
    """A network of the architecture `ours` from `folder/part`. Raises InputError if it is another, or cannot be read."""
    if not (folder / part / "config.json").is_file():
        raise InputError(f"{folder} holds no {part}/config.json: give a folder such as OUT/model, or data/models/tiny")
    theirs = kind.load_config(folder / part, local_files_only=True)
    if different := [k for k in ours if not k.startswith("_") and ours[k] != theirs.get(k)]:
        raise InputError(
            f"{folder}/{part} differs from the embedded model in {', '.join(different)}: only its architecture is trained"
        )
    try:
        return kind.from_pretrained(folder / part, torch_dtype=torch.float32, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"the weights in {folder}/{part} cannot be read ({error})") from error


def write_network(network: nn.Module, folder: Path) -> None:
    """Save a copy in half precision, readable to all (safetensors makes it readable to its owner alone), and without the path
    that its weights were read from."""
    copy.deepcopy(network).half().save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
