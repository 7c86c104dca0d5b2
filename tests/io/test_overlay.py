"""Labels over frames, as a picture, a sheet and a video."""

import io
import os
import warnings

import av
import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image
from refusals import refusal

from vidseg_core.io.overlay import Drawing, blend, contact_sheet, encode_video, panel, plain, png, video_bytes
from vidseg_core.io.samples import sample_clip
from vidseg_core.io.video import read_frames

COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:3] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
RNG = np.random.default_rng(0)


def test_blend():
    frame, labels = np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), np.int64)
    labels[:, 30:], labels[20:, :10] = 1, 255
    out = blend(frame, labels, 0.5, COLOURS)
    assert out[5, 5].tolist() == [178, 50, 50]
    assert out[5, 50].tolist() == [50, 178, 50]
    assert (out[:, 29] == 255).all() and (out[19, :10] == 255).all()
    assert (out[20:, :10] == 100).all()
    inside = np.s_[2:15, 2:25]
    np.testing.assert_array_equal(blend(frame, labels, 0.0, COLOURS)[inside], frame[inside])
    assert (blend(frame, labels, 1.0, COLOURS)[inside] == COLOURS[0]).all()
    assert blend(frame[:1, :1], labels[:1, :1], 0.5, COLOURS).shape == (1, 1, 3)


def test_the_contact_sheet_names_what_it_shows():
    frame, labels = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.int16)
    labels[:, 16:] = 7
    sheet = contact_sheet([frame] * 3, [labels] * 3, [0, 5, 9], {7: "cup"})
    assert [text.get_text() for text in sheet.legends[0].get_texts()] == ["segment 0", "cup"]
    titles = [axes.get_title() for axes in sheet.axes]
    assert [t for t in titles if t] == ["frame 0", "frame 5", "frame 9"]
    assert png(sheet).startswith(b"\x89PNG") and sheet._repr_png_().startswith(b"\x89PNG"), "a notebook shows text instead"


NAMES = ["from $5 to $10", r"$\frac$", r"\alpha_{", "_ground", "a\nb", "tab\tx", "\udce9", "\0\7", "", "x" * 400,
         "y z " * 99, "%s{}"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_whatever_it_is(name):
    frame, labels = np.zeros((24, 32, 3), np.uint8), np.arange(8, dtype=np.int16).repeat(96).reshape(24, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = contact_sheet([frame], [labels], [0], dict.fromkeys(range(8), name))
        picture = Image.open(io.BytesIO(png(sheet)))
    texts = sheet.legends[0].get_texts()
    text = texts[0]
    assert len(text.get_text()) <= 60 and text.get_text() == (name if name.isprintable() and len(name) < 60 else plain(name))
    assert not any(text.get_parse_math() for text in texts) and len(texts) == 8
    boxes = [text.get_window_extent() for text in texts]
    assert all(box.x0 >= 0 and box.x1 <= picture.width for box in boxes), "none is cut off"
    assert plain("a\nb") == "a b" and plain("\udce9") == r"\udce9"


def test_a_sheet_shows_wide_pixels_wide():
    frame, labels = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.int16)
    sheet = contact_sheet([frame], [labels], [0], {}, aspect=2)
    assert all(tuple(axes.images[0].get_extent()) == (0, 64, 24, 0) for axes in sheet.axes)


def sheet_of(name):
    frame, labels = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.int16)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return png(contact_sheet([frame], [labels], [0], {0: name})), [str(warning.message) for warning in said]


def square_font(path, characters):
    """A font in which all of these characters are a square."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(c): "square" for c in characters})
    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular", "fullName": "Squares", "psName": "Squares"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return font_manager.FontEntry(fname=str(path), name="Squares", style="normal", weight=400)


def test_names_in_any_script_are_shown_where_a_font_is_there(tmp_path, monkeypatch):
    """Else there is one warning, not one a character and drawing."""
    monkeypatch.setattr("vidseg_core.io.fonts.fontManager.ttflist", list(font_manager.fontManager.ttflist))
    without, said = sheet_of("杯" * 3 + "碗")
    if said:  # this machine has no Chinese font
        assert len(said) == 1 and "Noto" in said[0]
        assert sheet_of("杯" * 3 + "碗")[1] == [], "a run's rehearsal has said it"
        font_manager.fontManager.ttflist.append(square_font(tmp_path / "squares.ttf", "杯碗"))
        shown, said = sheet_of("杯" * 3 + "碗")
        assert said == [] and shown != without
    assert sheet_of("wall")[1] == []
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    broken = font_manager.FontEntry(fname=str(tmp_path / "broken.ttf"), name="A", style="normal", weight=400)
    font_manager.fontManager.ttflist.insert(0, broken)
    assert len(sheet_of("\U00012000")[1]) <= 1


def test_titles_and_ticks_are_no_mathematics():
    figure = Drawing(figsize=(3, 3))
    axes = figure.subplots()
    axes.set_title(r"$\frac$")
    axes.set_xticks([0, 1], [r"$\sqrt$", "$"])
    assert png(figure).startswith(b"\x89PNG")


HOSTILE = {
    "text.usetex": True, "image.origin": "lower", "savefig.bbox": "tight", "savefig.transparent": True, "font.size": 40,
    "savefig.facecolor": "black", "figure.facecolor": "black", "font.family": ["cursive"], "text.color": "white",
    "figure.subplot.left": 0.5, "savefig.pad_inches": 9, "legend.title_fontsize": 90, "axes.titlesize": 70,
    "figure.constrained_layout.h_pad": 3, "legend.labelspacing": 20, "path.sketch": (1, 100, 2), "text.parse_math": True,
}  # fmt: skip


def test_no_matplotlibrc_changes_a_sheet():
    frame = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)

    def sheet(settings):
        with matplotlib.rc_context(settings):
            return png(contact_sheet([frame] * 2, [np.zeros((24, 32), np.int16)] * 2, [0, 5], {0: "cup $"}))

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        expected = sheet({})
    assert sheet(HOSTILE) == expected, [name for name in HOSTILE if sheet({name: HOSTILE[name]}) != expected]
    with matplotlib.rc_context({"text.usetex": True, "image.origin": "lower"}):
        figure = Drawing(figsize=(3, 3))
        panel(figure.subplots(), frame, "cup")
        assert figure.axes[0].images[0].origin == "upper" and png(figure)


def test_equal_frames_give_equal_videos():
    """Whatever the memory held before: x264's own defaults made several files of these."""
    frames, found = sample_clip("cup").frames[:30], set()
    for n in range(4):
        _ = [RNG.bytes(size) for size in range(n, 2_000_000, 99_991)]
        found.add(video_bytes(iter(frames), 10))
    assert len(found) == 1


@pytest.mark.parametrize("size", [(64, 48), (33, 47), (16, 16), (1, 1)])
def test_encoded_video_is_what_browsers_play(tmp_path, size):
    tints = np.zeros((6, *size, 3), np.uint8) + RNG.integers(30, 220, (6, 1, 1, 3)).astype(np.uint8)
    encode_video(iter(tints), 30000 / 1001, tmp_path / "a.mp4")
    decoded = read_frames(tmp_path / "a.mp4")
    even = [n + n % 2 for n in size]
    assert decoded.shape == (6, *even, 3)
    assert np.abs(decoded[:, : size[0], : size[1]].astype(int) - tints).max() <= 6
    assert np.abs(decoded.astype(int) - tints[:, :1, :1]).max() <= 6  # the seam repeats the edge
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate.as_integer_ratio() == (30000, 1001)
    data = video_bytes(tints, 30000 / 1001)
    assert data.find(b"moov") < data.find(b"mdat")
    assert len(list(av.open(io.BytesIO(data)).decode(video=0))) == 6
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("fps", [1200, 24000 / 1001, 0.4, 1 / 2000, 1 / 9999])
def test_any_camera_s_rate_is_kept(tmp_path, fps):
    """A high-speed camera, film, time-lapses."""
    encode_video(np.zeros((5, 16, 16, 3), np.uint8), fps, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-5)
        assert float(stream.duration * stream.time_base) == pytest.approx(5 / fps, rel=1e-3)


def test_refused_encodings_leave_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    frames = [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]
    refusal("no frames", "at least one", call=encode_video, frames=[], fps=25, target=path)
    refusal("fps=0", call=encode_video, frames=frames[:1], fps=0, target=path)
    wide = [np.zeros((2, 16500, 3), np.uint8)]
    refusal("16500x2", "16384", "scale", call=encode_video, frames=wide, fps=25, target=path)
    late = [np.zeros((4, 4, 3), np.uint8)] * 99 + frames[1:]  # late enough for the encoder to have written to disk
    refusal("Frame 99", "6x4", "4x4", call=encode_video, frames=late, fps=25, target=path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]
