"""Figures that several notebooks share: pure functions from arrays to images and matplotlib figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from vidseg_core.common import enlarge
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.io.video import Frame


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


def show_frames(frames: Mapping[str, np.ndarray], **how: Any) -> Figure:
    """Pictures [h, w] or [h, w, 3] side by side under their titles, stretched to the first's size; `how` goes to imshow."""
    height, width = size = next(iter(frames.values())).shape[:2]
    figure = Drawing(figsize=(9, 9 / len(frames) * height / width + 0.4), layout="constrained")
    for axes, (title, frame) in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames.items(), strict=True):
        panel(axes, frame, title, size, **how)
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
    values: Float[np.ndarray, "r c"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    best: str = "column",
    lower: Sequence[str] = (),
) -> Figure:
    """Numbers in a shaded table, darker where larger; framed is the largest of each `best`: "column", "row", or of "all". The
    columns named in `lower`, in which less is better, are not shaded, and have a frame around the smallest."""
    less = np.array([column in lower for column in columns])
    shaded = np.where(less, np.nan, values)
    width = max(2.6 + 0.9 * len(columns), 0.09 * len(title))  # inches: a title is not cut off
    figure = Drawing(figsize=(min(9, width), 0.9 + 0.34 * len(rows)), layout="constrained")
    axes, low = figure.subplots(), np.nanmin(shaded)
    span = max(np.nanmax(shaded) - low, 0.05)
    axes.imshow(shaded, aspect="auto", cmap="Greys", vmin=low - 0.1 * span, vmax=low + 2 * span)
    for (r, c), value in np.ndenumerate(values):
        rivals = {"column": values[:, c], "row": values[r], "all": values}[best]
        frame = {"facecolor": "none", "edgecolor": "black"} if value == (np.nanmin if less[c] else np.nanmax)(rivals) else None
        axes.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=10, bbox=frame)
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    figure.suptitle(title, fontsize=10)  # centred above the names of rows too
    axes.spines[:].set_visible(False)
    return figure


def mark(axes: Axes, row: int, column: int, cells: tuple[int, int], size: tuple[int, int], style: str = "o") -> None:
    """A white marker with a dark rim at the centre of a cell of a grid `cells` = (h, w), on a panel of `size` = (H, W)."""
    y, x = ((n + 0.5) * s / c for n, s, c in zip((row, column), size, cells, strict=True))
    axes.plot(x, y, style, color="black", markersize=9, markeredgewidth=4)
    axes.plot(x, y, style, color="white", markersize=8, markeredgewidth=2, markerfacecolor="none")
