"""The authors' code as it runs (QianWangX/VidSeg_diffusion), its quirks included, in functions with the stages' signatures.

Nothing here is what we would do: each quirk has its reason in the README's table of differences. Arithmetic is that of the
libraries they call (OpenCV, Pillow, NumPy), to the bit where a rounding can decide a label.
"""

import io

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vidseg_core.common import InputError
from vidseg_core.correspondence import ROWS, Refined, Tracks
from vidseg_core.evaluation.metrics import VOID

MULTIPLE = 64
"""Pixels that both sides of a frame are cut down to a multiple of."""
MAX_JUMP = 1
"""Cells that a track may move down or to the right in one hop; up and to the left it may jump as far as it likes."""
DAMPING = 0.7
"""Weight of a response outside its mask."""
BLUR = {"sigma": 3, "radius": 2, "mode": "mirror"}
"""The Gaussian on a response, in pixels: OpenCV's 5 x 5, borders reflected about the outermost pixel."""


def working_size(height: int, width: int) -> tuple[int, int]:
    """Both sides cut down to a multiple of 64, so that a frame is neither enlarged nor kept in shape; InputError below 64."""
    if min(height, width) < MULTIPLE:
        raise InputError(f"the frames are {height} x {width} pixels; the paper's code needs {MULTIPLE} or more on each side")
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
    """From every cell of frame 0, cell by cell, to the last frame; a track that ever jumps too far is left out as a whole.

    Cosines have the precision of `match`: with the authors' float16, many are equal.
    """
    f, h, w, _ = match.shape
    unit = torch.nn.functional.normalize(match.float().flatten(1, 2), dim=-1).to(match.dtype)
    cells, weakest = [torch.arange(h * w, device=match.device)], [torch.ones(h * w, device=match.device)]
    for q in range(f - 1):
        cell, cosine = _hop(unit, q, cells[-1])
        cells.append(cell)
        weakest.append(torch.minimum(weakest[-1], cosine))
    cells, weakest = torch.stack(cells, dim=1), torch.stack(weakest, dim=1)
    kept = ((cells // w).diff() <= MAX_JUMP).all(1) & ((cells % w).diff() <= MAX_JUMP).all(1)
    return Tracks(cells[kept], weakest[kept], (h, w))


def _hop(unit: Float[Tensor, "f n e"], q: int, cells: Int[Tensor, " t"]) -> tuple[Int[Tensor, " t"], Float[Tensor, " t"]]:
    """The cells n of frame q + 1 with the largest q/(q+1) cos(source, n of q + 1) + 1/(q+1) cos(source, n of frame 0), and the
    first of these cosines. Which of equal sums it is, only `numpy.argpartition` knows."""
    after, start = (torch.tensor(share, dtype=unit.dtype, device=unit.device) for share in (q / (q + 1), 1 / (q + 1)))
    best, cosines = [], []
    for source in unit[q, cells].split(ROWS):
        cosine = source @ unit[q + 1].T
        score = after * cosine + start * (source @ unit[0].T)
        best.append(torch.from_numpy(np.argpartition(score.cpu().numpy(), -1)[:, -1]).to(cosine.device))
        cosines.append(cosine.gather(1, best[-1][:, None])[:, 0].float())
    return torch.cat(best), torch.cat(cosines)


def refine_by_tracks(match: Float[Tensor, "f h w e"], coarse: Int[Tensor, "f h w"]) -> Refined:
    """Each track writes its most common label, of equal counts the one it saw first, on the cells it visits; the last track
    written wins, and cells without a track keep their label, with confidence 1."""
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
    return Refined(labels.view_as(coarse), confidence.view(coarse.shape), tracks)


def responses(plus: Float[Tensor, "n 3 h w"], minus: Float[Tensor, "n 3 h w"], size: tuple[int, int]) -> Float[Tensor, "n H W"]:
    """How far the decoded predictions of n masks lie apart, each as a share of its maximum; on the CPU, in float64."""
    pairs = zip(_pictures(plus, size), _pictures(minus, size), strict=True)
    return torch.from_numpy(np.stack([_response(*pair) for pair in pairs]))


def _response(plus: UInt8[np.ndarray, "H W 3"], minus: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """Differences and squares are taken in 8 bits and wrap around; their blurred distance passes through an 8-bit JPEG."""
    distance = np.sqrt(((plus - minus) ** 2).sum(-1).astype(np.float64))
    blurred = gaussian_filter(distance, **BLUR).astype(np.float32).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(blurred).save(file, format="jpeg")
    found = np.asarray(Image.open(file))
    return found / (found.max() + 1e-5)


def scores(responses: Float[Tensor, "n H W"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n H W"]:
    """Responses with what lies outside their masks, enlarged as 8-bit pictures (Lanczos), weighed down; on the CPU, in float64.

    The mask with the largest score takes a pixel, of equal ones the first, even if all of them are 0.
    """
    size, pictures = tuple(responses.shape[:0:-1]), masks.cpu().numpy().astype(np.uint8) * 255
    large = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures]
    inside = torch.from_numpy(np.stack(large) / 255.0)
    return responses * inside + DAMPING * responses * (1 - inside)


def _pictures(images: Float[Tensor, "n 3 h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "n H W 3"]:
    """RGB in [-1, 1] cut (not rounded) to 8 bits, then at `size` as OpenCV's bilinear `resize` has it: weights of 11 bits."""
    bytes_ = (((images.float() + 1) / 2).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    rows, columns = (_neighbours(*sides) for sides in zip(bytes_.shape[1:3], size, strict=True))
    wide = sum(bytes_[:, :, place].astype(np.int32) * weight[:, None] for place, weight in columns)
    tall = sum((wide[:, place] >> 4) * weight[:, None, None] >> 16 for place, weight in rows)
    return (tall + 2 >> 2).astype(np.uint8)


def _neighbours(old: int, new: int) -> list[tuple[Int[np.ndarray, " new"], Int[np.ndarray, " new"]]]:
    """For each of `new` pixels along a side: the two of `old` between whose centres it lies, each with its weight of 2048."""
    place = ((np.arange(new) + 0.5) / (new / old) - 0.5).astype(np.float32)
    low = np.floor(place)
    shares = (1 - (place - low), place - low)
    return [
        ((low.astype(int) + step).clip(0, old - 1), np.rint(share * 2048).astype(np.int32)) for step, share in enumerate(shares)
    ]
