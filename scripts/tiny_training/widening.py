"""From an image model's weights to a start for a video model: levels widened, time told in another way."""

import torch
from torch import Tensor, nn

TYPICAL = 60
"""Of the image model's timesteps (0..999): what its layers are told of time at this one becomes constant at the start."""


@torch.no_grad()
def begin_from_image(video: nn.Module, image: nn.Module) -> None:
    """Copy what has a counterpart in the image UNet into the video UNet, in place. No copy of the function, but a start: norms
    have other groups, and the first level more channels. Temporal layers stay as they are.

    Where the video's tensor is larger, the image's fills part of it; what remains is scaled down to a tenth.
    """
    theirs = dict(image.named_parameters())
    for name, target in video.named_parameters():
        if "temporal" in name or "time_" in name or name.startswith("add_embedding"):
            continue
        source = theirs[name.replace("spatial_res_block.", "")]
        if target.dim() > 1 and target.shape != source.shape:
            target.mul_(0.1)
        fill(target, source)
    told = image.time_embedding(image.time_proj(torch.tensor([TYPICAL])).to(image.dtype))
    for name, layer in video.named_modules():
        if name.endswith("spatial_res_block"):
            counterpart = image.get_submodule(name.removesuffix(".spatial_res_block"))
            layer.time_emb_proj.weight.mul_(0.1)
            fill(layer.time_emb_proj.bias, counterpart.time_emb_proj(nn.functional.silu(told))[0])


def fill(target: Tensor, source: Tensor) -> None:
    """Write `source` into the first entries of `target` along each side; see `places`."""
    index = torch.meshgrid(*[places(t, s) for t, s in zip(target.shape, source.shape, strict=True)], indexing="ij")
    target[index] = source


def places(target: int, source: int) -> Tensor:
    """Where the channels of the image model go. The last block's 48 own channels and 48 of the skip connection become 64 and
    64, so that the second half begins at 64."""
    if (target, source) == (128, 96):
        return torch.cat([torch.arange(48), 64 + torch.arange(48)])
    return torch.arange(source)
