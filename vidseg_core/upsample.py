"""Stage 4: from cells to pixels by masked modulation.

Add a constant +lambda, then -lambda, to an attention output inside coarse masks: the two predictions of the model differ
where the model's own later layers believe a mask to be, at the resolution of the image (VidSeg, section 3.4, after
EmerDiff, Namekata et al. 2024). The mask with the largest normalised difference takes the pixel. `modulation` runs the
network; here the responses become labels.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.models.backbone import Backbone
from vidseg_core.modulation import direct_pairs, reference_pairs
from vidseg_core.settings import Settings, UpsampleSettings

SILENT = 1e-6
"""Largest response (RGB in [-1, 1]) at or below which a mask counts as not having responded."""


def upsample(
    backbone: Backbone,
    images: Float[Tensor, "f 3 H W"],
    refined: Integer[Tensor, "f h w"],
    size: tuple[int, int],
    settings: Settings,
    progress: Callable[[float], None] = lambda frames: None,
) -> Int[Tensor, "f height width"]:
    """Labels at `size` = (height, width) of the input frames, int16, for frames given in [-1, 1] at the working size.

    A running maximum over responses: memory does not grow with their number. A mask takes part in a frame only if it has a
    cell there, and wins nothing unless it responds; where none does, the nearest coarse label stays.
    """
    s = settings.upsample
    labels = nearest(refined, size)
    best = torch.zeros(labels.shape, device=refined.device)
    latents = backbone.encode(images)
    noise = backbone.noise(latents, settings.seed, settings.features.noise == "shared").expand_as(latents)
    condition = backbone.condition(images, settings.condition, settings.seed)
    pairs = direct_pairs if s.strategy == "direct" else reference_pairs
    for group, plus, minus in pairs(backbone, latents, noise, refined, s, condition):
        scores = score(response(backbone, plus, minus, s), group.masks, group.owners, s)
        for frame, owner, map_ in zip(group.frames.tolist(), group.owners, scores, strict=True):
            claim(labels[frame], best[frame], owner, map_)
        progress(float(group.share.sum()))
    return labels


def response(
    backbone: Backbone, plus: Float[Tensor, "n c h w"], minus: Float[Tensor, "n c h w"], settings: UpsampleSettings
) -> Float[Tensor, "n H W"]:
    """Euclidean RGB distance of the two decoded predictions, per pixel."""
    if settings.response == "float":
        return torch.linalg.vector_norm(backbone.decode_difference(plus, minus), dim=1)
    pictures = [
        (backbone.decode(z).clamp(-1, 1) * 127.5 + 127.5).byte().permute(0, 2, 3, 1).cpu().numpy() for z in (plus, minus)
    ]
    return torch.stack([torch.from_numpy(wrapped_distance(a, b)) for a, b in zip(*pictures, strict=True)]).to(plus.device)


def wrapped_distance(plus: UInt8[np.ndarray, "H W 3"], minus: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """What the paper's code makes of it (FIELD): differences and squares in uint8, which wrap around, kept as an 8-bit JPEG."""
    wrapped = (plus - minus) ** 2
    distance = np.sqrt(wrapped.sum(-1).astype(np.float32)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(distance).save(file, format="jpeg")
    return np.asarray(Image.open(file)).astype(np.float32)


def score(
    responses: Float[Tensor, "n H W"],
    masks: Bool[Tensor, "n h w"],
    owners: Integer[Tensor, "n h w"],
    settings: UpsampleSettings,
) -> Float[Tensor, "n H W"]:
    """Blurred, divided by the peak of each mask, damped outside the masks; 0 for a mask that did not respond. In [0, 1].

    `masks` is true on the cells that were modulated; `owners` says to which mask a cell's response is given, with coloured
    modulation the nearest of those that were modulated together.
    """
    blurred = gaussian_blur(responses, settings.blur_size, settings.blur_sigma)
    size = tuple(blurred.shape[1:])
    peaks = torch.stack([_peaks(*pair, settings.peak) for pair in zip(blurred, nearest(owners, size), strict=True)])
    scaled = torch.where(peaks > SILENT, (blurred / peaks.clamp(min=SILENT)).clamp(max=1), 0)
    inside = enlarge(masks.float(), size, settings.mask_filter)
    if settings.mask_blur:
        sigma = settings.mask_blur * size[0] / masks.shape[1]
        inside = gaussian_blur(inside, 2 * math.ceil(2 * sigma) + 1, sigma)
    return scaled * (inside + settings.damping * (1 - inside))


def _peaks(response: Float[Tensor, "H W"], owner: Int[Tensor, "H W"], quantile: float) -> Float[Tensor, "H W"]:
    """At each pixel the response that is full strength for its owner: what a share 1 - `quantile` of the frame's pixels, all
    of the owner's, exceed; the owner's maximum if that is 0 (a mask so small that it responds on fewer)."""
    peaks, count = torch.zeros_like(response), max(1, round((1 - quantile) * response.numel()))
    for name in owner.unique():
        own = owner == name
        values = response[own]
        peak = values.topk(min(count, len(values))).values[-1]
        peaks[own] = peak if peak > SILENT else values.max()
    return peaks


def claim(
    labels: Int[Tensor, "H W"], best: Float[Tensor, "H W"], owner: Integer[Tensor, "h w"], scores: Float[Tensor, "h2 w2"]
) -> None:
    """In place: the owner of a pixel takes it where its score, resized to theirs, exceeds the best so far."""
    if scores.shape != best.shape:
        scores = F.interpolate(scores[None, None], size=best.shape, mode="bilinear", align_corners=False)[0, 0]
    wins = scores > best
    labels[wins] = nearest(owner[None], tuple(best.shape))[0][wins]
    torch.maximum(best, scores, out=best)


def nearest(cells: Integer[Tensor, "n h w"], size: tuple[int, int]) -> Int[Tensor, "n H W"]:
    """Label maps at pixel resolution, int16."""
    return F.interpolate(cells[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(torch.int16)


def gaussian_blur(maps: Float[Tensor, "n H W"], size: int, sigma: float) -> Float[Tensor, "n H W"]:
    """Separable Gaussian of `size` pixels across, borders reflected."""
    half = size // 2
    kernel = torch.exp(-((torch.arange(size, device=maps.device) - half) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(maps.dtype)
    padded = F.pad(maps[:, None], (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def enlarge(masks: Float[Tensor, "n h w"], size: tuple[int, int], how: str) -> Float[Tensor, "n H W"]:
    """Masks at pixel resolution, bilinear or Lanczos (which overshoots 0..1 by some percent)."""
    if how == "bilinear":
        return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    pictures = [Image.fromarray(m.cpu().numpy()).resize(size[::-1], Image.Resampling.LANCZOS) for m in masks]
    return torch.stack([torch.from_numpy(np.array(p)) for p in pictures]).to(masks.device)
