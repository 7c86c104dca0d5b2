"""Stage 4, last step: scores follow the edges of the frame itself.

As in a guided filter (He, Sun & Tang 2010), a linear function of the frame's colours is fitted to a score in every small
square, for speed at half the working size. The frame in its own resolution then shows where in the square the score rises and
falls (He & Sun 2015). A guided filter also averages, which erases thin things; here a score keeps half of its own
shape.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
INVERSE = ((3, 5, 4, 4), (2, 4, 1, 5), (1, 4, 2, 3), (0, 5, 2, 2), (1, 2, 0, 4), (0, 3, 1, 1))
"""Cofactors of a symmetric 3 x 3 matrix stored as `PAIRS`: entry = m[a] m[b] - m[c] m[d]."""


AVERAGED = 0.5
"""Of a score, the part that its average over the square replaces; 1 in a guided filter."""


@dataclass(frozen=True)
class Guide:
    """`frames` [f, H, W, 3], and the colour statistics of `images` [f, 3, h, w], the same at half the working size and in 0..1,
    over squares of 2 * `radius` + 1 pixels: `mean` and the inverse of covariance + `eps` (six entries, as in `PAIRS`)."""

    frames: UInt8[np.ndarray, "f H W 3"]
    images: Float[Tensor, "f 3 h w"]
    mean: Float[Tensor, "f 3 h w"]
    inverse: Float[Tensor, "f 6 h w"]
    radius: int

    @classmethod
    def of(cls, frames: UInt8[np.ndarray, "f H W 3"], images: Float[Tensor, "f 3 Y X"], radius: int, eps: float) -> "Guide":
        """`images`: the frames at the working size. `eps`: variance of colour below which a square counts as uniform."""
        images = F.avg_pool2d(images, 2)
        mean = box(images, radius)
        a, b = (list(side) for side in zip(*PAIRS, strict=True))
        m = box(images[:, a] * images[:, b], radius) - mean[:, a] * mean[:, b]
        m[:, [0, 3, 5]] += eps
        cofactors = torch.stack([m[:, p] * m[:, q] - m[:, r] * m[:, s] for p, q, r, s in INVERSE], dim=1)
        determinant = (m[:, :3] * cofactors[:, :3]).sum(1, keepdim=True)
        return cls(frames, images, mean, cofactors / determinant, radius)

    def follow(self, frame: int, scores: Float[Tensor, "Y X"]) -> Float[Tensor, "H W"]:
        """Scores of one frame at the working size, in its own resolution."""
        image, mean, inverse = self.images[frame], self.mean[frame], self.inverse[frame]
        small = F.avg_pool2d(scores[None], 2)
        average, *products = box(torch.cat([small, small * image])[None], self.radius)[0]
        covariance = torch.stack(products) - mean * average
        slope = torch.stack([(inverse[rows] * covariance).sum(0) for rows in ([0, 1, 2], [1, 3, 4], [2, 4, 5])])
        slope = box(slope[None], self.radius)[0]
        level = AVERAGED * average - (slope * mean).sum(0)
        colours, size = torch.from_numpy(self.frames[frame]).to(image) / 255, self.frames.shape[1:3]
        fit, own = (F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
                    for maps in (torch.cat([slope, level[None]]), scores[None]))  # fmt: skip
        return (fit[:3] * colours.permute(2, 0, 1)).sum(0) + fit[3] + (1 - AVERAGED) * own[0]


def box(maps: Float[Tensor, "n c H W"], radius: int) -> Float[Tensor, "n c H W"]:
    """Mean over the square around each pixel, at borders over the part of it that is in the frame."""
    size, pad = 2 * radius + 1, radius
    rows = F.avg_pool2d(maps, (size, 1), 1, (pad, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, size), 1, (0, pad), count_include_pad=False)
