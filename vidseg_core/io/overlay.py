"""Labels over frames: blended pictures, panels and legends, the contact sheet, the video. One colour per label, everywhere."""

import io
import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from vidseg_core.common import VOID, InputError
from vidseg_core.io.decoding import same_size
from vidseg_core.io.files import replacing
from vidseg_core.io.fonts import fonts_for, quiet_about_glyphs
from vidseg_core.io.masks import PALETTE, Labels
from vidseg_core.io.video import Frame

RATES = (1e-4, 100_000)
"""Frames a second that an MP4 can have: from a time-lapse with a frame every three hours to a high-speed camera."""


def blend(frame: Frame, labels: Labels, alpha: float | int = 0.5, colours: UInt8[np.ndarray, "256 3"] = PALETTE) -> Frame:
    """(1 - alpha) frame + alpha colour, with white contours between labels; void keeps the frame. `alpha` is in 0..1."""
    labels = labels.astype(np.uint8)
    weight = round(256 * alpha)  # fixed point, as floats of a 4000x3000 frame take 150 MB
    tint = colours * np.uint16(weight) + np.uint16(128)
    mixed = ((frame * np.uint16(256 - weight) + tint[labels]) >> np.uint16(8)).astype(np.uint8)
    edge, width = np.zeros(labels.shape, bool), max(1, min(labels.shape) // 400)
    edge[:, :-width] |= labels[:, width:] != labels[:, :-width]
    edge[:-width] |= labels[width:] != labels[:-width]
    mixed[edge] = 255
    return np.where((labels == VOID)[..., None], frame, mixed)


class Drawing(Figure):
    """A figure that a notebook shows by itself, without pyplot's global state. Its text is text, never TeX or mathematics."""

    def draw(self, renderer: Any) -> None:
        """As `Figure.draw`."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_usetex(False)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    with default_style(), quiet_about_glyphs():
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


@contextmanager
def default_style() -> Iterator[None]:
    """matplotlib's own settings: those of a user's matplotlibrc may need LaTeX, turn pictures over or cut them off."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def plain(text: str) -> str:
    """What a font can show of a name: one line of at most 60 characters, without control characters and lone surrogates."""
    written = text.encode("utf-8", "backslashreplace").decode()
    visible = "".join(c if c.isprintable() else " " for c in written)
    return textwrap.shorten(visible, 60, placeholder="…") if " " in visible else visible[:59] + "…" * (len(visible) > 59)


def panel(
    axes: Axes, image: np.ndarray, title: str, size: tuple[float, float] | None = None, name: str | None = None, **how: Any
) -> None:
    """One picture [h, w] or [h, w, 3] with its title, stretched over `size` = (H, W) pixels, whose coordinates its axes have.

    `name` makes it a panel that an explorer's clicks can tell from the others. `how` goes to matplotlib's imshow.
    """
    height, width = size or image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), **{"interpolation": "nearest", "origin": "upper"} | how)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    axes.set_gid(name)


def legend(figure: Figure, maps: list[np.ndarray], names: Mapping[int, str]) -> None:
    """The colours of all the labels in `maps` below the figure, by name."""
    seen = np.unique(np.concatenate([np.unique(m) for m in maps])).tolist()
    patches = [Patch(color=PALETTE[n] / 255, alpha=0.65, label=f"segment {n}") for n in seen[:40]]  # pale, as overlays are
    labels = [plain(names.get(n, f"segment {n}")) for n in seen[:40]]
    width = max(1.5, (max(map(len, labels)) + 5) / 12)  # inches of the widest, its colour included
    columns = max(1, min(len(patches), int(figure.get_figwidth() / width)))
    drawn = figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    families = fonts_for(labels)
    for text, label in zip(drawn.get_texts(), labels, strict=True):  # as a patch's label, a name that begins with _ is left out
        text.set_text(label)
        text.set_fontfamily(families)


def contact_sheet(
    frames: list[Frame], labels: list[Labels], numbers: list[int], names: Mapping[int, str], aspect: Fraction | int = 1
) -> Figure:
    """Frames above, their overlays below, a legend of what is seen; `numbers` are the frames' numbers in the clip, `aspect` is
    how much wider than high a pixel is shown."""
    height, width = frames[0].shape[0], float(frames[0].shape[1] * aspect)
    side = 12 / len(frames)
    with default_style():
        figure = Drawing(figsize=(12, min(2 * side * height / width, 12) + 0.8), layout="constrained")
        for n, column in enumerate(figure.subplots(2, len(frames), squeeze=False).T):
            panel(column[0], frames[n], f"frame {numbers[n]}", (height, width))
            panel(column[1], blend(frames[n], labels[n]), "", (height, width))
        legend(figure, labels, names)
    return figure


def encode_video(
    frames: Iterable[Frame], fps: float | int, target: str | Path | io.BufferedIOBase, aspect: Fraction | int = 1
) -> None:
    """Write H.264 (yuv420p, BT.709, index first) that browsers play, to a path or an open binary file, one frame at a time.

    yuv420p needs even sides: an odd one is extended by repeating its last row or column. `aspect` is how much wider than high
    players show a pixel. Raises InputError if there are no frames, if they differ in size, and for a size or rate that H.264
    cannot have.
    """
    if isinstance(target, str | Path):
        with replacing(target) as partial:
            _encode(frames, fps, partial, aspect)
        return
    with tempfile.TemporaryDirectory() as folder:  # the index can be moved to the front only in a file on disk
        _encode(frames, fps, Path(folder, "clip.mp4"), aspect)
        with Path(folder, "clip.mp4").open("rb") as file:
            shutil.copyfileobj(file, target)


def video_bytes(frames: Iterable[Frame], fps: float | int) -> bytes:
    """The MP4 of `encode_video` in memory, for an inline <video>."""
    encode_video(frames, fps, memory := io.BytesIO())
    return memory.getvalue()


def _encode(frames: Iterable[Frame], fps: float | int, path: Path, aspect: Fraction | int) -> None:
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None or not RATES[0] <= fps <= RATES[1]:
        raise InputError(
            f"Got {'no' if first is None else 'some'} frames at fps={fps}. Expected at least one, and between {RATES[0]} and "
            f"{RATES[1]:,} a second: another --stride takes fewer or more of them."
        )
    height, width, _ = first.shape
    try:
        _encode_h264(chain([first], remaining), (height, width), _as_fraction(fps), path, Fraction(aspect))
    except av.FFmpegError as error:
        if isinstance(error, OSError):  # a full disk
            raise
        raise InputError(
            f"A video of {width}x{height} pixels at {fps:g} frames a second cannot be encoded ({error.strerror}). H.264 has at "
            "most 16384 pixels a side: scale the frames down."
        ) from error


def _as_fraction(fps: float | int) -> Fraction:
    """A rate in whole numbers, of which the smaller is at most 1001, as in television's 30000/1001."""
    return Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(1 / fps).limit_denominator(1001)


def _encode_h264(frames: Iterable[Frame], size: tuple[int, int], fps: Fraction, path: Path, aspect: Fraction) -> None:
    height, width = size
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # With its macroblock tree x264 decides by what its memory held before: equal frames gave other files. Without
        # it, crf 20 is as close to the frames as 18 with it.
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "x264-params": "mbtree=0"})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        context = stream.codec_context  # H.273's 1 is BT.709: untagged, each player guesses other colours
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        stream.sample_aspect_ratio = context.sample_aspect_ratio = aspect
        for i, frame in enumerate(frames):
            same_size(frame.shape[:2], size, f"Frame {i} to encode")
            rgb = av.VideoFrame.from_ndarray(np.pad(frame, pad, mode="edge"), format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
