"""Figures of stage 3: tracks on frames, one track and its vote, before and after."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidseg_core.workbook.figures import PALETTE, Drawing, blend, enlarge, legend, mark, panel

Frames = UInt8[np.ndarray, "f H W 3"]
Paths = Float[np.ndarray, "t f 2"]


def show_tracks(frames: Frames, paths: Paths, labels: Integer[np.ndarray, " t"], shown: Sequence[int]) -> Figure:
    """Tracks as lines over the frames `shown`, each up to that frame, in the colour of its label; `paths` are (y, x) in pixels,
    NaN where a track is not."""
    width = 9 / len(shown)
    figure = Drawing(figsize=(9, width * frames.shape[1] / frames.shape[2] + 0.4), layout="constrained")
    for axes, n in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        panel(axes, frames[n] // 2 + 100, f"frame {n}")
        _draw_paths(axes, paths[:, : n + 1], labels)
    return figure


def _draw_paths(axes: Axes, paths: Paths, labels: Integer[np.ndarray, " t"]) -> None:
    for path, label in zip(paths, labels.tolist(), strict=True):
        if np.isfinite(path[-1, 0]):
            colour = PALETTE[label] / 255
            axes.plot(path[:, 1], path[:, 0], color=colour, linewidth=1)
            axes.plot(path[-1, 1], path[-1, 0], "o", color=colour, markersize=2.5)


def show_track(
    frames: Frames,
    cells: Integer[np.ndarray, "f 2"],
    truth: Float[np.ndarray, "f 2"],
    votes: Integer[np.ndarray, " f"],
    shown: Sequence[int],
    grid: tuple[int, int],
    names: Mapping[int, str],
    majority: float,
) -> Figure:
    """One track: where it is (circle; `cells` are row and column, -1 where it is not) and where it ought to be (plus; `truth`
    is (y, x) in pixels, NaN where hidden), the label of each cell it visits, and the votes. Panels "0", "1", ..."""
    size = frames.shape[1:3]
    height = 9 / len(shown) * size[0] / size[1] + 0.4
    figure = Drawing(figsize=(9, height + 1.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(height, 1.5))
    for axes, n in zip(above.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        panel(axes, frames[n], f"frame {n}", name=str(n))
        if np.isfinite(truth[n, 0]):
            axes.plot(truth[n, 1], truth[n, 0], "+", color="black", markersize=14, markeredgewidth=4)
            axes.plot(truth[n, 1], truth[n, 0], "+", color="white", markersize=12, markeredgewidth=2)
        if cells[n, 0] >= 0:
            mark(axes, *cells[n].tolist(), grid, size)
    strip, bars = below.subplots(1, 2)
    _draw_votes(strip, votes)
    _draw_count(bars, votes[votes >= 0], names, majority)
    return figure


def _draw_votes(axes: Axes, votes: Integer[np.ndarray, " f"]) -> None:
    colours = np.where((votes >= 0)[:, None], PALETTE[votes.clip(min=0)] / 255, 1.0)
    axes.imshow(colours[None], aspect="auto", extent=(-0.5, len(votes) - 0.5, 0, 1))
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("frame", fontsize=9)
    axes.set_title("the label of each cell on the track", fontsize=10)


def _draw_count(axes: Axes, votes: Integer[np.ndarray, " v"], names: Mapping[int, str], majority: float) -> None:
    values, counts = np.unique(votes, return_counts=True)
    called = [names.get(v, f"segment {v}") for v in values.tolist()]
    axes.barh(called, counts / max(counts.sum(), 1), color=PALETTE[values] / 255, height=0.6)
    axes.axvline(majority, color="black", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.tick_params(labelsize=9)
    axes.set_title("share of the votes; dashed: majority needed", fontsize=10)


def show_vote(
    frame: UInt8[np.ndarray, "H W 3"],
    maps: Mapping[str, Integer[np.ndarray, "h w"]],
    wrong: Bool[np.ndarray, "2 h w"],
    confidence: Float[np.ndarray, "h w"],
    names: Mapping[int, str],
) -> Figure:
    """Labels of one frame before and after the vote and the true ones; which cells it repaired (plus) and spoiled (cross), from
    `wrong` (before, after); the winner's share. Panels take clicks."""
    size, grid = frame.shape[:2], wrong.shape[1:]
    figure = Drawing(figsize=(9, 2 * 3 * size[0] / size[1] + 1.3), layout="constrained")
    axes = figure.subplots(2, 3)
    panel(axes[0, 0], frame, "the frame", name="frame")
    for place, (title, cells) in zip((axes[0, 1], axes[0, 2], axes[1, 0]), maps.items(), strict=True):
        panel(place, blend(frame, enlarge(cells, size)), title, name=title)
    faded = (frame // 2 + 100).astype(np.uint8)
    repaired, spoiled = wrong[0] & ~wrong[1], wrong[1] & ~wrong[0]
    panel(axes[1, 1], faded, f"+ repaired: {repaired.sum()}   x spoiled: {spoiled.sum()}")
    for cells, sign in ((repaired, "+"), (spoiled, "x")):
        y, x = ((p + 0.5) * s / g for p, s, g in zip(np.nonzero(cells), size, grid, strict=True))
        axes[1, 1].plot(x, y, sign, color="black", markersize=6, markeredgewidth=1.6)
    panel(axes[1, 2], confidence, "share of the winning vote (black: 0)", size, cmap="magma", vmin=0, vmax=1)
    legend(figure, list(maps.values()), names)
    return figure


def show_failures(shares: Mapping[str, Float[np.ndarray, " g"]]) -> Figure:
    """For each kind of place, the share of tracks within a cell of the truth, by the number of hops since the start."""
    figure = Drawing(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    for (name, share), style in zip(shares.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(np.arange(1, len(share) + 1), share, style, color="black", label=name, linewidth=1.8)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("hops", fontsize=9)
    axes.set_ylabel("within a cell of the truth", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, frameon=False, loc="lower left")
    return figure
