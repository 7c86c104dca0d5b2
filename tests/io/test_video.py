"""Clips that the tests make themselves, encoded without loss where frames are compared exactly; each refusal by its words."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vidseg_core.io import video
from vidseg_core.io.video import InputError, open_clip, read_frames

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def moving(num=12, height=32, width=48):
    frames = np.stack([np.roll(NOISE, 3 * i, axis=1)[:height, :width] for i in range(num)])
    frames[..., 0, 0, 0] = np.arange(num)
    return frames


def encode(path, frames, codec="libx264rgb", pix_fmt="rgb24", rotate=0, mux=None, rate=30, **options):
    if codec == "libx264rgb":
        options["crf"] = "0"
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        if rotate:
            stream.set_display_rotation(rotate)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def add_sound(path, target):
    """The video in `path`, muxed without re-encoding beside a second of noise, index first (path None: sound alone)."""
    with av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        copies = None
        if path:
            source = av.open(str(path))
            copies = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=44100)
        if path:
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copies
                    out.mux(packet)
        noise = av.AudioFrame.from_ndarray(RNG.random((1, 44100)).astype(np.float32), format="fltp", layout="mono")
        noise.rate = 44100
        out.mux(sound.encode(noise))
        out.mux(sound.encode())
    return target


def save_images(folder, frames, names=None, mode=None):
    folder.mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame)
        (image.convert(mode) if mode else image).save(folder / (names[i] if names else f"frame{i}.png"))
    return folder


def refusal(*words, call=open_clip, **arguments):
    """Asserts that the call is refused by a sentence with all these words."""
    with pytest.raises(InputError) as info:
        call(**arguments)
    text = str(info.value)
    assert all(word in text for word in words), text
    assert text[-1] in ".?"
    return text


# --- clips in ---


@pytest.mark.parametrize("size", [(32, 48), (16, 16), (33, 47)])
@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mov", "libx264rgb", "rgb24"), ("a.mkv", "ffv1", "bgr0")])
def test_lossless_video_is_read_exactly(tmp_path, name, codec, pix_fmt, size):
    frames = moving(12, *size)
    clip = open_clip(str(encode(tmp_path / name, frames, codec, pix_fmt)))
    assert (clip.num_frames, clip.size, clip.fps, clip.source) == (12, size, 30.0, tmp_path / name)
    np.testing.assert_array_equal(np.stack(list(clip)), frames)
    np.testing.assert_array_equal(np.stack(list(clip)), frames)  # each iteration begins anew


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "bound"),
    [
        ("a.mp4", "libx264", "yuv420p", 6),
        ("a.webm", "libvpx-vp9", "yuv420p", 6),
        ("a.avi", "mpeg4", "yuv420p", 8),
        ("a.mpg", "mpeg2video", "yuv420p", 8),
        ("a.ts", "libx264", "yuv420p", 6),
        ("a.gif", "gif", "rgb8", 25),
    ],
)
def test_every_common_format_is_read(tmp_path, name, codec, pix_fmt, bound):
    smooth = np.add.outer(np.arange(64) * 2, np.arange(48)).astype(np.uint8)
    frames = np.stack([np.stack([smooth + i, smooth, 255 - smooth], 2) for i in range(20)])
    clip = open_clip(encode(tmp_path / name, frames, codec, pix_fmt, rate=25))
    decoded = np.stack(list(clip))
    assert clip.num_frames == len(decoded) == 20
    assert clip.fps == pytest.approx(25, rel=0.02)
    assert np.abs(decoded.astype(int) - frames).mean() < bound


@pytest.mark.parametrize("kind", ["video", "images"])
@pytest.mark.parametrize(
    ("start", "stop", "stride"), [(0, None, 1), (2, None, 3), (1, 8, 2), (11, None, 5), (0, 99, 4), (0, 1, 1)]
)
def test_ranges_are_slices(tmp_path, kind, start, stop, stride):
    frames = moving()
    source = encode(tmp_path / "a.mov", frames) if kind == "video" else save_images(tmp_path / "f", frames)
    clip = open_clip(source, start, stop, stride)
    assert clip.num_frames == len(clip.indices) == len(frames[start:stop:stride])
    assert clip.fps == (30 if kind == "video" else 25) / stride
    np.testing.assert_array_equal(read_frames(source, start, stop, stride), frames[start:stop:stride])


def test_frames_come_one_at_a_time(tmp_path, monkeypatch):
    clip = open_clip(save_images(tmp_path / "f", moving(5)))
    read = []
    monkeypatch.setattr(video, "read_image", lambda path: read.append(path) or np.zeros((32, 48, 3), np.uint8))
    next(iter(clip))
    assert read == [tmp_path / "f" / "frame0.png"]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_of_phone_videos(tmp_path, degrees):
    frames = moving()
    turned = np.rot90(frames, degrees // 90, axes=(1, 2))  # both count counter-clockwise
    clip = open_clip(encode(tmp_path / "a.mov", frames, rotate=degrees))
    assert clip.size == turned.shape[1:3]
    np.testing.assert_array_equal(np.stack(list(clip)), turned)


def with_matrix(path, a, b, c, d):
    """The file with another display matrix in its track header, as a phone's front camera or an editor's flip writes it:
    pixel (x, y) is shown at (a x + c y, b x + d y), but for a shift."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    numbers = (a, b, 0, c, d, 0, 0, 0, 1)
    for n, number in enumerate(numbers):
        data[at + 4 * n : at + 4 * n + 4] = round(number * (1 << (30 if n % 3 == 2 else 16))).to_bytes(4, signed=True)
    path.write_bytes(data)
    return path


def shown(frame, a, b, c, d):
    """Pixel by pixel what a player shows."""
    height, width = frame.shape[:2]
    places = {(x, y): (a * x + c * y, b * x + d * y) for x in range(width) for y in range(height)}
    left, top = (min(place[n] for place in places.values()) for n in range(2))
    found = np.zeros((height, width, 3) if a else (width, height, 3), np.uint8)
    for (x, y), (right, below) in places.items():
        found[below - top, right - left] = frame[y, x]
    return found


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("first", [1, -1])
@pytest.mark.parametrize("second", [1, -1])
def test_videos_stand_as_players_show_them(tmp_path, straight, first, second):
    """Four rotations, with and without a mirror."""
    matrix = (first, 0, 0, second) if straight else (0, first, second, 0)
    frames = moving()
    clip = open_clip(with_matrix(encode(tmp_path / "a.mov", frames), *matrix))
    expected = np.stack([shown(frame, *matrix) for frame in frames])
    assert clip.size == expected.shape[1:3]
    np.testing.assert_array_equal(np.stack(list(clip)), expected)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (2, 0, 0, 1), (0.99, 0.1, -0.1, 0.99)])
def test_a_matrix_that_is_no_quarter_turn_leaves_the_frames(tmp_path, matrix):
    frames = moving()
    np.testing.assert_array_equal(np.stack(list(open_clip(with_matrix(encode(tmp_path / "a.mov", frames), *matrix)))), frames)


def test_an_edit_list_is_no_damage(tmp_path):
    path = encode(tmp_path / "a.mp4", moving(60), "libx264", "yuv420p", g="15")
    data = bytearray(path.read_bytes())
    at = data.find(b"elst") + 12  # the edit's duration in milliseconds, as a phone's "trim" shortens it
    data[at : at + 4] = (1000).to_bytes(4)
    path.write_bytes(data)
    assert open_clip(path).num_frames == 30


def test_images_in_natural_order(tmp_path):
    frames = moving(4)
    folder = save_images(tmp_path / "f", frames, ["frame1.png", "frame2.PNG", "frame10.png", "frame010b.png"])
    (folder / "notes.txt").write_text("ignored")
    (folder / ".frame0.png").write_text("hidden")
    (folder / "frame3.png").mkdir()
    for source in (folder, str(folder / "frame*.[pP]*"), folder / "*"):
        clip = open_clip(source)
        assert [path.name for path in clip.files] == ["frame1.png", "frame2.PNG", "frame10.png", "frame010b.png"]
        np.testing.assert_array_equal(np.stack(list(clip)), frames)


def test_odd_images_just_work(tmp_path):
    rgb, folder = moving(1)[0], tmp_path
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])
    Image.fromarray(alpha).save(folder / "alpha.png")
    np.testing.assert_array_equal(read_frames(folder / "alpha.png"), rgb[None])  # not composited
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    np.testing.assert_array_equal(read_frames(folder / "grey.png")[0], np.repeat(rgb[..., :1], 3, 2))
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    np.testing.assert_array_equal(read_frames(folder / "grey16.png")[0], np.repeat(rgb[..., :1], 3, 2))
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(folder / "palette.png", transparency=bytes([0, 255]))
    np.testing.assert_array_equal(read_frames(folder / "palette.png")[0], np.array(palette.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to display
    Image.fromarray(rgb).save(folder / "exif.png", exif=exif)
    np.testing.assert_array_equal(read_frames(folder / "exif.png")[0], np.rot90(rgb, -1))
    for name, mode in [("cmyk.jpg", "CMYK"), ("lossless.webp", "RGB"), ("bits.tif", "1"), ("la.png", "LA"), ("a.bmp", "RGB")]:
        Image.fromarray(rgb).convert("L" if mode == "LA" else mode).convert(mode).save(folder / name)
        assert read_frames(folder / name).shape == (1, *rgb.shape)


@pytest.mark.parametrize("size", [(1500, 2000), (16, 16), (1, 1)])
def test_one_image_of_any_size(tmp_path, size):
    Image.new("RGB", size[::-1], (1, 2, 3)).save(tmp_path / "one.png")
    clip = open_clip(tmp_path / "one.png")
    assert (clip.size, clip.num_frames) == (size, 1)
    assert (next(iter(clip)) == (1, 2, 3)).all()


STAMPS = [0, 400, 700, 1200, 1500, 2000, 2300, 2660]


def encode_at(path, frames, stamps, codec):
    """At the given milliseconds, with no rate named, as browsers and screen recorders do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.codec_context.framerate = Fraction(0, 1)
        for frame, stamp in zip(frames, stamps, strict=True):
            coded = av.VideoFrame.from_ndarray(frame, format="rgb24")
            coded.pts, coded.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(coded))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "ffv1"), ("a.webm", "libvpx"), ("b.mkv", "libx264"), ("a.mp4", "mpeg4")])
def test_a_clip_lasts_as_long_as_its_time_stamps_say(tmp_path, name, codec):
    path = encode_at(tmp_path / name, moving(8), STAMPS, codec)
    assert 8 / open_clip(path).fps == pytest.approx(3.04, abs=0.4)  # the last frame's own duration is not in every file
    assert 3 / open_clip(path, 1, 4).fps == pytest.approx(1.1, abs=0.11)
    assert 3 / open_clip(path, 0, None, 3).fps == pytest.approx(3.5, abs=0.1)
    assert 2 / open_clip(path, 0, 4, 3).fps == pytest.approx(2.4)
    assert 0 < open_clip(path, 3, 4).fps <= 30


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_a_constant_rate_that_is_not_named_is_measured(tmp_path, name):
    path = encode_at(tmp_path / name, moving(12), range(0, 12 * 80, 80), "libvpx")
    assert open_clip(path).fps == pytest.approx(12.5)
    assert open_clip(path, 1, None, 2).fps == pytest.approx(6.25)


def test_the_pauses_of_a_gif_are_kept(tmp_path):
    pictures = [Image.fromarray(frame) for frame in moving(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 100, 1500])
    assert 4 / open_clip(tmp_path / "a.gif").fps == pytest.approx(2)
    assert 2 / open_clip(tmp_path / "a.gif", 0, 2).fps == pytest.approx(0.4)


# --- refusals ---


def test_refusals_of_paths(tmp_path):
    save_images(tmp_path / "clip", moving(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    refusal("clpi", "does not exist", "Did you mean clip?", source=tmp_path / "clpi")
    refusal("nowhere", "does not exist", source=tmp_path / "nowhere" / "zzz.mp4")
    refusal("empty", "no images", "nothing", source=tmp_path / "empty")
    refusal("texts", "no images", "a.txt", "video file", source=tmp_path / "texts")
    refusal("*.tif", "matches no file", source=tmp_path / "clip" / "*.tif")


def test_refusals_of_images(tmp_path):
    folder = save_images(tmp_path / "f", moving(3))
    Image.fromarray(NOISE).save(folder / "frame1.png")
    refusal("frame1.png", "128x96", "48x32", "resize", source=folder)
    assert open_clip(folder, 0, 1).num_frames == open_clip(folder, 0, None, 2).num_frames - 1 == 1
    whole = (folder / "frame2.png").read_bytes()
    for broken in (whole[: len(whole) // 2], b"no image", b""):
        (folder / "frame1.png").write_bytes(broken)
        refusal("frame1.png", "cannot be read", "Replace it", source=folder)
    (folder / "frame1.png").unlink()
    (folder / "frame1.png").symlink_to(folder / "gone.png")
    refusal("frame1.png", "cannot be read", source=folder)
    pages = [Image.fromarray(frame) for frame in moving(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    refusal("pages.tif", "3 images", "expected one", source=tmp_path / "pages.tif")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    refusal("float.tif", "32 bits", "8 or 16", source=tmp_path / "float.tif")


@pytest.mark.parametrize("mask", ["{}.png", "{}_mask.png", "{}-labels.png", "{}_L.png", "{}_gt.jpg"])
def test_refusal_of_frames_with_their_masks_beside_them(tmp_path, mask):
    frames = moving(2)
    folder = save_images(tmp_path / "f", frames, ["000.jpg", "001.jpg"])
    save_images(folder, frames, [mask.format("000"), mask.format("001")])
    for source in (folder, folder / "*"):
        refusal("000.jpg", mask.format("000"), "masks", source=source)
    assert open_clip(folder / "00?.jpg").num_frames == 2


@pytest.mark.parametrize("names", ["img{} mask{}", "frame_{:03} mask_{:03}", "{} label{}", "RGB-{} GT-{}", "image{}.v seg{}.v"])
def test_refusal_of_masks_that_are_told_by_what_begins_their_names(tmp_path, names):
    for name in (name.format(n) for name in names.split() for n in range(3)):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{name}.png")
    refusal("side by side", "name that of the frames", call=open_clip, source=tmp_path)


def test_similar_names_are_no_masks(tmp_path):
    names = ["sea.png", "seal.png", "mask.png", "1_l.png", "1_r.png", "label.png", "_mask.png", "a_1.png", "a_1b.png"]
    names += ["frame2.png", "frame_2b.png", "img_x.png", "mask_x.png"]
    assert open_clip(save_images(tmp_path / "f", moving(len(names)), names)).num_frames == len(names)
    folders = [save_images(tmp_path / part, moving(1), ["0.png"]) for part in ("a", "b")]
    assert open_clip(tmp_path / "[ab]" / "*.png").num_frames == len(folders)


@pytest.mark.parametrize("end", [b"", b"\0", b"\0\0\0", b"\r\n", b"x", b";\0\0", b";" + b"beyond" * 99])
def test_a_gif_without_its_last_byte_is_whole(tmp_path, end):
    pictures = [Image.fromarray(frame) for frame in moving(5)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    whole = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "b.gif").write_bytes(whole[:-1] + end)
    np.testing.assert_array_equal(read_frames(tmp_path / "b.gif"), read_frames(tmp_path / "a.gif"))
    (tmp_path / "b.gif").write_bytes(whole[:-9] + end)
    refusal("b.gif", "cut off or damaged", source=tmp_path / "b.gif") if not end[1:] else None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mp4", b"hello " * 99),
        ("a.txt", b"hello " * 99),
        ("a.webm", b""),
        ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nx\n"),
    ],
)
def test_refusal_of_other_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refusal(name, "not a video", "Expected mp4", source=tmp_path / name)


def test_refusal_of_sound(tmp_path):
    refusal("a.mp4", "sound but no pictures", source=add_sound(None, tmp_path / "a.mp4"))


@pytest.mark.parametrize("kind", ["video", "images"])
@pytest.mark.parametrize(
    ("range_", "words"),
    [
        ((-1, None, 1), ["start=-1"]),
        ((0, -2, 1), ["stop=-2"]),
        ((0, None, 0), ["stride=0"]),
        ((12, None, 1), ["12:", "12 frames"]),
        ((20, 30, 2), ["20:30", "12 frames"]),
        ((5, 5, 1), ["5:5", "12 frames", "0:12"]),
        ((0, 0, 1), ["0:0", "12 frames"]),
    ],
)
def test_refusals_of_ranges(tmp_path, kind, range_, words):
    source = encode(tmp_path / "a.mov", moving()) if kind == "video" else save_images(tmp_path / "f", moving())
    refusal(*words, source=source, **dict(zip(("start", "stop", "stride"), range_, strict=True)))


def assert_readable_part(path, total):
    """The refusal's own remedy works, and one frame more does not."""
    text = refusal(path.name, "cut off or damaged", "--frames 0:", source=path)
    good = int(re.search(r"--frames 0:(\d+)", text)[1])
    assert 0 < good < total
    assert read_frames(path, 0, good).shape[0] == good
    refusal("cut off or damaged", source=path, stop=good + 1)
    return text, good


@pytest.mark.parametrize(
    ("name", "codec", "options", "says_total"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}, True),
        ("a.webm", "libvpx-vp9", {}, True),
        ("a.mkv", "ffv1", {}, True),
        ("a.avi", "mpeg4", {}, True),
        ("a.gif", "gif", {}, False),
        ("a.mpg", "mpeg2video", {}, False),
    ],
)
@pytest.mark.parametrize("share", [0.4, 0.5, 0.61])
def test_cut_off_video(tmp_path, name, codec, options, says_total, share):
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    path = encode(tmp_path / name, moving(60, 96, 128), codec, pix_fmt, mux=options)
    assert open_clip(path).num_frames == 60
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    text, _ = assert_readable_part(path, 60)
    assert ("of 60 frames" in text) == says_total


def test_cut_off_inside_the_sound(tmp_path):
    """Sound lies between the pictures: FFmpeg then reports the end of the file as if it were the clip's."""
    path = add_sound(encode(tmp_path / "v.mp4", moving(30, 96, 128), "libx264", "yuv420p"), tmp_path / "a.mp4")
    assert open_clip(path).num_frames == 30
    whole = path.read_bytes()
    for cut in range(whole.find(b"mdat") + 100, len(whole) - 100, len(whole) // 12):
        path.write_bytes(whole[:cut])
        if cut < len(whole) * 0.9:  # at the very end sound alone is lost
            refusal("cut off or damaged", source=path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_cut_off_before_the_index(tmp_path, name):
    path = encode(tmp_path / name, moving(60), "libx264", "yuv420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal(name, "cut off", "index", source=path)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "libx264rgb"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_damage_in_the_middle(tmp_path, name, codec):
    """Over several packets: within one, H.264 has no checksum and may decode to other pixels without noticing."""
    path = encode(tmp_path / name, moving(60, 96, 128), codec, "rgb24" if codec == "libx264rgb" else "yuv420p")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    assert_readable_part(path, 60)


def test_size_that_changes_within_a_video(tmp_path):
    parts = [encode(tmp_path / f"{w}.h264", moving(10, 32, w), "libx264", "yuv420p").read_bytes() for w in (48, 64)]
    (tmp_path / "a.h264").write_bytes(b"".join(parts))
    refusal("a.h264", "Frame 10", "64x32", "48x32", "resize", source=tmp_path / "a.h264")
    assert read_frames(tmp_path / "a.h264", stop=10).shape == (10, 32, 48, 3)
