"""Arrays side by side: what a notebook shows after each of its steps."""

from collections.abc import Mapping

from jaxtyping import Shaped
from matplotlib.figure import Figure
from numpy import ndarray

from vidseg_core.io.overlay import Drawing, panel
from vidseg_core.workbook.figures import mark

COLUMNS = 4
"""Pictures in a row."""


def show_maps(
    maps: Mapping[str, Shaped[ndarray, "_ _ *rgb"]],
    size: tuple[int, int],
    marks: Mapping[str, tuple[int, int]] | None = None,
    low: float | int = 0,
    high: float | int | None = None,
) -> Figure:
    """Maps under their titles, stretched to `size` = (H, W): numbers [h, w] from `low` (black) to `high` (light; None: each
    map's own maximum), or colours [h, w, 3] as they are. `marks`: a cell (row, column) to circle, by title."""
    columns = min(COLUMNS, len(maps))
    rows, width = -(-len(maps) // columns), min(9 / columns, 3.6)
    figure = Drawing(figsize=(width * columns, rows * (width * size[0] / size[1] + 0.35)), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, values) in zip(places, maps.items(), strict=False):
        how = {"cmap": "magma", "vmin": low, "vmax": high} if values.ndim == 2 else {}
        panel(axes, values, title, size, **how)
        if marks and title in marks:
            mark(axes, *marks[title], values.shape[:2], size)
    for unused in places[len(maps) :]:
        unused.set_axis_off()
    return figure
