"""Stage 1: what a diffusion UNet sees in a frame.

The queries of spatial self-attention in the middle of the UNet's decoder, read while it denoises the frame itself at a low
noise level, describe what each cell belongs to (VidSeg, section 3.1; the choice of layer follows the paper's code).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from vidseg_core import paper
from vidseg_core.common import finite
from vidseg_core.models.backbone import Backbone, Condition
from vidseg_core.settings import Settings

QUERY = ".transformer_blocks.0.attn1.to_q"


@dataclass(frozen=True)
class Features:
    """`context` [f, h, w, d] feeds the scene context model, `match` [f, h, w, e] the correspondences. Float32."""

    context: Float[Tensor, "f h w d"]
    match: Float[Tensor, "f h w e"]


def working_images(
    backbone: Backbone, frames: UInt8[np.ndarray, "f H W 3"], settings: Settings, scale: float = 1.0
) -> Float[Tensor, "f 3 h w"]:
    """Frames as the stages take them: RGB in [-1, 1] at `scale` times the working size, multiples of `backbone.multiple`."""
    size = settings.working_size or backbone.working_size(*frames.shape[1:3])
    size = paper.working_size(*frames.shape[1:3]) if size == "clip" else size
    return backbone.images(frames, tuple(max(1, round(side * scale / backbone.multiple)) * backbone.multiple for side in size))


def frame_features(backbone: Backbone, frames: UInt8[np.ndarray, "f H W 3"], settings: Settings) -> Features:
    """Stage 1 for the frames of one window: features at each of `features.scales`, side by side on the grid of the first.

    A cell is as large as the model makes it: a frame seen larger has more cells, which follow borders better. Raises InputError
    for a model that computes NaN, of which the later stages would make one segment.
    """
    s, plain = settings.features, replace(settings, features=replace(settings.features, position=0.0))
    parts = [_shifted(backbone, working_images(backbone, frames, settings, scale), plain) for scale in s.scales]
    context, match = (
        finite(_side_by_side(maps), "the features of this window", backbone.unet.dtype)
        for maps in ([p.context for p in parts], [p.match for p in parts])
    )
    return Features(append_position(context, s.position), match)


def _shifted(backbone: Backbone, images: Float[Tensor, "f 3 H W"], settings: Settings) -> Features:
    """Shift-and-stitch (Long et al. 2015): `shifts` passes along each axis over displaced frames, interleaved."""
    count, cell = settings.features.shifts, backbone.cell(settings.features.blocks[0])
    if count == 1:
        return extract_features(backbone, images, settings)
    margin, (h, w) = cell // 2, images.shape[2:]
    padded = F.pad(images, (margin,) * 4, mode="replicate")
    starts = [round(margin + cell * ((2 * n + 1 - count) / (2 * count))) for n in range(count)]
    grid = [[extract_features(backbone, padded[:, :, y : y + h, x : x + w], settings) for x in starts] for y in starts]

    def interleave(name: str) -> Float[Tensor, "f h w d"]:
        rows = [torch.stack([getattr(part, name) for part in row], dim=3).flatten(2, 3) for row in grid]
        return torch.stack(rows, dim=2).flatten(1, 2)

    return Features(interleave("context"), interleave("match"))


def _side_by_side(maps: list[Float[Tensor, "f _ _ d"]]) -> Float[Tensor, "f h w e"]:
    """Maps on the grid of the first, joined so that tokens of unit length stay of unit length."""
    size = tuple(maps[0].shape[1:3])
    resized = (F.interpolate(m.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1) for m in maps[1:])
    return torch.cat([maps[0], *resized], dim=-1) / len(maps) ** 0.5


def extract_features(backbone: Backbone, images: Float[Tensor, "f 3 H W"], settings: Settings) -> Features:
    """Queries of the feature blocks for the frames of one window, as `working_images` gives them.

    `settings` must be resolved. Frames pass in chunks, and the draw of noise does not depend on the size of a chunk.
    """
    s = settings.features
    latents = backbone.encode(images, settings.seed if s.schedule == "reference" else None)
    condition = backbone.condition(images, settings.condition, settings.seed)
    noises = [backbone.noise(latents, settings.seed + n, s.noise == "shared").expand_as(latents) for n in range(s.ensemble)]

    def chunk(part: slice) -> tuple[Tensor, Tensor]:
        queries = [_queries(backbone, latents[part], noise[part], condition, settings) for noise in noises]
        return tuple(sum(q[n] for q in queries) / len(queries) for n in range(2))

    chunks = backbone.in_pieces(len(latents), len(latents), s.chunk, chunk)
    context, match = (torch.cat(maps) for maps in zip(*chunks, strict=True))
    context = append_position(normalise(context, s.normalise), s.position)
    return Features(context, normalise(match, s.normalise))


def normalise(features: Float[Tensor, "*n d"], how: str) -> Float[Tensor, "*n d"]:
    """Divide each token by its largest magnitude ("max", the paper's) or its Euclidean norm ("l2")."""
    order = float("inf") if how == "max" else 2
    return features / torch.linalg.vector_norm(features, order, dim=-1, keepdim=True).clamp(min=1e-12)


def append_position(features: Float[Tensor, "f h w d"], weight: float) -> Float[Tensor, "f h w e"]:
    """Two more channels, weight * (y, x) with y, x in [-1, 1]; unchanged if the weight is 0."""
    if not weight:
        return features
    f, h, w, _ = features.shape
    y, x = (
        torch.linspace(-1, 1, n, device=features.device) if n > 1 else torch.zeros(1, device=features.device) for n in (h, w)
    )
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    return torch.cat([features, weight * grid.expand(f, -1, -1, -1)], dim=-1)


def _queries(
    backbone: Backbone, latents: Tensor, noise: Tensor, condition: Condition, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Context and match queries [f, h, w, d] of one noising of the frames, not normalised."""
    s = settings.features
    paths = tuple(block + QUERY for block in dict.fromkeys(s.blocks + s.match_blocks))
    with backbone.tap(paths, enough=s.schedule == "direct") as taps:
        if s.schedule == "direct":
            backbone.denoise(latents + backbone.sigma(s.timestep) * noise, s.timestep, condition=condition)
        else:
            paper.guided_descent(backbone, latents, noise, condition, settings.paper)
    maps = {path: _grid(taps[path][-len(latents) :], latents) for path in paths}
    join = (lambda parts: torch.cat(parts, dim=-1)) if s.combine == "concat" else (lambda parts: torch.stack(parts).mean(0))
    return tuple(join([maps[block + QUERY] for block in blocks]) for blocks in (s.blocks, s.match_blocks))


def _grid(tokens: Float[Tensor, "f n d"], latents: Float[Tensor, "f c H W"]) -> Float[Tensor, "f h w d"]:
    """Tokens of a layer as a map, whose cells are squares of latent cells."""
    height, width = latents.shape[-2:]
    stride = round((height * width / tokens.shape[1]) ** 0.5)
    return tokens.unflatten(1, (height // stride, width // stride)).float()
