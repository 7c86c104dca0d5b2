"""Label maps and the names of labels on disk."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFilter
from refusals import refusal

import vidseg_core
from vidseg_core.io.masks import PALETTE, read_given_mask, read_mask, read_names, refuse_other_palettes, write_mask

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_masks_round_trip(tmp_path):
    labels = np.array([[0, 1, 2], [3, 254, 255]])
    write_mask(tmp_path / "m.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), PALETTE[labels])
    assert os.listdir(tmp_path) == ["m.png"]
    for value in (-1, 256):
        refusal(str(value), "0 to 255", call=write_mask, path=tmp_path / "m.png", labels=np.full((2, 2), value))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "1"])
def test_grey_masks(tmp_path, mode):
    labels = np.array([[0, 1, 1], [0, 0, 1]]) if mode == "1" else np.array([[0, 1, 2], [3, 254, 255]])
    image = Image.fromarray(labels.astype({"I;16": np.uint16, "1": bool}.get(mode, np.uint8)))
    if mode in ("LA", "RGB", "RGBA"):
        image = image.convert(mode)
    if mode.endswith("A"):
        image.putalpha(9)
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)


def test_refused_masks(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(NOISE).save(path)
    refusal("m.png", "colours", "palette or grey", call=read_mask, path=path)
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(path)
    refusal("m.png", "300", "0 to 254", call=read_mask, path=path)
    path.write_bytes(b"nothing")
    refusal("m.png", "cannot be read", call=read_mask, path=path)
    refusal("none.png", "cannot be read", call=read_mask, path=tmp_path / "none.png")
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "m.jpg")
    refusal("m.jpg", "JPEG", "PNG", call=read_mask, path=tmp_path / "m.jpg")


def drawn(width=1, values=(0, 255), scale=4):
    """A disc and a bar, drawn `scale` times as large and reduced, and blurred by `width` pixels (0: hard edges)."""
    image = Image.new("L", (96 * scale, 72 * scale), values[0])
    pen = ImageDraw.Draw(image)
    pen.ellipse([20 * scale, 10 * scale, 50 * scale + 2, 40 * scale + 2], fill=values[-1])
    pen.rectangle([60 * scale + 2, 8 * scale, 80 * scale + 2, 60 * scale], fill=values[len(values) // 2])
    if not width:
        return image.resize((96, 72), Image.Resampling.NEAREST)
    return image.resize((96, 72), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(width - 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("width", [1, 2, 4, 12])
@pytest.mark.parametrize("values", [(0, 255), (0, 200), (255, 0), (0, 100, 255)])
def test_soft_edges_are_no_class_numbers(tmp_path, mode, width, values):
    drawn(width, values).convert(mode).save(tmp_path / "first.png")
    words = ("first.png", "soft edges", str(int(np.array(drawn(width, values)).max())), "255 is void", "0, 1, 2", "smoothing")
    refusal(*words, call=read_given_mask, path=tmp_path / "first.png")


def test_one_grey_row_is_a_soft_edge(tmp_path):
    values = np.repeat([0, 128, 255], [20, 1, 20]).astype(np.uint8)
    Image.fromarray(np.tile(values, (30, 1))).save(tmp_path / "first.png")
    refusal("0, 128, 255", "soft edges", call=read_given_mask, path=tmp_path / "first.png")


@pytest.mark.parametrize("values", [(0, 1), (0, 7), (7, 11, 26), (0, 1, 2), (0, 1, 255), (3, 4, 254)])
def test_hard_edges_are_read_without_a_word(tmp_path, capsys, values):
    drawn(0, values).save(tmp_path / "first.png")
    np.testing.assert_array_equal(read_given_mask(tmp_path / "first.png"), np.array(drawn(0, values)))
    assert capsys.readouterr() == ("", "")


def test_white_that_may_be_meant_as_a_class_is_told(tmp_path, capsys):
    """Grey levels that are told apart by eye, the last of them white."""
    mask = np.array(drawn(0, (0, 128, 255)))
    Image.fromarray(mask).save(tmp_path / "first.png")
    np.testing.assert_array_equal(read_given_mask(tmp_path / "first.png"), mask)
    said = capsys.readouterr().err
    assert all(word in said for word in ("first.png", "0, 128", "255 is void")) and said.count("\n") == 1
    write_mask(tmp_path / "first.png", mask.astype(int))
    read_given_mask(tmp_path / "first.png")
    assert capsys.readouterr().err == "", "a palette's values are class numbers"


def test_a_grey_palette_is_grey(tmp_path):
    """Some programs save grey as a palette, in which the place is the grey level."""
    image = drawn(3)
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    image.save(tmp_path / "first.png")
    refusal("first.png", "soft edges", call=read_given_mask, path=tmp_path / "first.png")
    mask = Image.fromarray(np.array(drawn(0, (0, 7))))
    mask.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    mask.save(tmp_path / "first.png")
    assert set(np.unique(read_given_mask(tmp_path / "first.png"))) == {0, 7}


def test_what_is_drawn_by_transparency_alone_is_no_mask(tmp_path):
    """As a brush leaves it on an empty layer: the colours are those of nothing drawn everywhere."""
    inside = np.array(drawn(0))
    for colours in (1, 3):
        Image.fromarray(np.dstack([0 * inside] * colours + [inside])).save(tmp_path / "first.png")
        refusal("first.png", "0 everywhere", "transparency", call=read_mask, path=tmp_path / "first.png")
    Image.fromarray(np.dstack([inside // 255, inside])).save(tmp_path / "first.png")
    assert set(np.unique(read_mask(tmp_path / "first.png"))) == {0, 1}, "the numbers say it too"


def test_a_mask_is_one_image_upright_and_finite(tmp_path):
    mask = np.array(drawn(0, (0, 1)))
    pages = [Image.fromarray(mask + n) for n in (0, 1)]
    for name in ("several.png", "several.tiff", "several.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        refusal(name, "2 images", "file of its own", call=read_mask, path=tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise, as frames of phones are
    pages[0].save(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(read_mask(tmp_path / "turned.png"), np.rot90(mask, -1))
    Image.fromarray(np.where(mask == 1, np.nan, 0).astype(np.float32)).save(tmp_path / "nan.tiff")
    refusal("nan.tiff", "nan", "0 to 254", call=read_mask, path=tmp_path / "nan.tiff")


def test_palettes_of_two_masks_say_the_same(tmp_path):
    """A program that makes a palette for each picture gives red the number 1 here and 2 there."""
    mask = np.array(drawn(0, (0, 1, 2)))
    colours = {"a.png": "000000ff000000ff00", "b.png": "00000000ff00ff0000", "more.png": "000000ff000000ff00ff0000"}
    for name, palette in colours.items():
        image = Image.fromarray(mask)
        image.putpalette(bytes.fromhex(palette))
        image.save(tmp_path / name)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    write_mask(tmp_path / "ours.png", mask.astype(int))
    image.putpalette(np.vstack([[[0, 0, 0]], PALETTE[:255]]).astype(np.uint8).tobytes())
    image.save(tmp_path / "shifted.png")  # black, and then the colours that a run gives to 0, 1 and so on
    paths = [tmp_path / name for name in ("a.png", "more.png", "grey.png", "ours.png", "shifted.png", "a.png")]
    assert refuse_other_palettes(paths) is None
    refusal("#00ff00 is class 2 in", "a.png", "class 1 in", "b.png", "one palette", call=refuse_other_palettes,
            paths=[*paths, tmp_path / "b.png"])  # fmt: skip


def test_thin_classes_between_others_are_no_soft_edges(tmp_path):
    """A contour numbered between what it parts, and void around an object, as in VOC."""
    for values in ([0, 1, 2], [0, 255, 15], [0, 15, 9, 3, 20]):
        row = np.repeat(values, [20, 2, *[20] * (len(values) - 2)]).astype(np.uint8)
        Image.fromarray(np.tile(row, (30, 1))).save(tmp_path / "first.png")
        assert set(np.unique(read_given_mask(tmp_path / "first.png"))) == set(values)


def test_names(tmp_path):
    path = tmp_path / "names"
    path.write_text('{"0": "wall", "12": "cup"}')
    assert read_names(path) == {0: "wall", 12: "cup"}
    path.write_text("wall\n\n cup \n")
    assert read_names(path) == {0: "wall", 2: "cup"}
    refusal("none", call=read_names, path=tmp_path / "none")


@pytest.mark.parametrize("text", ["2 cups\n1 hand", "3 cups", "1 cent\n2 cent\n5 cent", "2024\n2025", "wall\n1: cup\nhand"])
def test_names_may_begin_with_numbers(tmp_path, text):
    (tmp_path / "names").write_text(text)
    assert read_names(tmp_path / "names") == dict(enumerate(text.split("\n")))


@pytest.mark.parametrize("text", ['{"0": "", "1": " cup "}', '["", "cup"]', '[" ", "cup\\n"]', "\n cup" + "\n" * 300])
def test_an_empty_name_is_none(tmp_path, text):
    (tmp_path / "names").write_text(text)
    assert read_names(tmp_path / "names") == {1: "cup"}


NAMES = '{"0": "wall", "1": "Tässe"}'


@pytest.mark.parametrize("text", [NAMES, '["wall", "Tässe"]', '\n [\n"wall",\n"Tässe"]\n', "wall\nTässe", "wall\r\nTässe\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_are_read_as_editors_and_programs_write_them(tmp_path, text, encoding):
    (tmp_path / "names").write_bytes(text.encode(encoding))
    assert read_names(tmp_path / "names") == {0: "wall", 1: "Tässe"}


@pytest.mark.parametrize(
    "text",
    ['{"0": ', '{"a": "b"}', '[{"id": 0, "name": "wall"}]', '{"0": {"name": "wall"}}', '{"0": null}', "[[0, 1]]", '["wall"',
     '{"-1": "wall"}', '{"256": "wall"}', '{"0": "wall", "0": "cup"}', '{"0": "wall", "00": "cup"}', '{"1.5": "wall"}',
     '{"1_0": "wall"}', '{"\u0663": "wall"}', '{"": "wall"}', '{"names": {"0": "wall"}}', "0: wall\n1: cup", "0 wall\n1 cup",
     "1\twall\n7\tcup", "id,name\n0,wall\n3,cup", "1 = wall", "# classes\n0 ; wall\n4 ; cup"],
)  # fmt: skip
def test_refused_names(tmp_path, text):
    (tmp_path / "names").write_text(text)
    refusal("names", "JSON", call=read_names, path=tmp_path / "names")


@pytest.mark.parametrize("text", ["wall\ncup\n", '"wall"', "", "3"])
def test_a_json_file_holds_json(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    refusal("names.json", "JSON", call=read_names, path=tmp_path / "names.json")


@pytest.mark.parametrize("content", ["wall\ncup".encode("utf-16-le"), "Tässe".encode("latin-1"), "w\n" * 300])
def test_names_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal("names.txt", call=read_names, path=tmp_path / "names.txt")


def test_twenty_segments_have_twenty_colours():
    """Every pair of the first 20 labels is far apart in RGB; the first 255 are all different, and void is black."""
    gaps = np.linalg.norm(PALETTE[:20, None].astype(float) - PALETTE[None, :20], axis=-1) + 999 * np.eye(20)
    assert gaps.min() > 60 and len(np.unique(PALETTE, axis=0)) == 256 and not PALETTE[255].any()


def test_the_first_ten_colours_are_those_of_matplotlib():
    np.testing.assert_array_equal(PALETTE[:10] / 255, colormaps["tab10"].colors)


def test_masks_are_read_without_what_draws_and_decodes():
    """The module alone, without the package's own imports, loads neither matplotlib nor av."""
    lines = (
        "import sys, types",
        "sys.modules['vidseg_core'] = package = types.ModuleType('vidseg_core')",
        f"package.__path__ = {[*vidseg_core.__path__]}",
        "import vidseg_core.io.masks",
        "sys.exit(str({'av', 'matplotlib'} & {*sys.modules} or ''))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == ""
