"""Names for clusters by hand: how a user without ground truth gets classes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
from jaxtyping import Int64, Integer, UInt8
from matplotlib.figure import Figure

from vidseg_core.common import VOID, enlarge
from vidseg_core.io.masks import write_mask
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.io.results import write_json
from vidseg_core.pipeline import Segmentation, VidSeg, WindowResult
from vidseg_core.scene import Scene
from vidseg_core.workbook.widgets import STYLE, Drawn, Explorer, frame_pixels, slider


class Naming(Explorer):
    """Click a segment, type what it is; segments of equal name become one, in all frames. "void" leaves a segment out.

    Names are kept by cluster number in `given`. `save` writes a mask of the first frame and a names file, which the command
    line takes as --first-mask and --names. `result` is of a label-free run, or its first window. `shown` has "maps" [f, h, w],
    "names" and "chosen".
    """

    def __init__(
        self, vidseg: VidSeg, result: Segmentation | WindowResult, folder: str | Path, num_segments: int = 8
    ):  # fmt: skip
        self.vidseg, self.result, self.folder, self.given = vidseg, result, Path(folder), {}
        field = ipywidgets.Text(description="name", continuous_update=False, placeholder="type, then Enter", **STYLE)
        field.observe(self._give, names="value")  # before the redraw, which is to show it
        count, frames = len(result.scene.merges) + 1, len(result.frames)
        segment = slider("segment", 0, 0, count - 1)
        segment.observe(self._refill, names="value")
        super().__init__(
            self._draw, self._on_click,
            num_segments=slider("segments", num_segments, 1, count),
            frame=slider("later frame", frames - 1, 1, frames - 1, live=True),
            segment=segment, name=field,
        )  # fmt: skip
        self.button = ipywidgets.Button(description="save mask and names", layout={"width": "200px"})
        self.button.on_click(lambda _: self.save())
        self.children = (*self.children, self.button)

    def scene(self) -> Scene:
        """The scene as it is cut and named now."""
        return replace(self.result.scene, given=dict(self.given)).cut(self.num_segments.value)

    def save(self) -> Path:
        """Write first_mask.png (pixels, stage 4 of frame 0) and names.json into the folder, which is made; returns it."""
        scene = self.scene()
        votes = scene.named(torch.from_numpy(self.result.votes[1][:1]))
        pixels = frame_pixels(self.vidseg, self.result.frames[0], votes)
        mask, names = _classes(pixels, scene.names)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_mask(self.folder / "first_mask.png", mask)
        write_json(self.folder / "names.json", {str(n): name for n, name in names.items()})
        lost = sorted({*self.given.values()} - {*names.values(), "void"})
        self.status.value = f"saved in {self.folder}" + (f"; not in frame 0, so lost: {', '.join(lost)}" if lost else "")
        return self.folder

    def _refill(self, change: Any) -> None:
        """The field shows the chosen segment's name; else a name typed twice in a row would be no change, and go unheard."""
        with self._hold():
            self.name.value = self.given.get(int(self.scene().segment[change["new"]]), "")

    def _give(self, change: Any) -> None:
        if self._held:
            return
        name, number = change["new"].strip(), int(self.scene().segment[self.segment.value])
        if name:
            self.given[number] = name
        else:
            self.given.pop(number, None)

    def _draw(self, num_segments: int, frame: int, segment: int, name: str) -> Drawn:
        scene = self.scene()
        maps, chosen = scene.named(torch.from_numpy(self.result.votes[1])).labels.numpy(), int(scene.segment[segment])
        shown = {f"frame {n}": n for n in (0, frame)}
        figure = show_named(
            {title: self.result.frames[n] for title, n in shown.items()},
            {title: maps[n] for title, n in shown.items()}, scene.names, chosen,
        )  # fmt: skip
        return figure, {"maps": maps, "names": scene.names, "chosen": chosen}

    def _on_click(self, panel: str, x: float, y: float) -> dict[str, Any]:
        maps, size = self.shown["maps"][int(panel.split()[-1])], self.result.frames.shape[1:3]
        row, column = (int(min(p * n // s, n - 1)) for p, n, s in zip((y, x), maps.shape, size, strict=True))
        return {"segment": int(maps[row, column])}


def _classes(pixels: Integer[np.ndarray, "H W"], names: dict[int, str]) -> tuple[Int64[np.ndarray, "H W"], dict[int, str]]:
    """Segments as classes 0, 1, ... and their names; what is called "void" is 255 and has none."""
    mask, called = np.full(pixels.shape, VOID, np.int64), {}
    for segment in np.unique(pixels).tolist():
        if segment != VOID and names[segment] != "void":
            mask[pixels == segment] = len(called)
            called[len(called)] = names[segment]
    return mask, called


def show_named(
    frames: Mapping[str, UInt8[np.ndarray, "H W 3"]],
    maps: Mapping[str, Integer[np.ndarray, "h w"]],
    names: Mapping[int, str],
    chosen: int,
) -> Figure:
    """Frames with their segments under one legend of names, and the chosen segment alone. Every panel takes clicks; its name
    is its title."""
    columns = len(frames) + 1
    first = next(iter(frames))
    size = frames[first].shape[:2]
    figure = Drawing(figsize=(9, 9 / columns * size[0] / size[1] + 1.1), layout="constrained")
    axes = figure.subplots(1, columns)
    for k, (title, frame) in enumerate(frames.items()):
        panel(axes[k], blend(frame, enlarge(maps[title], size)), title, name=title)
    alone = np.where(enlarge(maps[first], size) == chosen, chosen, 255)
    faded = (frames[first] // 2 + 127).astype(np.uint8)
    panel(axes[-1], blend(faded, alone, 0.7), f"chosen: {names.get(chosen, f'segment {chosen}')}", name=first)
    legend(figure, list(maps.values()), names)
    return figure
