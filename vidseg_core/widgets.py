"""Explorers for the notebooks: sliders over pure render functions, drivable from code.

A click in the browser and `explorer.frame.value = 3` in a cell do the same, so a notebook can assert on what is shown.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ipywidgets
import numpy as np
import torch
from IPython.display import Video
from matplotlib.figure import Figure

from vidseg_core.errors import InputError
from vidseg_core.pipeline import Segmentation, VidSeg
from vidseg_core.results import video_bytes
from vidseg_core.upsample import upsample
from vidseg_core.viz import blend, compare, png

Drawn = tuple[Figure, dict[str, Any]]


class Explorer(ipywidgets.VBox):
    """Controls above a picture that is drawn anew when one of them changes.

    `draw` takes the controls' values by name and returns a figure and a dict of what it shows; each control is an attribute
    by its name, `shown` is that dict, `picture` the image widget. An `InputError` appears as a line of text.
    """

    def __init__(self, draw: Callable[..., Drawn], **controls: ipywidgets.Widget):
        self.draw, self.controls, self.shown = draw, controls, {}
        self.picture, self.status = ipywidgets.Image(format="png", layout={"align_self": "flex-start"}), ipywidgets.Label()
        for name, control in controls.items():
            setattr(self, name, control)
            control.observe(self._redraw, names="value")
        super().__init__([*controls.values(), self.status, self.picture])
        self._redraw()

    def _redraw(self, change: Any = None) -> None:
        self.status.value = "computing ..."
        try:
            figure, self.shown = self.draw(**{name: control.value for name, control in self.controls.items()})
            self.picture.value = png(figure)
            self.status.value = ""
        except InputError as error:
            self.status.value = str(error)


def explore_segments(vidseg: VidSeg, result: Segmentation) -> Explorer:
    """Number of segments and frame of a label-free result, as cells and as pixels.

    The cells relabel by look-up; stage 4 runs again for the frame that is shown (0.2 to 2 s with the tiny model on two
    cores) and is remembered. `shown` has "refined" [h, w], "labels" [H, W] and "segments", the numbers of all frames.
    """

    @lru_cache(maxsize=64)
    def pixels(num_segments: int, frame: int) -> np.ndarray:
        cells = torch.from_numpy(result.at(num_segments)[1][frame : frame + 1]).to(vidseg.backbone.device)
        frames = result.frames[frame : frame + 1]
        return upsample(vidseg.backbone, vidseg.images(frames), cells, frames.shape[1:3], vidseg.settings)[0].cpu().numpy()

    def draw(num_segments: int, frame: int) -> Drawn:
        refined, labels = result.at(num_segments)[1], pixels(num_segments, frame)
        figure = compare(result.frames[frame], {"cells": refined[frame], "pixels": labels}, {})
        return figure, {"refined": refined[frame], "labels": labels, "segments": np.unique(refined)}

    most = vidseg.settings.context.num_clusters
    return Explorer(
        draw,
        num_segments=_slider("segments", min(8, most), 1, most),
        frame=_slider("frame", 0, 0, len(result.frames) - 1),
    )


def play(result: Segmentation, fps: float | int = 10, alpha: float | int = 0.5) -> Video:
    """The overlay as a video inside the notebook, slowed down so that two seconds can be watched."""
    overlay = (blend(frame, labels, alpha) for frame, labels in zip(result.frames, result.labels, strict=True))
    return Video(video_bytes(overlay, fps), embed=True, mimetype="video/mp4", html_attributes="controls loop autoplay muted")


def _slider(name: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value, low, high, description=name, continuous_update=False)
