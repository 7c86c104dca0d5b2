"""An explorer on a page without a kernel: pictures drawn beforehand, and a script that switches between them.

The explorer's controls are moved to each state and its picture is taken, so that the page shows what a kernel would.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vidseg_core.workbook.states import Choice, State, declared_states, default_states

if TYPE_CHECKING:
    from vidseg_core.workbook.widgets import Explorer

Panel = dict[str, Any]

BYTES = 500_000
"""Of an explorer's pictures: with four explorers and its text a page stays below 3 MB."""
LEVELS = ((80, 1.0), (60, 1.0), (60, 0.75), (45, 0.75), (35, 0.75))
"""Quality (of WebP) and scale, from good to poor: the first with which the pictures are small enough is taken for all of
them. Three quarters of a figure's width are the width of a page's text."""
LATTICE = (9, 12)
"""Rows and columns of the places in a panel for which the page knows what a click there chooses."""
SCRIPT = Path(__file__).with_name("album.js").read_text(encoding="utf-8")
STYLE = Path(__file__).with_name("album.css").read_text(encoding="utf-8")


@dataclass
class Album:
    """Pictures (PNG files) by state, and for each of them which of the `layouts` of clickable panels it has."""

    pictures: dict[State, bytes] = field(default_factory=dict)
    layout: list[int] = field(default_factory=list)
    layouts: list[list[Panel]] = field(default_factory=list)

    def add(self, state: State, picture: bytes, panels: list[Panel]) -> None:
        """One more picture."""
        if panels not in self.layouts:
            self.layouts.append(panels)
        self.pictures[state] = picture
        self.layout.append(self.layouts.index(panels))

    def half(self) -> "Album":
        """Every other picture, the first among them."""
        return Album(dict([*self.pictures.items()][::2]), self.layout[::2], self.layouts)


def page(explorer: "Explorer") -> str:
    """The explorer as HTML that needs nothing else: its present picture, the others, and the script."""
    choices = {name: Choice.of(control) for name, control in explorer.controls.items()}
    album = photograph(explorer, choices)
    if not album.pictures:
        return f"<p>{escape(explorer.status.value)}</p>"
    while (files := compress(list(album.pictures.values()))) is None:
        album = album.half()
    first, *others = [base64.b64encode(file).decode() for file in files]
    data = {
        "controls": [{"label": c.label, "texts": c.texts, "menu": c.menu} for c in choices.values()],
        "states": [*album.pictures], "pictures": others, "lattice": LATTICE, "layout": album.layout, "layouts": album.layouts,
    }  # fmt: skip
    text = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")  # a "</script>" within would end it
    width = Image.open(io.BytesIO(next(iter(album.pictures.values())))).width
    picture = f'<img class="vidseg-picture" src="data:image/webp;base64,{first}" width="{width}" alt="">'
    scripts = f'<script type="application/json">{text}</script><script>{SCRIPT}</script>'
    return f'<div class="vidseg-album"><style>{STYLE}</style>{picture}{scripts}</div>'


def photograph(explorer: "Explorer", choices: Mapping[str, Choice]) -> Album:
    """The explorer's picture in its present state and in all others that are to be drawn; a state that it refuses has none.
    In the end it is as it was."""
    album, own = Album(), {name: control.value for name, control in explorer.controls.items()}
    present = tuple(choices[name].place(value) for name, value in own.items())
    for state in states_of(explorer, choices, present):
        moved = {n: c.values[k] for (n, c), k, here in zip(choices.items(), state, present, strict=True) if k != here}
        explorer.set(**own | moved)
        if not explorer.status.value:
            album.add(state, bytes(explorer.picture.value), panels(explorer, choices))
    explorer.set(**own)
    return album


def states_of(explorer: "Explorer", choices: Mapping[str, Choice], present: State) -> list[State]:
    """The states that the explorer declares, or those that suit its controls and clicks."""
    if explorer.states is not None:
        return declared_states(explorer.states, choices, present)
    numbers = {n for panel in panels(explorer, choices) for target in panel["targets"] for n in target}
    return default_states(choices, present, [name for k, name in enumerate(choices) if k in numbers])


def panels(explorer: "Explorer", choices: Mapping[str, Choice]) -> list[Panel]:
    """The panels of the present picture that take clicks: "box" (left, top, right, bottom in shares of the picture) and
    "targets", what a click chooses at each place of a lattice, row by row: places of values by the numbers of controls."""
    if explorer.on_click is None:
        return []
    names, found = {name: k for k, name in enumerate(choices)}, []
    for panel, (box, to_data) in explorer.panels.items():
        points = [(box.x0 + box.width * x, box.y1 - box.height * y) for x, y in _lattice()]
        chosen = [explorer.on_click(panel, *map(float, to_data.transform(point))) for point in points]
        targets = [{names[name]: choices[name].place(value) for name, value in values.items()} for values in chosen]
        if any(targets):
            found.append({"box": [round(float(p), 3) for p in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)], "targets": targets})
    return found


def _lattice() -> list[tuple[float, float]]:
    """The middles (x, y) of a panel's places, in shares of it, row by row from the top."""
    rows, columns = LATTICE
    return [((c + 0.5) / columns, (r + 0.5) / rows) for r in range(rows) for c in range(columns)]


def compress(pictures: Sequence[bytes]) -> list[bytes] | None:
    """PNG files as WebP, at the best level with which all of them together are small enough; None if there is no such level.
    A single picture is always small enough."""
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    for level in LEVELS:
        files = [_webp(picture, *level) for picture in opened]
        if sum(map(len, files)) <= BYTES or len(files) == 1:
            return files
    return None


def _webp(picture: Image.Image, quality: int, scale: float) -> bytes:
    size = tuple(round(side * scale) for side in picture.size)
    picture.resize(size, Image.Resampling.LANCZOS).save(file := io.BytesIO(), "WEBP", quality=quality)
    return file.getvalue()
