"""Explorers: what a slider, a click and a wrong value do."""

import numpy as np
import pytest

from vidseg_core import InputError
from vidseg_core.io.overlay import Drawing, panel
from vidseg_core.workbook.widgets import Explorer, levels, pick, share, slider

SIZE = (40, 60)


@pytest.fixture
def drawn():
    return []


@pytest.fixture
def explorer(drawn):
    """Two panels side by side, of which the right one takes clicks; `drawn` lists what was asked for."""

    def draw(row, column):
        if row == 9:
            raise InputError("row 9 is closed")
        figure = Drawing(figsize=(6, 3))
        left, right = figure.subplots(1, 2)
        panel(left, np.zeros((*SIZE, 3)), "left")
        panel(right, np.full((*SIZE, 3), row / 10), "right", name="right")
        drawn.append((row, column))
        return figure, {"place": (row, column)}

    def on_click(name, x, y):
        return pick((10, 15), SIZE, x, y) if name == "right" else {}

    return Explorer(draw, on_click, row=slider("row", 1, 0, 9), column=slider("column", 2, 0, 14, live=True))


def test_a_control_redraws_the_picture(explorer, drawn):
    before = explorer.picture.value
    explorer.row.value = 5
    assert drawn == [(1, 2), (5, 2)] and explorer.shown == {"place": (5, 2)}
    assert explorer.picture.value != before and bytes(explorer.picture.value).startswith(b"\x89PNG")
    assert explorer.status.value == "" and explorer.seconds > 0
    assert "vidseg-busy" not in explorer.picture._dom_classes


def test_the_picture_says_that_it_is_busy(explorer):
    seen = []

    def draw(**values):
        seen.append((explorer.status.value, "vidseg-busy" in explorer.picture._dom_classes))
        return Drawing(figsize=(1, 1)), values

    explorer.draw = draw
    explorer.row.value = 3
    assert seen == [("computing ...", True)]


def test_several_values_redraw_once_and_a_still_moves_nothing(explorer, drawn):
    assert explorer.set(row=4, column=7) is explorer
    assert drawn[1:] == [(4, 7)] and explorer.shown["place"] == (4, 7)
    figure = explorer.still(row=8)
    assert drawn[2:] == [(8, 7)] and figure.axes[1].get_title() == "right"
    assert explorer.row.value == 4 and explorer.shown["place"] == (4, 7)


def test_a_wrong_value_is_a_line_of_text_and_the_picture_stays(explorer):
    before = explorer.picture.value
    explorer.row.value = 9
    assert explorer.status.value == "row 9 is closed" and explorer.picture.value == before
    explorer.row.value = 0
    assert explorer.status.value == ""


def test_a_click_lands_where_it_was_made(explorer):
    """From shares of the whole picture, as the browser reports them, to the cell of the panel below the pointer."""
    figure = explorer.still()
    box = figure.axes[1].get_position()
    for row, column in ((0, 0), (3, 11), (8, 14)):
        x, y = box.x0 + box.width * (column + 0.5) / 15, box.y1 - box.height * (row + 0.5) / 10
        explorer.clicks._handle_custom_msg({"x": x, "y": 1 - y}, [])
        assert explorer.shown["place"] == (row, column) == (explorer.row.value, explorer.column.value)
    left = figure.axes[0].get_position()
    explorer.clicks._handle_custom_msg({"x": (left.x0 + left.x1) / 2, "y": 0.5}, [])
    explorer.clicks._handle_custom_msg({"x": 0.001, "y": 0.001}, [])
    assert explorer.shown["place"] == (8, 14), "a click beside the panel, or on one that takes none, moved the point"


def test_without_a_handler_clicks_do_nothing(explorer, drawn):
    explorer.on_click = None
    explorer.click("right", 10, 10)
    assert len(drawn) == 1


def test_pick_stays_inside():
    assert pick((10, 15), SIZE, 60, 40) == {"row": 9, "column": 14} and pick((10, 15), SIZE, -1, 0) == {"row": 0, "column": 0}
    assert pick((10, 15), SIZE, 31, 19.9) == {"row": 4, "column": 7}


def test_sliders():
    assert slider("a", 1, 0, 3, live=True).continuous_update and not slider("a", 1, 0, 3).continuous_update
    assert (share("b", 0.5).min, share("b", 0.5).max) == (0, 1) and levels("c", 20, (1, 20)).value == 20
