"""Stage 4: from cells to pixels by masked modulation.

Add a constant lambda to an attention output inside coarse masks. The prediction then changes, against the one without lambda
(in the paper, the one with -lambda), where the model's later layers place the mask, at the resolution of the image (VidSeg,
section 3.4, after EmerDiff, Namekata et al. 2024). A pixel gets the label whose normalised difference, weighted by its votes,
is largest. `modulation` runs the network; this module turns its responses into labels.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor
from torch.nn import functional as F

from vidseg_core import paper
from vidseg_core.common import enlarge, finite
from vidseg_core.context import Votes
from vidseg_core.edges import Guide
from vidseg_core.features import working_images
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.codec import Known
from vidseg_core.modulation import Group, NoisyWindow, Prediction, owners, predict_masks
from vidseg_core.settings import Settings, UpsampleSettings

FLAT = 1e-3
"""Variance of colour, in 0..1, below which a square counts as of one colour."""
BLUR_SIZE, BLUR_SIGMA = 5, 3.0
"""The Gaussian on a response map, in pixels across and its standard deviation, as the paper has it."""
SILENT = 1e-6
"""Largest response (RGB in [-1, 1]) at or below which a mask counts as not having responded."""


def upsample(
    backbone: Backbone, frames: UInt8[np.ndarray, "f H W 3"], votes: Votes, settings: Settings
) -> Int[Tensor, "f H W"]:
    """Labels of the frames' pixels, int16, for the votes on cells. `settings` must be resolved.

    A running maximum over scores: memory does not grow with the number of labels. A label takes part in a frame only if it wins
    a cell there; the cells that it wins are its mask.
    """
    s, cell, size = settings.upsample, backbone.cell(settings.upsample.block), frames.shape[1:3]
    images = working_images(backbone, frames, settings)
    cells = modulated_cells(votes, (images.shape[2] // cell, images.shape[3] // cell))
    labels = enlarge(votes.labels, size).to(torch.int16)
    best = torch.zeros(labels.shape, device=cells.device)
    guide = frame_edges(backbone, frames, images, s)
    latents = backbone.encode(images, settings.seed if s.strategy == "reference" else None)
    noise = backbone.noise(latents, settings.seed, settings.features.noise == "shared").expand_as(latents)
    window = NoisyWindow(latents, noise, backbone.condition(images, settings.condition, settings.seed))
    plain = [] if s.strategy == "direct" and s.difference == "one-sided" else None  # decoded once for all masks of a frame
    if s.strategy == "direct":
        predictions = predict_masks(backbone, window, cells, s)
    else:
        predictions = paper.predict_masks(backbone, window, cells, s, settings.paper)
    for prediction in predictions:
        frames_of, owner_of = prediction.group.frames, prediction.group.owners
        if s.strategy == "reference":
            scores = paper.score(backbone, prediction, size)
        else:
            owner_of = fine_owners(prediction.group, votes)
            scores = score(backbone, prediction, votes, owner_of, s, plain)
        for frame, owner, map_ in zip(frames_of.tolist(), owner_of, scores, strict=True):
            claim(labels[frame], best[frame], owner, guide.follow(frame, map_) if guide else map_)
    return labels


def frame_edges(
    backbone: Backbone, frames: UInt8[np.ndarray, "f H W 3"], images: Float[Tensor, "f 3 h w"], settings: UpsampleSettings
) -> Guide | None:
    """The frames' edges for scores to follow; None if they follow none, as in the paper's code."""
    if not settings.edges or settings.strategy == "reference":
        return None
    return Guide.of(frames, images / 2 + 0.5, max(1, round(settings.edges * backbone.cell(settings.block) / 2)), FLAT)


def modulated_cells(votes: Votes, grid: tuple[int, int]) -> Int[Tensor, "f h w"]:
    """Labels on the grid of the modulated layer, which may be coarser than that of the votes; a label that wins
    there keeps a cell here, unless there are more labels than cells."""
    fine, pooled = votes.shares.argmax(-1), F.adaptive_avg_pool2d(votes.shares.permute(0, 3, 1, 2), grid)
    wins = F.one_hot(fine.flatten(1), len(votes.numbers)).amax(1)
    columns = pooled.masked_fill(wins[..., None, None] == 0, -1).argmax(1)
    for found, share, won in zip(columns.flatten(1), pooled.flatten(2), wins, strict=True):
        held = torch.bincount(found, minlength=len(won))
        for lost in ((won > 0) & (held == 0)).nonzero()[:, 0].tolist():
            free = share[lost].where(held[found] > 1, 0)  # nobody's only cell
            place = int(free.argmax())
            if free[place] > 0:
                held[found[place]] -= 1
                found[place], held[lost] = lost, 1
    return votes.numbers[columns]


def fine_owners(group: Group, votes: Votes) -> Integer[Tensor, "n h w"]:
    """Owners on the grid of the votes: to each cell the nearest that one of the row's labels wins, for a thing may have a cell
    here and none on the grid of the masks."""
    labels = votes.labels[group.frames]
    rows = [owners(won.cpu(), torch.isin(won, row.unique()).cpu()) for won, row in zip(labels, group.owners, strict=True)]
    return torch.stack(rows).to(labels.device)


def score(
    backbone: Backbone, prediction: Prediction, votes: Votes, owner: Integer[Tensor, "n h w"], settings: UpsampleSettings,
    known: Known | None = None,
) -> Float[Tensor, "n y x"]:  # fmt: skip
    """Scores at the working size, of the Euclidean RGB distance between the two decoded predictions. `known`: see
    `Backbone.decode_difference`."""
    difference = backbone.decode_difference(prediction.plus, prediction.minus, known)
    finite(difference, "the responses of this window", backbone.unet.dtype)
    column = torch.searchsorted(votes.numbers, owner.long())
    shares = votes.shares[prediction.group.frames].gather(-1, column[..., None])[..., 0]
    return score_responses(torch.linalg.vector_norm(difference, dim=1), shares, owner, settings)


def score_responses(
    responses: Float[Tensor, "n H W"],
    shares: Float[Tensor, "n h w"],
    owners: Integer[Tensor, "n y x"],
    settings: UpsampleSettings,
) -> Float[Tensor, "n H W"]:
    """Blurred, divided by the peak of each mask (0 for one that did not respond), raised by `floor`, times the share of the
    votes. In [0, 1].

    `owners` says to which mask a cell's response is given, with coloured modulation the nearest of those that were modulated
    together, and `shares` are the votes on each cell for its owner.
    """
    blurred = gaussian_blur(responses, BLUR_SIZE, BLUR_SIGMA)
    size = tuple(blurred.shape[1:])
    peaks = torch.stack([_peaks(*pair, settings.peak) for pair in zip(blurred, enlarge(owners, size), strict=True)])
    scaled = torch.where(peaks > SILENT, (blurred / peaks.clamp(min=SILENT)).clamp(max=1), 0)
    inside = F.interpolate(shares[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return (scaled + settings.floor) / (1 + settings.floor) * (inside + settings.damping * (1 - inside))


def _peaks(response: Float[Tensor, "H W"], owner: Int[Tensor, "H W"], quantile: float) -> Float[Tensor, "H W"]:
    """At each pixel the response that is full strength for its owner: what a share 1 - `quantile` of the frame's pixels, all
    of the owner's, exceed; the owner's maximum if that is 0 (a mask so small that it responds on fewer)."""
    peaks, count = torch.zeros_like(response), max(1, round((1 - quantile) * response.numel()))
    for name in owner.unique():
        own = owner == name
        values = response[own]
        peak = values.kthvalue(max(1, len(values) - count + 1)).values
        peaks[own] = peak if peak > SILENT else values.max()
    return peaks


def claim(
    labels: Int[Tensor, "H W"], best: Float[Tensor, "H W"], owner: Integer[Tensor, "h w"], scores: Float[Tensor, "h2 w2"]
) -> None:
    """In place: the owner of a pixel takes it where its score, resized to theirs, exceeds the best so far."""
    if scores.shape != best.shape:
        scores = F.interpolate(scores[None, None], size=best.shape, mode="bilinear", align_corners=False)[0, 0]
    wins = scores > best
    labels[wins] = enlarge(owner, tuple(best.shape))[wins].to(labels.dtype)
    torch.maximum(best, scores, out=best)


def gaussian_blur(maps: Float[Tensor, "n H W"], size: int, sigma: float) -> Float[Tensor, "n H W"]:
    """Separable Gaussian of `size` pixels across, borders reflected."""
    half = size // 2
    kernel = torch.exp(-((torch.arange(size, device=maps.device) - half) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(maps.dtype)
    padded = F.pad(maps[:, None], (half,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]
