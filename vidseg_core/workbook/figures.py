"""Pictures: pure functions from arrays to images and matplotlib figures. One colour per segment, everywhere."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.optimize import linear_sum_assignment

from vidseg_core.evaluation.metrics import VOID

Frame = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "H W"]


class Drawing(Figure):
    """A figure that a notebook shows by itself, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        return png(self)


def _palette() -> UInt8[np.ndarray, "256 3"]:
    """matplotlib's tab10, then always the colour that is farthest from all before it; void, the last, is black."""
    steps = np.linspace(0.1, 0.95, 10)
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    table = [np.zeros(3), *map(np.array, colormaps["tab10"].colors)]
    distance = np.min([np.linalg.norm(candidates - colour, axis=1) for colour in table], axis=0)
    while len(table) < 256:
        table.append(candidates[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(candidates - table[-1], axis=1))
    return (np.array(table[1:] + table[:1]) * 255).round().astype(np.uint8)


PALETTE = _palette()
"""RGB of each label number, uint8 [256, 3]; void is black."""


def blend(frame: Frame, labels: Labels, alpha: float | int = 0.5, colours: UInt8[np.ndarray, "256 3"] = PALETTE) -> Frame:
    """(1 - alpha) frame + alpha colour, with white contours between labels; void keeps the frame. `alpha` is in 0..1."""
    labels = labels.astype(np.uint8)
    weight = round(256 * alpha)  # fixed point, as floats of a 4000x3000 frame take 150 MB
    tint = colours * np.uint16(weight) + np.uint16(128)
    mixed = ((frame * np.uint16(256 - weight) + tint[labels]) >> np.uint16(8)).astype(np.uint8)
    edge, width = np.zeros(labels.shape, bool), max(1, min(labels.shape) // 400)
    edge[:, :-width] |= labels[:, width:] != labels[:, :-width]
    edge[:-width] |= labels[width:] != labels[:-width]
    mixed[edge] = 255
    return np.where((labels == VOID)[..., None], frame, mixed)


def enlarge(cells: Integer[np.ndarray, "h w"], size: tuple[int, int]) -> Labels:
    """A coarse label map at `size` = (H, W), nearest neighbour: every pixel shows the cell it lies in."""
    rows, columns = (np.arange(n) * c // n for n, c in zip(size, cells.shape, strict=True))
    return cells[rows[:, None], columns]


def pca_image(
    features: Float[np.ndarray, "f h w d"], like: Float[np.ndarray, "_ H W 3"] | None = None
) -> Float[np.ndarray, "f h w 3"]:
    """The three main directions of all the tokens as RGB in 0..1, each stretched between its 1st and 99th percentile.

    Which direction becomes which colour, and which of its ends is bright, is arbitrary; `like`, an earlier image of the same
    frames, settles it so that similar things keep their colours from picture to picture.
    """
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float64)
    centred = tokens - tokens.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    values = centred @ axes[:, :-4:-1]
    low, high = np.percentile(values, (1, 99), axis=0)
    image = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1).reshape(*features.shape[:3], 3)
    return image if like is None else _matched(image, like)


def _matched(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`image` with its channels in the order and direction that correlate best with those of `like`."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[1:3], like.shape[1:3], strict=True))
    other = like[:, rows][:, :, columns].reshape(-1, 3)
    with np.errstate(invalid="ignore"):  # a channel without variation correlates with nothing
        together = np.nan_to_num(np.corrcoef(image.reshape(-1, 3).T, other.T)[:3, 3:])
    own, target = linear_sum_assignment(-np.abs(together))
    matched = np.empty_like(image)
    for a, b in zip(own, target, strict=True):
        matched[..., b] = image[..., a] if together[a, b] >= 0 else 1 - image[..., a]
    return matched


def show_stages(
    frame: Frame,
    features: Float[np.ndarray, "h w d"],
    coarse: Integer[np.ndarray, "h w"],
    refined: Integer[np.ndarray, "h w"],
    confidence: Float[np.ndarray, "h w"],
    labels: Labels,
    names: Mapping[int, str],
) -> Figure:
    """One frame on its way through the method, a panel for each stage."""
    figure = Drawing(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(2, 3)
    size = frame.shape[:2]
    panel(axes[0, 0], frame, "the frame")
    panel(axes[0, 1], pca_image(features[None])[0], f"1 features: {features.shape[-1]} channels, as 3 colours", size)
    panel(axes[0, 2], blend(frame, enlarge(coarse, size)), f"2 context model: {coarse.shape[0]} x {coarse.shape[1]} cells")
    panel(axes[1, 0], blend(frame, enlarge(refined, size)), "3 refined by correspondences")
    panel(axes[1, 1], confidence, "share of the winning vote (black: 0)", size, cmap="magma", vmin=0, vmax=1)
    panel(axes[1, 2], blend(frame, labels), "4 masked modulation: every pixel")
    legend(figure, [labels, coarse, refined], names)
    return figure


def show_frames(frames: Mapping[str, Frame]) -> Figure:
    """Pictures side by side under their titles."""
    height, width = next(iter(frames.values())).shape[:2]
    figure = Drawing(figsize=(9, 9 / len(frames) * height / width + 0.4), layout="constrained")
    for axes, (title, frame) in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames.items(), strict=True):
        panel(axes, frame, title)
    return figure


def contact_sheet(frames: list[Frame], labels: list[Labels], numbers: list[int], names: Mapping[int, str]) -> Figure:
    """Frames above, their overlays below, a legend of what is seen; `numbers` are the frames' numbers in the clip."""
    height, width = frames[0].shape[:2]
    side = 12 / len(frames)
    figure = Drawing(figsize=(12, min(2 * side * height / width, 12) + 0.8), layout="constrained")
    for n, column in enumerate(figure.subplots(2, len(frames), squeeze=False).T):
        panel(column[0], frames[n], f"frame {numbers[n]}")
        panel(column[1], blend(frames[n], labels[n]), "")
    legend(figure, labels, names)
    return figure


def compare(frame: Frame, maps: Mapping[str, Integer[np.ndarray, "_ _"]], names: Mapping[int, str]) -> Figure:
    """Label maps of one frame side by side, cells or pixels, each as an overlay under its title."""
    width = min(9, 4.5 * len(maps))
    figure = Drawing(figsize=(width, width / len(maps) * frame.shape[0] / frame.shape[1] + 0.9), layout="constrained")
    for axes, (title, labels) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        panel(axes, blend(frame, enlarge(labels, frame.shape[:2])), title)
    legend(figure, list(maps.values()), names)
    return figure


def show_table(
    values: Float[np.ndarray, "r c"], rows: Sequence[str], columns: Sequence[str], title: str, best: str = "column"
) -> Figure:
    """Numbers in a shaded table, darker where larger; framed is the largest of each `best`: "column", "row", or of "all"."""
    figure = Drawing(figsize=(min(9, 2.6 + 0.9 * len(columns)), 0.9 + 0.34 * len(rows)), layout="constrained")
    axes, low = figure.subplots(), np.nanmin(values)
    span = max(np.nanmax(values) - low, 0.05)
    axes.imshow(values, aspect="auto", cmap="Greys", vmin=low - 0.1 * span, vmax=low + 2 * span)
    for (r, c), value in np.ndenumerate(values):
        rivals = {"column": values[:, c], "row": values[r], "all": values}[best]
        frame = {"facecolor": "none", "edgecolor": "black"} if value == np.nanmax(rivals) else None
        axes.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=10, bbox=frame)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_visible(False)
    return figure


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def panel(
    axes: Axes, image: np.ndarray, title: str, size: tuple[int, int] | None = None, name: str | None = None, **how: Any
) -> None:
    """One picture [h, w] or [h, w, 3] with its title, stretched over `size` = (H, W) pixels, whose coordinates its axes have.

    `name` makes it a panel that an explorer's clicks can tell from the others. `how` goes to matplotlib's imshow.
    """
    height, width = size or image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), **{"interpolation": "nearest"} | how)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    axes.set_gid(name)


def mark(axes: Axes, row: int, column: int, cells: tuple[int, int], size: tuple[int, int], style: str = "o") -> None:
    """A white marker with a dark rim at the centre of a cell of a grid `cells` = (h, w), on a panel of `size` = (H, W)."""
    y, x = ((n + 0.5) * s / c for n, s, c in zip((row, column), size, cells, strict=True))
    axes.plot(x, y, style, color="black", markersize=9, markeredgewidth=4)
    axes.plot(x, y, style, color="white", markersize=8, markeredgewidth=2, markerfacecolor="none")


def legend(figure: Figure, maps: list[np.ndarray], names: Mapping[int, str]) -> None:
    """The colours of all the labels in `maps` below the figure, by name."""
    seen = np.unique(np.concatenate([np.unique(m) for m in maps])).tolist()
    patches = [Patch(color=PALETTE[n] / 255, label=names.get(n, f"segment {n}")) for n in seen[:40]]
    columns = min(len(patches), int(figure.get_figwidth() / 1.5))
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
