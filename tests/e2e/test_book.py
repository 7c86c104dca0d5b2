"""The built book in a real browser: its pages ask for nothing from elsewhere, and explorers move without a kernel."""

import importlib.util
import json
import re

import pytest

from e2e.book import WHOLE, build_small_book, serving
from e2e.lab import ROOT, running_browser

pytestmark = pytest.mark.browser

MEGABYTES = 3
API = ("method", "models", "io", "cluster", "evaluation", "workbook")


@pytest.fixture(scope="module")
def browser():
    with running_browser() as new_page:
        yield new_page


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The address of a book of one notebook with one explorer."""
    with serving(build_small_book(tmp_path_factory.mktemp("book"))) as url:
        yield url


@pytest.fixture
def whole():
    """The address of the whole book."""
    if not (WHOLE / "docs" / "index.html").is_file():
        pytest.skip("the whole book is not built: make book")
    with serving(WHOLE) as url:
        yield url


def opened(new_page, address):
    """A page, the addresses that it asked for, and the errors of its scripts."""
    page, asked, errors = new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    return page, asked, errors


def elsewhere(asked, url):
    return [address for address in asked if not address.startswith((url, "data:", "blob:"))]


def shown(album):
    """The values that the album's controls show, and what identifies its picture."""
    texts = album.locator("label").evaluate_all(
        "labels => labels.map(l => (l.querySelector('output') ?? l.querySelector('option:checked')).textContent)"
    )
    return texts, album.locator("img").get_attribute("src")


def drag(page, slider, share):
    """Take a slider's handle with the mouse and pull it to a share of its length."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    at = slider.evaluate("s => (s.value - s.min) / (s.max - s.min)")
    y, handle = box["y"] + box["height"] / 2, 16
    x = lambda part: box["x"] + handle / 2 + (box["width"] - handle) * part  # noqa: E731
    page.mouse.move(x(at), y)
    page.mouse.down()
    page.mouse.move(x(share), y, steps=5)
    page.mouse.up()


def click(album, x, y):
    """A click at shares of the picture's width and height."""
    picture = album.locator("img")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * x, "y": box["height"] * y})


def test_an_explorer_moves_without_a_kernel(browser, small):
    page, asked, errors = opened(browser, f"{small}/notebooks/small.html")
    album, seen = page.locator(".vidseg-album"), set()
    light, menu, status = album.locator("input").nth(0), album.locator("select"), album.locator(".status")
    texts, picture = shown(album)
    assert texts == ["3", "3", "5", "low"] and album.locator("img").get_attribute("alt").startswith("light 3, row 3")
    assert "word" not in album.locator(".controls").inner_text()
    seen.add(picture)

    drag(page, light, 1.0)
    texts, picture = shown(album)
    assert texts == ["9", "3", "5", "low"] and picture not in seen
    seen.add(picture)

    light.focus()
    page.keyboard.press("ArrowLeft")
    texts, picture = shown(album)
    assert texts == ["6", "3", "5", "low"] and picture not in seen
    seen.add(picture)

    menu.select_option("high")
    texts, picture = shown(album)
    assert texts == ["6", "3", "5", "high"] and picture not in seen and status.inner_text() == ""
    assert errors == [] and elsewhere(asked, small) == []


def test_what_was_not_drawn_is_named(browser, small):
    page, _, _ = opened(browser, f"{small}/notebooks/small.html")
    album = page.locator(".vidseg-album")
    light, status = album.locator("input").nth(0), album.locator(".status")
    album.locator("select").select_option("high")
    drag(page, light, 0.5)  # 5 was drawn with the low tone alone
    texts, _ = shown(album)
    assert texts == ["5", "3", "5", "low"], "the control that was moved keeps its value"
    assert status.inner_text() == "Not drawn here: tone high. The nearest is shown: tone low."


def test_a_click_chooses_among_drawn_points(browser, small):
    page, _, _ = opened(browser, f"{small}/notebooks/small.html")
    album, status = page.locator(".vidseg-album"), page.locator(".vidseg-album .status")
    _, before = shown(album)
    click(album, 0.2, 0.5)  # the left panel takes no clicks
    assert shown(album)[1] == before
    click(album, 0.85, 0.66)
    texts, picture = shown(album)
    assert texts == ["3", "6", "9", "low"] and picture != before
    assert re.match(r"Not drawn here: .*column \d+.* The nearest is shown: .*column 9", status.inner_text())


def test_what_a_page_holds_and_what_not(browser, small):
    page, _, _ = opened(browser, f"{small}/notebooks/small.html")
    assert page.locator("math msqrt").count() == 1 and page.get_by_text("badge").count() == 1
    assert "hidden" not in page.inner_text("article")
    assert page.locator("script[type*='widget-state']").count() == 0, "what widgets hold is written into the page"
    page.goto(small)
    page.wait_for_url("**/docs/index.html")


def pages_of_the_book():
    return sorted(str(path.relative_to(WHOLE)) for path in WHOLE.rglob("*.html") if "_static" not in path.parts)


def test_no_page_of_the_book_needs_the_network_or_is_too_wide(browser, whole):
    """Every page, as wide as a telephone's: what it asks for, what its scripts say, how wide it is."""
    found = []
    for name in pages_of_the_book():
        page, asked, errors = opened(browser, f"{whole}/{name}")
        page.set_viewport_size({"width": 390, "height": 800})
        found += [f"{name} asks for {address}" for address in elsewhere(asked, whole)] + [f"{name}: {e}" for e in errors]
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 390:
            found.append(f"{name} is {width} pixels wide on a screen of 390")
        page.close()
    assert found == []


def press(page, control):
    """One step with the keyboard, to the right unless the control is at its end."""
    control.focus()
    at_end = control.evaluate("c => Number(c.value) === Number(c.max ?? c.length - 1)")
    arrows = ("ArrowLeft", "ArrowRight") if control.get_attribute("type") == "range" else ("ArrowUp", "ArrowDown")
    page.keyboard.press(arrows[not at_end])


def test_every_explorer_of_the_book_moves_by_key(browser, whole):
    """Each explorer of each page has another picture after a key; no page is larger than it may be."""
    still, large, moved = [], [], 0
    for name in (n for n in pages_of_the_book() if n.startswith("notebooks/")):
        page, _, _ = opened(browser, f"{whole}/{name}")
        large += [name] * ((WHOLE / name).stat().st_size > MEGABYTES * 1_000_000)
        for number, album in enumerate(page.locator(".vidseg-album").all()):
            _, before = shown(album)
            for control in album.locator("input:enabled, select:enabled").all():
                press(page, control)
            still += [f"{name}: explorer {number}"] * (shown(album)[1] == before)
            moved += 1
        page.close()
    assert still == [] and large == [] and moved >= 10


# ---- the extension


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.spec_from_file_location("book_extension", ROOT / "docs" / "book.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_kept_results_go_when_the_package_changes(extension, tmp_path, monkeypatch):
    monkeypatch.setattr(extension, "ROOT", tmp_path)
    monkeypatch.setattr(extension, "CACHES", tmp_path / "caches")
    (tmp_path / "vidseg_core").mkdir()
    source = tmp_path / "vidseg_core" / "a.py"
    source.write_text("x = 1")
    (first := extension.cache_folder()).mkdir(parents=True)
    assert extension.cache_folder() == first and first.is_dir()
    source.write_text("x = 2")
    assert extension.cache_folder() != first and not first.exists()


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("votes [f, h, w, K] of `scene`", "votes [f, h, w, K] of ``scene``"),
        ("a * b, **how, |x|, name_", r"a \* b, \*\*how, \|x\|, name\_"),
        ("`a_b * c` _d", r"``a_b * c`` \_d"),
        ("tcp://a:1, https://b", r"tcp\://a:1, https://b"),
    ],
)
def test_docstrings_are_plain_text_with_code(extension, text, rest):
    assert extension.rest(text) == rest


@pytest.mark.parametrize(
    ("html", "broken"),
    [
        ('<span class="pre">vidseg_core.merging</span>', '<span class="pre">vidseg_<wbr>core.<wbr>merging</span>'),
        ('<span class="pre">--resume</span>', '<span class="pre">--resume</span>'),
        ("<h2>vidseg_core.io<a>", "<h2>vidseg_<wbr>core.<wbr>io<a>"),
        ("<td><p>46.2 ± 5.1 (+0.9 ± 0.2)</p></td>", "<td><p>46.2\xa0±\xa05.1 (+0.9\xa0±\xa00.2)</p></td>"),
        ("<td><p>26.8 / s</p></td>", "<td><p>26.8\xa0/\xa0s</p></td>"),
        ("<td><p>3 windows of 14</p></td>", "<td><p>3 windows of 14</p></td>"),
    ],
)
def test_lines_break_between_numbers_and_within_names(extension, html, broken):
    assert extension.broken_well(html) == broken


def test_addresses_are_links_where_the_repository_is_known(extension):
    text = "- Colab: `https://colab.example/OWNER/REPO`\n"
    assert extension.addressed(text, None) == text
    assert extension.addressed(text, "a/b") == "- [Colab](https://colab.example/a/b)\n"


def test_cells_for_ci_are_removed(extension):
    cells = [{"metadata": {"tags": ["test"]}}, {"metadata": {}}, {"metadata": {"tags": ["slow"]}}]
    tags = [cell["metadata"]["tags"] for cell in json.loads(extension.without_tests(json.dumps({"cells": cells})))["cells"]]
    assert tags == [["test", "remove-cell"], [], ["slow"]]


def test_every_module_has_its_section(extension):
    text = "\n".join((ROOT / "docs" / "api" / f"{name}.md").read_text(encoding="utf-8") for name in API)
    named = set(re.findall(r"automodule:: (\S+)", extension.MODULES.sub(lambda found: extension.modules(found[1]), text)))
    package = ROOT / "vidseg_core"
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in package.rglob("[a-z]*.py")}
    assert named == there and "vidseg_core.io.video" in named
