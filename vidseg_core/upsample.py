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

from vidseg_core.backbone import Backbone
from vidseg_core.features import euler_step
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
    latents = torch.cat([backbone.encode(part) for part in images.split(s.chunk)])
    noise = backbone.noise(latents, settings.seed, settings.features.noise == "shared").expand_as(latents)
    pairs = direct_pairs if s.strategy == "direct" else reference_pairs
    for start in range(0, len(images), s.chunk):
        chunk = slice(start, start + s.chunk)
        cells = refined[chunk]
        total = sum(len(frame.unique()) for frame in cells)
        for names, frames, plus, minus in pairs(backbone, latents[chunk], noise[chunk], cells, s):
            masks = (cells[frames] == names[:, None, None]).float()
            scores = score(response(backbone, plus, minus, s), masks, s)
            for name, frame, map_ in zip(names, frames, scores, strict=True):
                claim(labels[chunk][frame], best[chunk][frame], int(name), map_)
            progress(len(cells) * len(names) / total)
    return labels


def response(
    backbone: Backbone, plus: Float[Tensor, "n c h w"], minus: Float[Tensor, "n c h w"], settings: UpsampleSettings
) -> Float[Tensor, "n H W"]:
    """Euclidean RGB distance of the two decoded predictions, per pixel."""
    if settings.response == "float":
        return torch.linalg.vector_norm(backbone.codec.decode_difference(plus, minus).float(), dim=1)
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


def direct_pairs(backbone: Backbone, latents: Tensor, noise: Tensor, refined: Tensor, s: UpsampleSettings) -> Iterator[Pair]:
    """One unguided step at one noise level. What precedes the modulated attention is the same for every mask and both
    signs: it is run once and replayed."""
    noisy = latents + backbone.sigma(s.timestep) * noise
    with backbone.record(s.block) as record:
        backbone.denoise(noisy, s.timestep)
    present = [(int(name), frame) for frame, cells in enumerate(refined) for name in cells.unique()]
    for names, frames in _batches(present, max(1, s.chunk // 2), refined.device):
        rows = torch.cat([frames, frames])
        shift = modulation(refined[frames] == names[:, None, None], s.strength)
        shift = torch.cat([shift, -shift])
        with backbone.replay(record, rows), backbone.edit({s.block: lambda output, shift=shift: add(output, shift)}):
            plus, minus = backbone.denoise(noisy[rows], s.timestep).chunk(2)
        yield names, frames, plus, minus


def reference_pairs(backbone: Backbone, latents: Tensor, noise: Tensor, refined: Tensor, s: UpsampleSettings) -> Iterator[Pair]:
    """The paper's schedule (FIELD): from the noising step to the end with guidance, modulated at the first step; queries
    and keys of the decoder's attention come from the unmodulated pass, and outside the mask so does the latent."""
    start = latents + backbone.schedule(s.steps)[1][s.start_step] * noise
    paths = tuple(f"{a}.{part}" for a in backbone.decoder_attention() for part in ("to_q", "to_k"))
    plain, recorded = unmodulated_steps(backbone, start, paths, s)
    for name in refined.unique():
        cells = refined == name
        frames = cells.flatten(1).any(1).nonzero()[:, 0]
        both = torch.cat([frames, frames + len(refined)])  # the two halves of the guidance batch
        injected = [{path: q_or_k[both] for path, q_or_k in step.items()} for step in recorded]
        kept = [x[frames] for x in plain]
        ends = [
            modulated_steps(backbone, start[frames], cells[frames], sign * s.strength, kept, injected, s) for sign in (1, -1)
        ]
        yield name.expand(len(frames)), frames, *ends


def unmodulated_steps(
    backbone: Backbone, x: Tensor, paths: tuple[str, ...], settings: UpsampleSettings
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The latent after each step from `start_step` on, and the outputs of `paths` during it."""
    timesteps, sigmas = backbone.schedule(settings.steps)
    latents, recorded = [], []
    for step in range(settings.start_step, settings.steps):
        with backbone.tap(paths) as taps:
            clean = backbone.denoise(x, timesteps[step], settings.guidance)
        x = euler_step(x, clean, sigmas[step], sigmas[step + 1])
        latents.append(x)
        recorded.append(dict(taps))
    return latents, recorded


def modulated_steps(
    backbone: Backbone, x: Tensor, cells: Tensor, strength: float, plain: list[Tensor],
    injected: list[dict[str, Tensor]], settings: UpsampleSettings,
) -> Tensor:  # fmt: skip
    """The final latent of one mask and sign. `cells` [n, h, w] bool; `plain`, `injected` as `unmodulated_steps` made them."""
    timesteps, sigmas = backbone.schedule(settings.steps)
    shift = modulation(cells, strength)
    mask = F.interpolate(cells[:, None].float(), size=x.shape[-2:], mode="nearest-exact")
    for n, step in enumerate(range(settings.start_step, settings.steps)):
        edits: dict[str, Callable[[Tensor], Tensor]] = {p: lambda _, value=v: value for p, v in injected[n].items()}
        if n == 0:
            edits[settings.block] = lambda output: add(output, torch.cat([shift, shift]))
        with backbone.edit(edits):
            clean = backbone.denoise(x, timesteps[step], settings.guidance)
        x = euler_step(x, clean, sigmas[step], sigmas[step + 1])
        if step < settings.steps - 1:
            x = x * mask + plain[n] * (1 - mask)
    return x


def modulation(cells: Tensor, strength: float) -> Tensor:
    """[n, h, w] bool to what is added to attention outputs [n, h * w, d]: strength inside, 0 outside, on all channels."""
    return cells.flatten(1)[:, :, None].float() * strength


def add(output: Tensor, shift: Tensor) -> Tensor:
    """`shift` [n, h * w, 1] added to an attention output [n, h * w, d]; refuses a layer of another resolution."""
    if output.shape[1] != shift.shape[1]:
        raise ValueError(
            f"the modulated layer has {output.shape[1]} tokens, the masks {shift.shape[1]}: use a block of that resolution"
        )
    return output + shift.to(output.dtype)


def _batches(present: list[tuple[int, int]], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(present), size):
        yield torch.tensor(present[start : start + size], device=device).unbind(1)
