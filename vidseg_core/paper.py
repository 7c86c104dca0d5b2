"""The paper's code as it runs (QianWangX/VidSeg_diffusion), quirks included, in functions with the stages' own signatures.

Nothing here is what we would do: `docs/differences.md` lists the quirks. Only the settings' three switches lead here:
`features.schedule`, `refine.method` and `upsample.strategy`, and what `reference_settings` sets besides.
"""

import io
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.common import VOID, InputError, finite
from vidseg_core.models.backbone import Backbone, Condition
from vidseg_core.models.hooks import Recording
from vidseg_core.models.registry import Model, find_model
from vidseg_core.modulation import Group, NoisyWindow, Prediction, plan
from vidseg_core.settings import ContextSettings, FeatureSettings, PaperSettings, RefineSettings, Settings, UpsampleSettings
from vidseg_core.tracks import Tracks, find_moves

MULTIPLE = 64
"""Pixels that both sides of a frame are cut down to a multiple of."""
MAX_JUMP = 1
"""Cells that a track may move down or to the right in one hop; up and to the left it may jump as far as it likes."""
DAMPING = 0.7
"""Weight of a response outside its mask."""
BLUR = {"sigma": 3, "radius": 2, "mode": "mirror"}
"""The Gaussian on a response, in pixels: 5 x 5, borders reflected about the outermost pixel."""


def reference_settings(model: str | Model) -> Settings:
    """All settings as the paper's code has them for `model`, a registry entry or its name."""
    return Settings(
        features=FeatureSettings(noise="independent", schedule="reference", combine="mean", normalise="max", position=0.0,
                                 scales=(1.0,)),
        context=ContextSettings(naming="clusters", memory="window", weights="uniform", restarts=10, max_context=None,
                                num_segments=None, births=0),
        refine=RefineSettings(method="reference"),
        upsample=UpsampleSettings(strategy="reference", strength=50.0, edges=0.0),
        working_size="clip",
    ).resolve(find_model(model) if isinstance(model, str) else model)  # fmt: skip


def working_size(height: int, width: int) -> tuple[int, int]:
    """Both sides cut down to a multiple of 64, so that a frame is neither enlarged nor kept in shape; InputError below 64."""
    if min(height, width) < MULTIPLE:
        raise InputError(f"frames of {width}x{height} pixels are below the paper's working size, multiples of 64: give --size")
    return height - height % MULTIPLE, width - width % MULTIPLE


def name_clusters(labels: Int[Tensor, "h w"], mask: Int[np.ndarray, "H W"], num_clusters: int) -> Int[Tensor, " K"]:
    """Class of each cluster: the majority under its cells of the first frame's mask, of equal counts the smallest.

    One pixel stands for a cell (Pillow's nearest), and void votes as a class of its own. VOID too for a cluster that is not in
    the first frame, which nobody asks for.
    """
    picture = Image.fromarray(mask.astype(np.uint8))
    cells = np.asarray(picture.resize(labels.shape[::-1], Image.Resampling.NEAREST), dtype=np.int64)
    votes = np.bincount(labels.cpu().numpy().ravel() * 256 + cells.ravel(), minlength=num_clusters * 256).reshape(-1, 256)
    return torch.from_numpy(np.where(votes.any(1), votes.argmax(1), VOID)).to(labels.device)


def find_tracks(match: Float[Tensor, "f h w e"]) -> Tracks:
    """From every cell of frame 0, cell by cell, to the last frame; a track that ever jumps too far is left out as a whole."""
    f, h, w, _ = match.shape
    moves, cosines = find_moves(match, anchor=True, subcell=False)
    cells, weakest = [torch.arange(h * w, device=match.device)], [match.new_ones(h * w)]
    for q in range(f - 1):
        here = cells[-1]
        cells.append(here + (moves[q, here] @ moves.new_tensor([w, 1])).long())
        weakest.append(torch.minimum(weakest[-1], cosines[q, here]))
    cells, weakest = torch.stack(cells, dim=1), torch.stack(weakest, dim=1)
    kept = ((cells // w).diff() <= MAX_JUMP).all(1) & ((cells % w).diff() <= MAX_JUMP).all(1)
    return Tracks(cells[kept], weakest[kept], (h, w))


def refine(
    match: Float[Tensor, "f h w e"], coarse: Int[Tensor, "f h w"]
) -> tuple[Int[Tensor, "f h w"], Float[Tensor, "f h w"]]:
    """Each track writes its most common label, of equal counts the one it saw first, on the cells it visits; the last track
    written wins, and cells without a track keep their label, with confidence 1. Labels, and the winner's share of the votes."""
    tracks = find_tracks(match)
    labels, confidence = coarse.flatten().clone(), torch.ones(coarse.numel(), device=coarse.device)
    place = tracks.cells + torch.arange(len(coarse), device=coarse.device) * coarse[0].numel()
    seen = labels[place]
    most, first = (seen[:, :, None] == seen[:, None]).sum(2).max(1)  # of equal counts `max` takes the first
    owner = torch.full_like(labels, -1, dtype=torch.long)
    number = torch.arange(len(place), device=coarse.device)[:, None].expand_as(place)
    owner.scatter_reduce_(0, place.flatten(), number.flatten(), "amax")
    owned = owner >= 0
    labels[owned] = seen.gather(1, first[:, None])[owner[owned], 0]
    confidence[owned] = most[owner[owned]] / len(coarse)
    return labels.view_as(coarse), confidence.view(coarse.shape)


def guided_descent(
    backbone: Backbone, latents: Tensor, noise: Tensor, condition: Condition | None, settings: PaperSettings
) -> Float[Tensor, "f c h w"]:
    """The schedule without masks: noise at step `start_step`, then Euler steps with guidance to the end; the last pass is the
    one whose activations remain tapped. Returns the final latents."""
    timesteps, sigmas = backbone.schedule(settings.steps)
    x = latents + sigmas[settings.start_step] * noise
    for step in range(settings.start_step, settings.steps):
        x = euler_step(x, backbone.denoise(x, timesteps[step], settings.scale, condition), sigmas[step : step + 2])
    return x


def euler_step(x: Float[Tensor, "f c h w"], clean: Float[Tensor, "f c h w"], sigmas: list[float]) -> Float[Tensor, "f c h w"]:
    """From the first of two noise levels to the second along dx/dsigma = (x - clean) / sigma (Karras et al. 2022, alg. 1)."""
    return x + (x - clean) / sigmas[0] * (sigmas[1] - sigmas[0])


@dataclass(frozen=True)
class GuidedPasses:
    """The schedule over some frames, and what its passes without a mask left behind: the `latents` after each step, the
    outputs of `backbone.injected()` during each, and a recording of the first up to the modulated block."""

    backbone: Backbone
    start: Float[Tensor, "f c h w"]
    condition: Condition | None
    upsample: UpsampleSettings
    settings: PaperSettings
    latents: list[Float[Tensor, "f c h w"]] = field(default_factory=list)
    attention: list[dict[str, Tensor]] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)

    def run_plain(self) -> "GuidedPasses":
        """Fill in what the passes without a mask leave; returns self."""
        b, s, x = self.backbone, self.settings, self.start
        timesteps, sigmas = b.schedule(s.steps)
        for step in range(s.start_step, s.steps):
            recording = nullcontext() if self.recordings else b.record(self.upsample.block)
            with b.tap(b.injected()) as taps, recording as recorded:
                clean = b.denoise(x, timesteps[step], s.scale, self.condition)
            self.recordings.extend([] if self.recordings else [recorded])
            x = euler_step(x, clean, sigmas[step : step + 2])
            self.latents.append(x)
            self.attention.append(dict(taps))
        return self

    def predict(self, mask: Bool[Tensor, "f y x"], frames: Int[Tensor, " n"], sign: int) -> Float[Tensor, "n c h w"]:
        """The final latents of these frames with the mask modulated in the first step: queries and keys of attention come from
        the passes without a mask, and so does the latent outside the mask. The first step up to the modulated block is the
        same with and without modulation. A video model's window is run whole, whatever `frames` are."""
        b, s, seen = self.backbone, self.settings, frames
        if b.coupled:
            seen = torch.arange(len(mask), device=mask.device)
        rows = seen if s.scale is None else torch.cat([seen, seen + len(mask)])  # both halves of a guided batch
        timesteps, sigmas = b.schedule(s.steps)
        x, shift = self.start[seen], mask[seen].float() * sign * self.upsample.strength
        shift = shift if s.scale is None else torch.cat([shift, shift])
        inside = F.interpolate(mask[seen][:, None].float(), size=x.shape[-2:], mode="nearest-exact")
        for n, step in enumerate(range(s.start_step, s.steps)):
            edits = {path: partial(_rows, b, value, rows) for path, value in self.attention[n].items()}
            replay = nullcontext() if n else b.replay(self.recordings[0], rows)
            with b.edit(edits if n else edits | b.modulation(self.upsample.block, shift, len(x))), replay:
                clean = b.denoise(x, timesteps[step], s.scale, self.condition)
            x = euler_step(x, clean, sigmas[step : step + 2])
            if step <= s.blend_until:
                x = x * inside + self.latents[n][seen] * (1 - inside)
        return x[frames] if b.coupled else x


def _rows(backbone: Backbone, recorded: Tensor, rows: Tensor, _: Tensor) -> Tensor:
    """The edit that puts what was recorded in the place of an output. Rows are chosen here, so that one layer at a time is
    copied; a video model's are those of whole windows, and its tokens do not lie along the batch."""
    return recorded if backbone.coupled or len(rows) == len(recorded) else recorded[rows]


def predict_masks(
    backbone: Backbone, window: NoisyWindow, cells: Integer[Tensor, "f h w"], upsample: UpsampleSettings,
    settings: PaperSettings,
) -> Iterator[Prediction]:  # fmt: skip
    """As `modulation.predict_masks`, mask by mask through the whole schedule."""
    start = window.latents + backbone.schedule(settings.steps)[1][settings.start_step] * window.noise

    def run_plain(part: slice) -> tuple[slice, GuidedPasses]:
        return part, GuidedPasses(backbone, start[part], window.condition, upsample, settings).run_plain()

    for part, passes in backbone.in_pieces(len(start), len(start), upsample.chunk, run_plain):
        masks = plan(cells[part], None, coupled=False)
        for name in cells[part].unique():
            group = masks[(masks.owners == name).flatten(1).all(1)]
            signs = partial(_both_signs, passes, cells[part] == name, group, part.start)
            yield from backbone.in_pieces(len(group), len(group), len(group), signs)


def _both_signs(passes: GuidedPasses, mask: Tensor, group: Group, first: int, batch: slice) -> Prediction:
    some = group[batch]
    plus, minus = (passes.predict(mask, some.frames, sign) for sign in (1, -1))
    return Prediction(Group(some.frames + first, some.masks, some.owners), plus, minus)


def score(backbone: Backbone, prediction: Prediction, size: tuple[int, int]) -> Float[Tensor, "n H W"]:
    """Scores of a group's masks at the frames' own `size`: each response as a share of its maximum, and what lies outside the
    mask, enlarged as an 8-bit picture (Lanczos), weighed down."""
    decoded = (backbone.decode(latents) for latents in (prediction.plus, prediction.minus))
    pictures = (_pictures(finite(d, "the responses of this window", backbone.unet.dtype), size) for d in decoded)
    found = np.stack([response(*pair) for pair in zip(*pictures, strict=True)])
    masks = (Image.fromarray(mask.astype(np.uint8) * 255) for mask in prediction.group.masks.cpu().numpy())
    inside = np.stack([np.asarray(m.resize(size[::-1], Image.Resampling.LANCZOS)) for m in masks]) / 255.0
    return torch.from_numpy(found * (inside + DAMPING * (1 - inside))).to(prediction.plus.device, torch.float32)


def response(plus: UInt8[np.ndarray, "H W 3"], minus: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """Differences and squares are taken in 8 bits and wrap around; their blurred distance passes through an 8-bit JPEG."""
    distance = np.sqrt(((plus - minus) ** 2).sum(-1).astype(np.float64))
    blurred = gaussian_filter(distance, **BLUR).astype(np.float32).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(blurred).save(file, format="jpeg")
    found = np.asarray(Image.open(file))
    return found / (found.max() + 1e-5)


def _pictures(images: Float[Tensor, "n 3 h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "n H W 3"]:
    """RGB in [-1, 1] cut (not rounded) to 8 bits, then enlarged bilinearly, in 8 bits again."""
    pixels = ((images.float() + 1) / 2).clamp(0, 1).mul(255).floor()
    return F.interpolate(pixels, size=size, mode="bilinear").round().byte().permute(0, 2, 3, 1).cpu().numpy()
