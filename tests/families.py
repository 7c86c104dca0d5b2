"""The real families' block structure with few channels and random weights, saved as diffusers itself saves a pipeline."""

import json
from pathlib import Path

import torch
from architectures import LEVELS, SD_SCHEDULER, SVD_SCHEDULER
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


def small_unet(family: str) -> torch.nn.Module:
    """Four levels, attention where the real ones have it."""
    channels = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32}
    if family == "svd":
        return UNetSpatioTemporalConditionModel(
            **channels, num_attention_heads=(2, 2, 4, 4), addition_time_embed_dim=8, projection_class_embeddings_input_dim=24
        )
    return UNet2DConditionModel(**channels, attention_head_dim=8, norm_num_groups=8, use_linear_projection=family != "sd15")


def small_vae(family: str) -> torch.nn.Module:
    """Eight pixels a latent cell."""
    down = ("DownEncoderBlock2D",) * LEVELS
    if family == "svd":  # its groups of channels are always 32
        return AutoencoderKLTemporalDecoder(block_out_channels=(32,) * LEVELS, down_block_types=down)
    up = ("UpDecoderBlock2D",) * LEVELS
    return AutoencoderKL(block_out_channels=(8,) * LEVELS, norm_num_groups=4, down_block_types=down, up_block_types=up)


def small(family: str, folder: Path) -> Path:
    """A pipeline of the family with random weights, written by diffusers' own `save_pretrained`."""
    torch.manual_seed(0)
    clip = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 32}
    if family == "svd":
        vision = CLIPVisionConfig(**clip, image_size=224, patch_size=56)
        pipeline = StableVideoDiffusionPipeline(
            small_vae(family), CLIPVisionModelWithProjection(vision), small_unet(family),
            EulerDiscreteScheduler(**SVD_SCHEDULER), CLIPImageProcessor(),
        )  # fmt: skip
    else:
        scheduler = {**SD_SCHEDULER, "prediction_type": "v_prediction" if family == "sd21" else "epsilon"}
        text = CLIPTextConfig(**clip, vocab_size=99, bos_token_id=0, eos_token_id=1, pad_token_id=1)
        pipeline = StableDiffusionPipeline(
            small_vae(family), CLIPTextModel(text), small_tokenizer(folder), small_unet(family),
            EulerDiscreteScheduler(**scheduler), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def small_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer over letters alone."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
