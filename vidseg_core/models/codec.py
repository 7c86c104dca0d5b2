"""Between pixels and latents: one small interface, two implementations.

`AutoencoderCodec` wraps the VAE of Stable Diffusion and Stable Video Diffusion. `BlockDCT` is the fixed linear codec of
the embedded model: an orthonormal 4x4 block DCT of YCbCr (the transform of JPEG, Wallace 1992) that keeps the lowest
frequencies, standardised per channel.
"""

import inspect
import json
import math
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# BT.601 full range, as JPEG uses it: rows are Y, Cb, Cr.
RGB_TO_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])

Known = list[tuple[Float[Tensor, "_ _ _"], Float[Tensor, "3 _ _"]]]
"""Latents [c, h, w] and the images [3, H, W] that they were decoded to."""


@runtime_checkable
class Codec(Protocol):
    """What the backbone needs to know about a latent space."""

    factor: int
    """Pixels per latent cell along one side."""
    channels: int
    """Channels of a latent."""
    scale: float
    """What latents were multiplied by: a video model is shown its first frame without it."""

    def encode(self, images: Float[Tensor, "n 3 H W"], sample: int | None = None) -> Float[Tensor, "n c h w"]:
        """RGB in [-1, 1], sides multiples of `factor`, to latents of about unit variance; with a seed `sample`, a draw from the
        posterior where there is one. Deterministic."""
        ...

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """Latents to RGB, nominally in [-1, 1], not clipped."""
        ...

    def decode_difference(
        self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], known: Known | None = None
    ) -> Float[Tensor, "n 3 H W"]:
        """decode(a) - decode(b), in float; a linear codec may decode the difference instead. `known` holds what was decoded of
        `b` in earlier calls, and is added to: give the same list where latents of `b` come again and again."""
        ...


class BlockDCT:
    """Fixed linear codec: a strided convolution with cosine basis functions, and its exact linear inverse on what was kept.

    `luma` and `chroma` are how many coefficients of Y and of each of Cb, Cr are kept, in `zigzag` order; `mean` and `std`
    (one per latent channel, in the order Y.. Cb.. Cr..) standardise the latents. Read from `codec.json` beside the UNet.
    """

    scale = 1.0

    def __init__(self, block: int, luma: int, chroma: int, zigzag: list[list[int]], mean: list[float], std: list[float]):
        self.factor, self.channels = block, luma + 2 * chroma
        if not len(mean) == len(std) == self.channels:
            raise ValueError(f"codec: {self.channels} channels but {len(mean)} means and {len(std)} deviations; fix codec.json")
        if max(luma, chroma) > len(zigzag) or not min(std) > 0:
            given = f"{len(zigzag)} places in zigzag for {luma} and {chroma} coefficients, deviations from {min(std)}"
            raise ValueError(f"codec: {given}: expected as many places, and deviations above 0; fix codec.json")
        k = torch.arange(block).float()
        dct = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / (2 * block)) * math.sqrt(2 / block)
        dct[0] /= math.sqrt(2)
        planes = [dct[i][:, None] * dct[j][None] for i, j in zigzag]
        kept = [(colour, planes[n]) for colour, count in enumerate((luma, chroma, chroma)) for n in range(count)]
        to_rgb = torch.linalg.inv(RGB_TO_YCBCR)
        self.analysis = torch.stack([RGB_TO_YCBCR[c][:, None, None] * plane for c, plane in kept])
        self.synthesis = torch.stack([to_rgb[:, c][:, None, None] * plane for c, plane in kept])
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))

    @classmethod
    def load(cls, path: Path) -> "BlockDCT":
        """Read `codec.json`. Raises ValueError if it describes another kind of codec."""
        spec = json.loads(Path(path).read_text(encoding="utf-8"))
        if spec.get("type") != "block_dct":
            raise ValueError(f"{path}: codec type {spec.get('type')!r} is unknown; this version reads 'block_dct'")
        return cls(spec["block_size"], spec["luma_coefficients"], spec["chroma_coefficients"], spec["zigzag"],
                   spec["mean"], spec["std"])  # fmt: skip

    def to(self, device: torch.device, dtype: torch.dtype) -> "BlockDCT":
        """Move the (tiny) tables; returns self, as torch modules do."""
        for name in ("analysis", "synthesis", "mean", "std"):
            setattr(self, name, getattr(self, name).to(device, dtype))
        return self

    def encode(self, images: Float[Tensor, "n 3 H W"], sample: int | None = None) -> Float[Tensor, "n c h w"]:
        """See `Codec.encode`; there is no posterior. Raises ValueError for sides that would be cut."""
        if images.shape[-2] % self.factor or images.shape[-1] % self.factor:
            raise ValueError(f"images are {list(images.shape)}: expected sides that are multiples of {self.factor}")
        return (F.conv2d(images.to(self.analysis), self.analysis, stride=self.factor) - self.mean) / self.std

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """See `Codec.decode`."""
        return F.conv_transpose2d(latents.to(self.mean) * self.std + self.mean, self.synthesis, stride=self.factor)

    def decode_difference(
        self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], known: Known | None = None
    ) -> Float[Tensor, "n 3 H W"]:
        """See `Codec.decode_difference`. Linear: one decode, and the mean cancels."""
        return F.conv_transpose2d((a - b).to(self.std) * self.std, self.synthesis, stride=self.factor)


class AutoencoderCodec:
    """The VAE of Stable Diffusion (`AutoencoderKL`) or of Stable Video Diffusion (`AutoencoderKLTemporalDecoder`): the mean of
    its posterior, times its scaling factor.

    One image at a time, in both directions: the decoder is the largest consumer of memory, and results then do not depend
    on the chunk; a temporal decoder sees clips of one frame.
    """

    def __init__(self, vae: torch.nn.Module, device: torch.device | None = None):
        self.vae, self.device = vae, device or vae.device
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = vae.config.latent_channels
        self.scale = vae.config.scaling_factor
        self.options = {"num_frames": 1} if "num_frames" in inspect.signature(vae.decode).parameters else {}

    def encode(self, images: Float[Tensor, "n 3 H W"], sample: int | None = None) -> Float[Tensor, "n c h w"]:
        """See `Codec.encode`. By default the mean of the posterior: the only noise is then the one that is asked for."""
        posteriors = (self.vae.encode(i[None]).latent_dist for i in images.to(self.device, self.vae.dtype))
        if sample is None:
            return torch.cat([p.mode() for p in posteriors]) * self.scale
        generator = torch.Generator().manual_seed(sample)  # on the CPU, so that every device draws the same
        return torch.cat([p.sample(generator) for p in posteriors]) * self.scale

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """See `Codec.decode`."""
        latents = latents.to(self.device, self.vae.dtype) / self.scale
        return torch.cat([self.vae.decode(z[None], **self.options).sample for z in latents])

    def decode_difference(
        self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], known: Known | None = None
    ) -> Float[Tensor, "n 3 H W"]:
        """See `Codec.decode_difference`."""
        known, images = [] if known is None else known, []
        for latent in b:
            image = next((image for z, image in known if z.equal(latent)), None)
            if image is None:
                image = self.decode(latent[None])[0]
                known.append((latent, image))
            images.append(image)
        return self.decode(a).float() - torch.stack(images).float()
