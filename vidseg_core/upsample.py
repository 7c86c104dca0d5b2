"""Stage 4: from cells to pixels by masked modulation.

Add a constant +lambda, then -lambda, to an attention output inside one coarse mask: the two predictions of the model differ
where the model's own later layers believe that mask to be, at the resolution of the image (VidSeg, section 3.4, after
EmerDiff, Namekata et al. 2024). The mask with the largest normalised difference takes the pixel.
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.backbone import Backbone, Condition
from vidseg_core.features import euler_step
from vidseg_core.hooks import Recording
from vidseg_core.settings import Settings, UpsampleSettings

Pair = tuple[Tensor, Tensor, Tensor, Tensor]
"""(labels [n], frames [n], plus [n, c, h, w], minus [n, c, h, w]): clean latents predicted with +lambda and -lambda."""
SILENT = 1e-6
"""Largest response (RGB in [-1, 1]) at or below which a mask counts as not having responded."""


def upsample(
    backbone: Backbone,
    images: Float[Tensor, "f 3 H W"],
    refined: Int[Tensor, "f h w"],
    size: tuple[int, int],
    settings: Settings,
    progress: Callable[[float], None] = lambda frames: None,
) -> Int[Tensor, "f height width"]:
    """Labels at `size` = (height, width) of the input frames, int16, for frames given in [-1, 1] at the working size.

    A running maximum over masks: memory does not grow with their number. A mask takes part in a frame only if it has a
    cell there, and wins nothing unless it responds; where none does, the nearest coarse label stays.
    """
    s = settings.upsample
    labels = F.interpolate(refined[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(torch.int16)
    best = torch.zeros(labels.shape, device=refined.device)
    latents = backbone.encode(images)
    noise = backbone.noise(latents, settings.seed, settings.features.noise == "shared").expand_as(latents)
    condition = backbone.condition(images, settings.condition, settings.seed)
    pairs = direct_pairs if s.strategy == "direct" else reference_pairs
    masks_in_all = sum(len(frame.unique()) for frame in refined)
    for names, frames, plus, minus in pairs(backbone, latents, noise, refined, s, condition):
        masks = (refined[frames] == names[:, None, None]).float()
        scores = score(response(backbone, plus, minus, s), masks, s)
        for name, frame, map_ in zip(names, frames, scores, strict=True):
            claim(labels[frame], best[frame], int(name), map_)
        progress(len(refined) * len(names) / masks_in_all)
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
    responses: Float[Tensor, "n H W"], masks: Float[Tensor, "n h w"], settings: UpsampleSettings
) -> Float[Tensor, "n H W"]:
    """Blurred, divided by its own maximum, damped outside the coarse mask; 0 everywhere for a mask that did not respond."""
    blurred = gaussian_blur(responses, settings.blur_size, settings.blur_sigma)
    peak = blurred.amax((1, 2), keepdim=True)
    scaled = torch.where(peak > SILENT, blurred / peak.clamp(min=SILENT), 0)
    inside = enlarge(masks, tuple(responses.shape[1:]), settings.mask_filter)
    return scaled * (inside + settings.damping * (1 - inside))


def claim(labels: Int[Tensor, "H W"], best: Float[Tensor, "H W"], name: int, scores: Float[Tensor, "h w"]) -> None:
    """In place: mask `name` takes the pixels where its score, resized to theirs, exceeds the best so far."""
    if scores.shape != best.shape:
        scores = F.interpolate(scores[None, None], size=best.shape, mode="bilinear", align_corners=False)[0, 0]
    wins = scores > best
    labels[wins] = name
    torch.maximum(best, scores, out=best)


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


def direct_pairs(
    backbone: Backbone, latents: Tensor, noise: Tensor, refined: Tensor, s: UpsampleSettings, condition: Condition | None = None
) -> Iterator[Pair]:
    """One unguided step at one noise level. What precedes the modulated attention is the same for every mask and both
    signs: it is run once and replayed."""
    noisy = latents + backbone.sigma(s.timestep) * noise

    def plain(part: slice) -> tuple[slice, Recording]:
        with backbone.record(s.block) as record:
            backbone.denoise(noisy[part], s.timestep, condition=condition)
        return part, record

    for part, record in backbone.pieces.run(len(noisy), len(noisy) if backbone.coupled else s.chunk, plain):
        x, cells = noisy[part], refined[part]
        units = _units(cells, backbone.coupled)

        def modulated(batch: slice, x=x, cells=cells, record=record, units=units, first=part.start) -> Pair:
            names, frames = (torch.cat(column) for column in zip(*units[batch], strict=True))
            masks, rows = cells[frames] == names[:, None, None], torch.cat([frames, frames])
            shift = torch.cat([masks.float(), -masks.float()]) * s.strength
            edits = backbone.modulation(s.block, shift, len(noisy))
            with backbone.replay(record, rows), backbone.edit(edits):
                plus, minus = backbone.denoise(x[rows], s.timestep, condition=condition).chunk(2)
            here = masks.flatten(1).any(1)
            return names[here], first + frames[here], plus[here], minus[here]

        yield from backbone.pieces.run(len(units), max(1, s.chunk // (2 * len(units[0][0]))), modulated)


def _units(cells: Tensor, coupled: bool) -> list[tuple[Tensor, Tensor]]:
    """What one pass cannot be divided below: (labels [n], frames [n]), a mask in one frame, or in all if they are coupled."""
    if coupled:
        every = torch.arange(len(cells), device=cells.device)
        return [(name.expand(len(cells)), every) for name in cells.unique()]
    return [
        (name[None], torch.tensor([frame], device=cells.device)) for frame, map_ in enumerate(cells) for name in map_.unique()
    ]


def reference_pairs(
    backbone: Backbone, latents: Tensor, noise: Tensor, refined: Tensor, s: UpsampleSettings, condition: Condition | None = None
) -> Iterator[Pair]:
    """The paper's schedule (FIELD): from the noising step to the end with guidance, modulated at the first step; queries
    and keys of attention (`backbone.injected`) come from the unmodulated pass, and outside the mask so does the latent."""
    start = latents + backbone.schedule(s.steps)[1][s.start_step] * noise

    def plain(part: slice) -> tuple[slice, list[Tensor], list[dict[str, Tensor]]]:
        return part, *unmodulated_steps(backbone, start[part], condition, s)

    for part, plains, recorded in backbone.pieces.run(len(start), len(start) if backbone.coupled else s.chunk, plain):
        for name in refined[part].unique():
            cells = refined[part] == name
            here = cells.flatten(1).any(1).nonzero()[:, 0]
            frames = torch.arange(len(cells), device=cells.device) if backbone.coupled else here
            both = torch.cat([frames, frames + len(cells)])  # the two halves of the guidance batch
            whole = len(frames) == len(cells)
            injected = [{path: q if whole else q[both] for path, q in step.items()} for step in recorded]
            kept, x = [x[frames] for x in plains], start[part][frames]
            ends = [modulated_steps(backbone, x, cells[frames], sign, kept, injected, condition, s) for sign in (1, -1)]
            chosen = here if backbone.coupled else slice(None)
            yield name.expand(len(here)), part.start + here, *(end[chosen] for end in ends)


def unmodulated_steps(
    backbone: Backbone, x: Tensor, condition: Condition | None, settings: UpsampleSettings
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The latent after each step from `start_step` on, and the outputs of `backbone.injected()` during it."""
    timesteps, sigmas = backbone.schedule(settings.steps)
    latents, recorded = [], []
    for step in range(settings.start_step, settings.steps):
        with backbone.tap(backbone.injected()) as taps:
            clean = backbone.denoise(x, timesteps[step], settings.guidance, condition)
        x = euler_step(x, clean, sigmas[step], sigmas[step + 1])
        latents.append(x)
        recorded.append(dict(taps))
    return latents, recorded


def modulated_steps(
    backbone: Backbone, x: Tensor, cells: Tensor, sign: int, plain: list[Tensor],
    injected: list[dict[str, Tensor]], condition: Condition | None, settings: UpsampleSettings,
) -> Tensor:  # fmt: skip
    """The final latent of one mask and sign. `cells` [n, h, w] bool; `plain`, `injected` as `unmodulated_steps` made them."""
    timesteps, sigmas = backbone.schedule(settings.steps)
    shift = torch.cat([cells, cells]).float() * sign * settings.strength
    mask = F.interpolate(cells[:, None].float(), size=x.shape[-2:], mode="nearest-exact")
    for n, step in enumerate(range(settings.start_step, settings.steps)):
        edits: dict[str, Callable[[Tensor], Tensor]] = {p: lambda _, value=v: value for p, v in injected[n].items()}
        if n == 0:
            edits |= backbone.modulation(settings.block, shift, len(x))
        with backbone.edit(edits):
            clean = backbone.denoise(x, timesteps[step], settings.guidance, condition)
        x = euler_step(x, clean, sigmas[step], sigmas[step + 1])
        if step <= settings.blend_until:
            x = x * mask + plain[n] * (1 - mask)
    return x
