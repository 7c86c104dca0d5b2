"""Attention over time, the part of a video model that an image model lacks: looked at, and silenced."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidseg_core.features import working_images
from vidseg_core.io.overlay import Drawing, panel
from vidseg_core.models.video_backbone import TEMPORAL, VideoBackbone
from vidseg_core.settings import Settings
from vidseg_core.workbook.figures import mark
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, pick, slider

Frames = UInt8[np.ndarray, "f H W 3"]
Attention = Float[np.ndarray, "h w f f"]


def temporal_blocks(backbone: VideoBackbone) -> list[str]:
    """Paths of the temporal self-attentions of the decoder, from its lowest resolution up."""
    return [p for p, _ in backbone.unet.named_modules() if p.startswith("up_blocks") and TEMPORAL in p and p.endswith("attn1")]


def own_block(backbone: VideoBackbone) -> str:
    """The temporal self-attention right behind the layer whose queries the correspondences compare."""
    match_block = Settings().resolve(backbone.model).features.match_blocks[0]
    return next(block for block in temporal_blocks(backbone) if block.startswith(match_block + TEMPORAL))


def temporal_attention(backbone: VideoBackbone, frames: Frames) -> dict[str, Attention]:
    """How much each frame's cell looks at the same place of every frame, for each temporal self-attention of the decoder:
    softmax of queries times keys, mean over heads. Entry [y, x, q, t] is the weight of frame t for frame q; rows add up to 1.

    One pass as stage 1 makes it, at the working size alone, whatever other scales the model's features are read at.
    """
    settings, blocks = Settings().resolve(backbone.model), temporal_blocks(backbone)
    images = working_images(backbone, frames, settings)
    latents, condition = backbone.encode(images), backbone.condition(images, settings.condition, settings.seed)
    noisy = latents + backbone.sigma(settings.features.timestep) * backbone.noise(latents, settings.seed, shared=True)
    with backbone.tap(tuple(block + end for block in blocks for end in (".to_q", ".to_k"))) as taps:
        backbone.denoise(noisy, settings.features.timestep, condition=condition)
    found = {}
    for block in blocks:
        query, key = (taps[block + end].float() for end in (".to_q", ".to_k"))
        weights = mixing_weights(query, key, backbone.unet.get_submodule(block).heads)
        found[block] = as_cells(weights, tuple(images.shape[2:])).cpu().numpy()
    return found


def mixing_weights(
    query: Float[torch.Tensor, "n f d"], key: Float[torch.Tensor, "n f d"], heads: int
) -> Float[torch.Tensor, "n f f"]:
    """Softmax of queries times keys over the root of a head's width, mean over heads."""
    query, key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key))
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(1)


def as_cells(weights: Float[torch.Tensor, "n f f"], size: tuple[int, int]) -> Float[torch.Tensor, "h w f f"]:
    """What is known of each cell, row after row, as a map; cells are squares of a picture of `size` = (H, W)."""
    cell = round((size[0] * size[1] / len(weights)) ** 0.5)
    return weights.unflatten(0, (size[0] // cell, size[1] // cell))


def explore_time(backbone: VideoBackbone, frames: Frames) -> Explorer:
    """Where in time a clicked point looks: the frames with the point, the map of weights for each, and the weights as a curve.

    One pass, then look-ups. `shown` has "weights" [f] of the point and "attention" [h, w, f, f].
    """
    known, own, size = temporal_attention(backbone, frames), own_block(backbone), frames.shape[1:3]
    grid = known[own].shape[:2]
    shown = np.unique(np.linspace(0, len(frames) - 1, 7).round().astype(int)).tolist()

    def draw(frame: int, row: int, column: int, block: str) -> Drawn:
        attention = known[block]
        cells = attention.shape[:2]
        place = (row * cells[0] // grid[0], column * cells[1] // grid[1])
        weights = attention[place][frame]
        figure = show_time(frames, attention[:, :, frame], shown, frame, place)
        return figure, {"weights": weights, "attention": attention}

    def on_click(panel: str, x: float, y: float) -> dict[str, int]:
        return {"frame": int(panel.split()[-1])} | pick(grid, size, x, y)

    return Explorer(
        draw, on_click,
        frame=slider("of frame", len(frames) // 2, 0, len(frames) - 1, live=True),
        row=slider("row", grid[0] // 2, 0, grid[0] - 1, live=True),
        column=slider("column", grid[1] // 2, 0, grid[1] - 1, live=True),
        block=choice("block", own, [(p.split(".temporal")[0], p) for p in known]),
    )  # fmt: skip


def show_time(
    frames: Frames, weights: Float[np.ndarray, "h w f"], shown: Sequence[int], frame: int, place: tuple[int, int]
) -> Figure:
    """A strip of frames with the point; the weight that every cell of frame `frame` gives each of them; the point's weights."""
    size, width, (h, w, f) = frames.shape[1:3], 9 / len(shown), weights.shape
    figure = Drawing(figsize=(9, 2 * width * size[0] / size[1] + 2.6), layout="constrained")
    tall = width * size[0] / size[1]
    grid = figure.add_gridspec(3, len(shown), height_ratios=(tall, tall, 1.7))
    top = float(np.quantile(weights, 0.99))
    for k, n in enumerate(shown):
        above, below = figure.add_subplot(grid[0, k]), figure.add_subplot(grid[1, k])
        panel(above, frames[n], f"frame {n}", size, name=str(n))
        panel(below, weights[:, :, n], f"{weights[place][n]:.0%}", size, name=f"weight {n}", cmap="magma", vmin=0, vmax=top)
        for axes in (above, below):
            mark(axes, *place, (h, w), size, "o" if n == frame else "x")
    curve = figure.add_subplot(grid[2, :])
    curve.bar(np.arange(f), weights[place], color=["black" if n == frame else "0.6" for n in range(f)])
    curve.axhline(1 / f, color="black", linestyle=":", linewidth=1)
    curve.set_xlabel(f"frame that the point of frame {frame} looks at (dotted: all alike)", fontsize=9)
    curve.set_ylabel("weight", fontsize=9)
    curve.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def spread(attention: Attention) -> float:
    """How many frames a cell looks at: the exponential of the entropy of its weights, 1 to f, mean over cells and frames."""
    return float(np.exp(-(attention * np.log(attention.clip(min=1e-12))).sum(-1)).mean())


def without_time(backbone: VideoBackbone, what: str) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Edits (for `backbone.edit`) that silence temporal attention ("attention") or all temporal layers ("all"): the last part
    of each residual branch gives nothing, so that what comes in goes out."""
    ends = {"attention": ("attn1",), "all": ("attn1", "attn2", "ff", "ff_in", "time_pos_embed", "temporal_res_block.conv2")}
    paths = [
        p for p, _ in backbone.unet.named_modules() if TEMPORAL in p or "temporal_res" in p or p.endswith("time_pos_embed")
    ]
    return {path: torch.zeros_like for path in paths if path.endswith(tuple("." + end for end in ends[what]))}
