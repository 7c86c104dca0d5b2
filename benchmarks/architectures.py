"""Stable Diffusion and Stable Video Diffusion at their true configurations, with random weights or, on the meta device, none.

The arguments are those of unet/config.json, vae/config.json and so on of the hub ids in the registry.
"""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vidseg_core.models.backbone import Backbone
from vidseg_core.models.codec import AutoencoderCodec
from vidseg_core.models.registry import MODELS
from vidseg_core.models.video_backbone import ImageEncoder, VideoBackbone

LEVELS = 4
SVD_SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
    "interpolation_type": "linear", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0,
    "timestep_spacing": "leading", "timestep_type": "continuous", "steps_offset": 1,
}  # fmt: skip
SD_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TRUE_UNET = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21-base": {
        "sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
    },
    "svd": {"sample_size": 96, "num_frames": 14, "num_attention_heads": (5, 10, 20, 20)},
}  # fmt: skip


def true_unet(name: str) -> torch.nn.Module:
    """The network of a registry entry at its full size, random weights (or none, on the meta device)."""
    if name == "svd":
        return UNetSpatioTemporalConditionModel(**TRUE_UNET[name])
    return UNet2DConditionModel(**TRUE_UNET[name])


def true_vae(name: str) -> torch.nn.Module:
    """Its autoencoder."""
    blocks = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * LEVELS}
    if name == "svd":
        return AutoencoderKLTemporalDecoder(**blocks, layers_per_block=2)
    return AutoencoderKL(**blocks, up_block_types=("UpDecoderBlock2D",) * LEVELS, layers_per_block=2)


def true_image_encoder() -> torch.nn.Module:
    """SVD's vision tower, CLIP ViT-H/14."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
            image_size=224, projection_dim=1024, hidden_act="gelu",
        )
    )  # fmt: skip


CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def true_backbone(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """A registry entry at full size. The autoencoder stays in float32, as when it is loaded."""
    video = name == "svd"
    with torch.device(device):
        unet, vae = true_unet(name).to(device, dtype), true_vae(name).to(device, torch.float32)
        embedding = torch.randn(1, 77, TRUE_UNET[name].get("cross_attention_dim", 1024))
        vision = true_image_encoder().to(dtype).eval().requires_grad_(False) if video else None
    scheduler = dict(EulerDiscreteScheduler(**(SVD_SCHEDULER if video else SD_SCHEDULER)).config)
    codec = AutoencoderCodec(vae.eval().requires_grad_(False))
    parts = (MODELS[name], unet, codec, scheduler, lambda text: embedding)
    if not video:
        return Backbone(*parts)
    return VideoBackbone(*parts, image_encoder=ImageEncoder(vision, 224, CLIP_MEAN, CLIP_DEVIATION))
