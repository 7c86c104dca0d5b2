"""An explorer's pictures for pages without a kernel."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vidseg_core import InputError
from vidseg_core.io.overlay import Drawing, panel
from vidseg_core.workbook import album
from vidseg_core.workbook.widgets import Explorer, pick, slider

SIZE = (40, 60)


@pytest.fixture
def explorer():
    """A brightness and a point on a panel of its own; the brightness 3 is refused."""

    def draw(light, row, column):
        if light == 3:
            raise InputError("no light 3")
        figure = Drawing(figsize=(4, 2))
        left, right = figure.subplots(1, 2)
        panel(left, np.full((*SIZE, 3), light / 4), f"{row} {column}")
        panel(right, np.zeros((*SIZE, 3)), "", name="map")
        return figure, {}

    return Explorer(
        draw, lambda name, x, y: pick((8, 12), SIZE, x, y), [{"light": range(5)}, {"row": (1, 6), "column": (2, 9)}],
        light=slider("light", 1, 0, 4), row=slider("row", 3, 0, 7), column=slider("column", 5, 0, 11),
    )  # fmt: skip


def data_of(html):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])


def image_of(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_page_has_a_picture_for_each_state_but_those_refused(explorer):
    before = explorer.picture.value
    data = data_of(album.page(explorer))
    assert data["states"] == [[1, 3, 5], [0, 3, 5], [2, 3, 5], [4, 3, 5], [1, 1, 2], [1, 1, 9], [1, 6, 2], [1, 6, 9]]
    assert len(data["pictures"]) == len(data["states"]) - 1 == len(data["layout"]) - 1
    brightest = np.asarray(image_of(data["pictures"][2]).convert("L"))
    assert abs(int(brightest[100, 100]) - 255) < 4, "light 4 is white"
    assert image_of(data["pictures"][0]).format == "WEBP"
    assert explorer.picture.value == before and (explorer.light.value, explorer.row.value) == (1, 3)


def test_it_is_known_what_a_click_chooses(explorer):
    (panels,) = data_of(album.page(explorer))["layouts"]
    (only,), (rows, columns) = panels, album.LATTICE
    left, top, right, bottom = only["box"]
    assert 0.5 < left < right < 1 and 0 < top < bottom < 1
    assert len(only["targets"]) == rows * columns
    assert only["targets"][0] == {"1": 0, "2": 0} and only["targets"][-1] == {"1": 7, "2": 11}
    assert only["targets"][columns - 1] == {"1": 0, "2": 11}


def test_without_clicks_there_are_no_panels(explorer):
    explorer.on_click = None
    assert data_of(album.page(explorer))["layouts"] == [[]]


def test_the_default_states_combine_what_a_click_sets(explorer):
    explorer.states = None
    states = data_of(album.page(explorer))["states"]
    assert len({(row, column) for light, row, column in states if light == 1}) > 20
    assert {light for light, *_ in states} == {0, 1, 2, 4}


def test_an_explorer_that_shows_nothing_but_an_error_says_it(explorer):
    explorer.light.value = 3
    explorer.states = {"light": (3,)}
    assert album.page(explorer) == "<p>no light 3</p>"


def test_the_book_gets_the_page_and_a_kernel_the_widget(explorer, monkeypatch):
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
    monkeypatch.setenv("VIDSEG_BOOK", "1")
    bundle = explorer._repr_mimebundle_()
    assert "vidseg-album" in bundle["text/html"] and "application/vnd.jupyter.widget-view+json" not in bundle


@pytest.fixture
def noise():
    """A picture that is hard to compress, as a PNG file."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_pictures_are_made_poorer_until_they_are_small_enough(noise, monkeypatch):
    best = sum(map(len, album.compress([noise] * 3)))
    monkeypatch.setattr(album, "BYTES", 0.6 * best)
    poorer = album.compress([noise] * 3)
    assert sum(map(len, poorer)) <= album.BYTES and Image.open(io.BytesIO(poorer[0])).size == (120, 90)
    monkeypatch.setattr(album, "BYTES", 0.01 * best)
    assert album.compress([noise] * 3) is None and len(album.compress([noise])) == 1


def test_if_nothing_helps_fewer_pictures_are_shown(explorer, monkeypatch):
    every = data_of(album.page(explorer))["states"]
    some = sum(map(len, album.compress([bytes(explorer.picture.value)] * 3)))
    monkeypatch.setattr(album, "LEVELS", album.LEVELS[:1])
    monkeypatch.setattr(album, "BYTES", some)
    data = data_of(album.page(explorer))
    assert data["states"] == every[::4] and len(data["pictures"]) == 1 == len(data["layout"]) - 1
