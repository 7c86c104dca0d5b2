"""Explorers for the notebooks: controls over pure render functions, drivable from code.

A click or a drag in the browser and `explorer.frame.value = 3` in a cell do the same, so a notebook can assert on what is
shown. The picture is ipywidgets' own image, which JupyterLab, VS Code, Colab and Voila all show; clicks on it come from a
small listener beside it (anywidget). Where that does not load, the sliders still reach every point. In the book, which has no
kernel, an explorer is an album of pictures (`album`).
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import torch
from IPython.display import Video
from matplotlib.figure import Figure

from vidseg_core.common import InputError
from vidseg_core.context import Votes
from vidseg_core.io.overlay import blend, png, video_bytes
from vidseg_core.pipeline import Segmentation, VidSeg
from vidseg_core.workbook.album import page
from vidseg_core.workbook.figures import compare
from vidseg_core.workbook.states import Grid

Drawn = tuple[Figure, dict[str, Any]]
OnClick = Callable[[str, float, float], dict[str, Any]]
"""(panel, x, y) to the values that the controls should take; x and y are in the panel's own units, pixels of a frame."""


class Clicks(anywidget.AnyWidget):
    """Reports clicks on the picture beside it as custom messages {x, y}, shares of its width and height. Shows nothing."""

    _esm = Path(__file__).with_name("clicks.js")
    _css = ".vidseg-picture { max-width: 100% } .vidseg-busy { opacity: 0.45; transition: opacity 0.2s 0.5s; cursor: progress }"


class Explorer(ipywidgets.VBox):
    """Controls above a picture that is drawn anew when one of them changes.

    `draw` takes the controls' values by name and returns a figure and a dict of what it shows; each control is an attribute
    by its name, `shown` is that dict, `picture` the image widget, `seconds` what the last drawing took. While it is drawn, a
    line says so, and after half a second the old picture fades. An `InputError` appears as a line of text.

    `states` says which pictures the book has: `{"frame": (0, 5, 9), "k": (1, 4)}` means each of these frames with each of these
    k, and a list of such grids means all of theirs, 60 pictures at most. Without it, `states.default_states` chooses.
    """

    def __init__(
        self,
        draw: Callable[..., Drawn],
        on_click: OnClick | None = None,
        states: Grid | Sequence[Grid] | None = None,
        **controls: ipywidgets.Widget,
    ):
        self.draw, self.on_click, self.states, self.controls = draw, on_click, states, controls
        self.shown, self.seconds, self.panels, self._held = {}, 0.0, {}, False
        self.picture, self.status = ipywidgets.Image(format="png", layout={"align_self": "flex-start"}), ipywidgets.Label()
        self.picture.add_class("vidseg-picture")
        for name, control in controls.items():
            setattr(self, name, control)
            control.observe(self._redraw, names="value")
        rows = ipywidgets.Box([*controls.values()], layout={"flex_flow": "row wrap"})
        self.clicks = Clicks()
        self.clicks.on_msg(lambda _, message, buffers: self._clicked(message["x"], message["y"]))
        super().__init__([rows, self.status, self.picture, self.clicks])
        self.add_class("vidseg-explorer")
        self._redraw()

    def set(self, **values: Any) -> "Explorer":
        """Several controls at once, with one redraw; returns the explorer."""
        with self._hold():
            for name, value in values.items():
                self.controls[name].value = value
        self._redraw()
        return self

    def still(self, **values: Any) -> Figure:
        """The figure for these values (of the controls that are not named: their own), without moving any control."""
        return self.draw(**{name: control.value for name, control in self.controls.items()} | values)[0]

    def click(self, panel: str, x: float, y: float) -> None:
        """What a click at (x, y) of a panel does; nothing outside the panels that take clicks."""
        if self.on_click is not None and (values := self.on_click(panel, x, y)):
            self.set(**values)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget; while the book is built, a page's worth of pictures."""
        return {"text/html": page(self)} if os.environ.get("VIDSEG_BOOK") == "1" else super()._repr_mimebundle_(**kwargs)

    def _clicked(self, x: float, y: float) -> None:
        for panel, (box, to_data) in self.panels.items():
            if box.contains(x, 1 - y):
                self.click(panel, *to_data.transform((x, 1 - y)))
                return

    @contextmanager
    def _hold(self) -> Iterator[None]:
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def _redraw(self, change: Any = None) -> None:
        if self._held:
            return
        self.status.value, started = "computing ...", time.perf_counter()
        self.picture.add_class("vidseg-busy")
        try:
            figure, self.shown = self.draw(**{name: control.value for name, control in self.controls.items()})
            self.picture.value = png(figure)
            self.panels = _clickable(figure)
            self.status.value = ""
        except InputError as error:
            self.status.value = str(error)
        finally:
            self.picture.remove_class("vidseg-busy")
            self.seconds = time.perf_counter() - started


def _clickable(figure: Figure) -> dict[str, tuple]:
    """The panels that have a name (gid): their box in shares of the figure, and the way from such shares to their units."""
    return {
        axes.get_gid(): (
            axes.bbox.transformed(figure.transFigure.inverted()),
            figure.transFigure.frozen() + axes.transData.inverted().frozen(),
        )
        for axes in figure.axes
        if axes.get_gid()
    }


STYLE = {"style": {"description_width": "90px"}, "layout": {"width": "420px"}}


def slider(name: str, value: int, low: int, high: int, live: bool = False) -> ipywidgets.IntSlider:
    """A slider over whole numbers; `live` redraws while it is dragged, for what takes a tenth of a second."""
    return ipywidgets.IntSlider(value, low, high, description=name, continuous_update=live, **STYLE)


def share(name: str, value: float, step: float = 0.05) -> ipywidgets.FloatSlider:
    """A slider over 0..1."""
    return ipywidgets.FloatSlider(value, min=0, max=1, step=step, description=name, continuous_update=False, **STYLE)


def levels(name: str, value: Any, options: Sequence[Any]) -> ipywidgets.SelectionSlider:
    """A slider over a list of values, for scales that are not even."""
    return ipywidgets.SelectionSlider(options=options, value=value, description=name, continuous_update=False, **STYLE)


def choice(name: str, value: Any, options: Sequence[Any]) -> ipywidgets.Dropdown:
    """A menu; `options` are values or (label, value) pairs."""
    return ipywidgets.Dropdown(options=options, value=value, description=name, **STYLE)


def pick(cells: tuple[int, int], size: tuple[int, int], x: float, y: float) -> dict[str, int]:
    """The cell (row and column of a grid of `cells`) that pixel (x, y) of a frame of `size` = (H, W) lies in."""
    row, column = (int(min(max(p * n // s, 0), n - 1)) for p, n, s in zip((y, x), cells, size, strict=True))
    return {"row": row, "column": column}


def explore_segments(vidseg: VidSeg, result: Segmentation) -> Explorer:
    """Number of segments and frame of a label-free result, as cells and as pixels.

    The cells relabel by look-up; stage 4 runs again for the frame that is shown (0.2 to 2 s with the tiny model on two
    cores) and is remembered. `shown` has "refined" [h, w], "labels" [H, W] and "segments", the numbers of all frames.
    """

    @lru_cache(maxsize=64)
    def pixels(num_segments: int, frame: int) -> np.ndarray:
        votes = result.scene.cut(num_segments).named(torch.from_numpy(result.votes[1][frame : frame + 1]))
        return frame_pixels(vidseg, result.frames[frame], votes)

    def draw(num_segments: int, frame: int) -> Drawn:
        refined, labels = result.at(num_segments)[1], pixels(num_segments, frame)
        figure = compare(result.frames[frame], {"cells": refined[frame], "pixels": labels}, {})
        return figure, {"refined": refined[frame], "labels": labels, "segments": np.unique(refined)}

    most = vidseg.settings.context.num_clusters
    return Explorer(
        draw,
        num_segments=slider("segments", min(8, most), 1, most),
        frame=slider("frame", 0, 0, len(result.frames) - 1),
    )


def frame_pixels(vidseg: VidSeg, frame: np.ndarray, votes: Votes) -> np.ndarray:
    """Stage 4 for one frame uint8 [H, W, 3] and the votes on its cells: labels of pixels int16 [H, W]."""
    device = vidseg.backbone.device
    return vidseg.enlarge(frame[None], Votes(votes.shares.to(device), votes.numbers.to(device)))[0]


def play(result: Segmentation, fps: float | int = 10, alpha: float | int = 0.5) -> Video:
    """The overlay as a video inside the notebook, slowed down so that two seconds can be watched."""
    overlay = (blend(frame, labels, alpha) for frame, labels in zip(result.frames, result.labels, strict=True))
    return Video(video_bytes(overlay, fps), embed=True, mimetype="video/mp4", html_attributes="controls loop autoplay muted")
