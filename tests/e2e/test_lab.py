"""The workbook in a real JupyterLab: run, drag, press keys, click, and look whether the picture follows."""

import pytest

from e2e.lab import Notebook, running_browser, running_lab

pytestmark = pytest.mark.browser


NAMES = ("01_features.ipynb", "04_upsampling.ipynb")


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """Both notebooks, each in a page of its own, as their cells begin to run: two kernels keep two cores busy."""
    with running_lab(tmp_path_factory.mktemp("lab")) as lab, running_browser() as new_page:
        opened = {name: Notebook(lab, new_page(), name) for name in NAMES}
        for notebook in opened.values():
            notebook.start()
        yield opened


def drag(page, slider, share):
    """Take the handle of a slider with the mouse and pull it to a share of its length."""
    slider.scroll_into_view_if_needed()  # an explorer may be taller than the page
    handle, rail = slider.locator(".noUi-handle").bounding_box(), slider.locator(".noUi-base").bounding_box()
    y = handle["y"] + handle["height"] / 2
    page.mouse.move(handle["x"] + handle["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(rail["x"] + rail["width"] * share, y, steps=8)
    page.mouse.up()


def named(explorer, description):
    """The slider with this description."""
    return explorer.locator(".widget-slider", has=explorer.page.locator(f".widget-label:text-is('{description}')"))


def readout(slider):
    return slider.locator(".widget-readout").inner_text()


def use(notebook, explorer, by_mouse, by_keys, click):
    """Drag one slider by mouse, move another by its keys, click the picture at shares (x, y); each must change the picture."""
    page = notebook.page
    explorer.scroll_into_view_if_needed()
    explorer.locator("img.vidseg-picture").wait_for()
    seen = [notebook.picture(explorer)]

    slider, before = named(explorer, by_mouse[0]), readout(named(explorer, by_mouse[0]))
    drag(page, slider, by_mouse[1])
    seen.append(notebook.changed(explorer, seen[-1]))
    assert readout(slider) != before

    slider, before = named(explorer, by_keys), readout(named(explorer, by_keys))
    slider.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    seen.append(notebook.changed(explorer, seen[-1]))
    assert readout(slider) != before

    picture = explorer.locator("img.vidseg-picture")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * click[0], "y": box["height"] * click[1]})
    seen.append(notebook.changed(explorer, seen[-1]))
    assert len(set(seen)) == 4, "the picture did not follow every gesture"


def test_01_features(notebooks):
    """The point's explorer: a slider dragged, one moved by keys, a click in a frame; the sliders show where the click fell."""
    notebook = notebooks["01_features.ipynb"]
    notebook.finish()
    assert notebook.errors() == []
    similar = notebook.explorer(1)
    use(notebook, similar, ("row", 0.8), "column", (0.05, 0.2))
    assert int(readout(named(similar, "row"))) < 15 and int(readout(named(similar, "column"))) < 20
    assert notebook.errors() == []


def test_04_upsampling(notebooks):
    """The explorer of the borders: a slider dragged, one moved by keys, a click in the frame."""
    notebook = notebooks["04_upsampling.ipynb"]
    notebook.finish()
    assert notebook.errors() == []
    use(notebook, notebook.explorer(1), ("width", 0.7), "x", (0.06, 0.1))
    modulation, before = notebook.explorer(0), notebook.picture(notebook.explorer(0))
    modulation.scroll_into_view_if_needed()
    drag(notebook.page, named(modulation, "damping"), 0.8)
    notebook.changed(modulation, before)
    assert float(readout(named(modulation, "damping"))) > 0.5 and notebook.errors() == []


def test_an_error_would_be_seen(notebooks):
    """The check for errors finds one, so that its silence above means something."""
    notebook = notebooks["01_features.ipynb"]
    notebook.finish()
    page = notebook.page
    page.keyboard.press("Escape")
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text("1 / 0")
    page.keyboard.press("Shift+Enter")
    notebook.lab.wait(lambda: notebook.errors(), 30, "an error's appearance")
    assert "ZeroDivisionError" in notebook.errors()[0]
