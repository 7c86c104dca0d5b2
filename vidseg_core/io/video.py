"""Clips in: videos, folders of images, patterns. A frame is uint8 RGB [H, W, 3]."""

import difflib
import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vidseg_core.common import InputError, natural_order
from vidseg_core.io.endings import is_cut
from vidseg_core.io.orientation import is_transposed, upright, upright_size
from vidseg_core.io.playback import IMAGE_FPS, Clock, remarks

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_WORD = (
    r"(?<=.)[ ._-]+(masks?|labels?|labelids|gt|seg|segmentation|annotations?|l)$"
    r"|^(masks?|labels?|gt|seg|segmentation|annotations?|im|img|images?|frames?|rgb)[ ._-]*(?=\d)"
)
"""What is written behind a frame's name for its mask, as in 000_mask.png and CamVid's 0001TP_006690_L.png, or before the
number of either: img0.jpg, mask0.png."""
MP4_BOXES = (b"ftyp", b"wide", b"free", b"mdat", b"moov")  # what MP4 and MOV files may begin with

Frame = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Clip:
    """A clip on disk, checked from end to end. Each iteration reads it anew and yields one frame at a time.

    `size` is (H, W) upright, as phones note it in a file; `fps` is the rate at which the frames take as long as they do in
    the video (25 for images, divided by the stride); `indices` are the numbers of the yielded frames in the source,
    from 0; `files` is empty for a video; `aspect` is the width of a pixel over its height where it is shown;
    `remarks` say what was done with what is not as usual.
    """

    source: Path
    size: tuple[int, int]
    fps: float
    indices: range = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)
    aspect: Fraction = Fraction(1)
    remarks: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """Exact number of frames that an iteration yields."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame]:
        """uint8 RGB [H, W, 3]. Raises InputError if a frame is unreadable or of another size."""
        if self.files:
            for path in (self.files[i] for i in self.indices):
                frame = read_image(path)
                same_size(frame.shape[:2], self.size, path)
                yield frame
        else:
            yield from map(upright, islice(_decode(self.source), self.indices.start, self.indices.stop, self.indices.step))

    def times(self) -> list[float]:
        """At how many seconds of a video each frame is shown, the source's first at 0; by the rate where the file has no time
        stamps. [] for images, which carry no clock."""
        if self.files:
            return []
        stamps = [coded.time for coded in islice(_decode(self.source), self.indices.stop)]
        if None in stamps:
            stamps = [n / (self.fps * self.indices.step) for n in range(len(stamps))]
        return [stamps[n] - stamps[0] for n in self.indices]


def open_clip(source: str | Path, start: int = 0, stop: int | None = None, stride: int = 1) -> Clip:
    """A video file, a folder of images, a glob pattern or one image as a clip that is read lazily.

    Frames are taken as by `[start:stop:stride]`: a `stop` beyond the end means the end. Images come in natural order,
    frame2 before frame10; other and hidden files are ignored. Alpha is ignored, not composited, as cv2.imread does; 16-bit
    grey is scaled by 1/257. All frames up to `stop` are decoded once here: nothing less finds damage before hours of work.

    Raises InputError for a source that is missing, empty, no video, cut off or damaged, for frames of different sizes and
    for a range that selects nothing.
    """
    if start < 0 or stride < 1 or (stop is not None and stop < 0):
        raise InputError(f"Got start={start}, stop={stop}, stride={stride}. Expected start and stop from 0 and stride from 1.")
    path = Path(os.path.expanduser(source))
    files = image_files(path)
    needed = stop if stop and stop > start else None
    video = None if files else _probe(path, needed)
    total = len(files) if video is None else len(video.clock.stamps)
    indices = range(start, total if stop is None else min(stop, total), stride)
    if not indices:
        wanted = f"{start}:{'' if stop is None else stop}"
        raise InputError(f"--frames {wanted} selects nothing: {path} has {total} frames. Choose a range within 0:{total}.")
    if video is not None:
        return Clip(path, video.size, video.clock.rate(indices), indices, (), video.aspect, video.remarks)
    height, width, _ = read_image(files[start]).shape
    clip = Clip(path, (height, width), IMAGE_FPS / stride, indices, files)
    deque(clip, maxlen=0)
    return clip


def read_frames(source: str | Path, start: int = 0, stop: int | None = None, stride: int = 1) -> UInt8[np.ndarray, "f H W 3"]:
    """All frames of `open_clip` in one uint8 RGB array [f, H, W, 3]. Raises InputError as `open_clip` does."""
    return np.stack(list(open_clip(source, start, stop, stride)))


def image_files(path: Path) -> tuple[Path, ...]:
    """The images that a folder, glob pattern or image file stands for, in natural order; () for any other file."""
    if path.is_file():
        return (path,) if path.suffix.lower() in IMAGE_SUFFIXES else ()
    if path.is_dir():
        found = list(path.iterdir())
    elif glob.has_magic(str(path)):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    else:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")])
        raise InputError(f"{path} does not exist. " + (f"Did you mean {' or '.join(near)}?" if near else "Check the path."))
    files = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()]
    if not files:
        instead = f"only {len(found)} other entries such as {min(found).name}" if found else "nothing"
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise InputError(f"{path} holds no images ({kinds}), {instead}. Name a folder of images, or a video file itself.")
    _refuse_pairs(path, files)
    return tuple(sorted(files, key=natural_order))


def _refuse_pairs(source: Path, files: list[Path]) -> None:
    """Raises InputError if two images have one name but for their kind and a word such as _mask: a frame and its mask."""
    known: dict[Path, Path] = {}
    for path in sorted(files):
        other = known.setdefault(path.with_name(re.sub(MASK_WORD, "", path.stem, flags=re.IGNORECASE)), path)
        if other != path:
            kinds = sorted({p.suffix for p in (other, path)})
            pattern = f" or name one kind in quotes, '{path.parent / ('*' + kinds[0])}'" if len(kinds) > 1 else ""
            raise InputError(
                f"{source} holds both {other.name} and {path.name}, as if frames and their masks lay side by side. Expected "
                f"frames alone: move the masks to a folder of their own,{pattern or ' and name that of the frames'}."
            )


def read_image(path: Path) -> Frame:
    """An image file, upright, as RGB. Raises InputError for what is no image, or several, or has 32 bits a channel."""
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # MPO: a camera's JPEG with a preview as its second image
                raise InputError(f"{path} holds {pages} images, expected one. Save each as a file of its own, or as a video.")
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("I", "F"):
                raise InputError(f"{path} has 32 bits a channel, and which value is white is unknown. Save it with 8 or 16.")
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray(((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8))
            if "transparency" in upright.info:  # without this step PIL warns of a palette's transparency
                upright = upright.convert("RGBA")
            return np.array(upright.convert("RGB"))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}). Replace it or take it out of the clip.") from error


def same_size(size: tuple[int, int], first: tuple[int, int], where: Path | str) -> None:
    """Refuse a frame whose (height, width) is not that of the first; `where` names it in the InputError."""
    if size != first:
        raise InputError(
            f"{where} is {size[1]}x{size[0]} pixels, but the frames before it are {first[1]}x{first[0]}. "
            "All frames of a clip must have one size: resize or crop them, or leave this part out."
        )


@dataclass(frozen=True)
class _Video:
    """What a video says of itself: fields as those of `Clip`, and when each frame appears."""

    size: tuple[int, int]
    clock: Clock
    aspect: Fraction
    remarks: tuple[str, ...]


def _probe(path: Path, stop: int | None) -> _Video:
    """All frames up to `stop`, decoded once."""
    stamps: list[int | None] = []
    frame = None
    first: dict[str, Any] = {}
    for frame in islice(_decode(path), stop):
        if not first:
            first = {"size": upright_size(frame), "remarks": remarks(frame)}
        stamps.append(frame.pts)
    if frame is None:
        raise InputError(f"{path} is a video without a single frame. Export it again.")
    with _open_video(path) as (_, stream):
        clock = Clock(tuple(stamps), frame.duration or 0, frame.time_base or stream.time_base, stream.average_rate)
        aspect = stream.sample_aspect_ratio or Fraction(1)  # 0: not said
        return _Video(clock=clock, aspect=1 / aspect if is_transposed(frame) else aspect, **first)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    refusal = f"{path} is not a video that can be read. Expected mp4, webm, mov, avi, gif or the like, or images."
    try:
        container = av.open(f"file:{path}")  # "file:", or FFmpeg takes what is before a colon for a protocol
    except av.FFmpegError as error:
        with path.open("rb") as file:
            is_mp4 = file.read(8)[4:] in MP4_BOXES
        if is_mp4:
            refusal = f"{path} is cut off: the index at the end of an MP4 or MOV is missing. Copy or record it again."
        raise InputError(refusal) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if container.streams.audio and not streams:
            raise InputError(f"{path} holds sound but no pictures. Expected a video.")
        if not streams or not streams[0].codec_context or streams[0].codec_context.name == "ansi":  # ANSI art: any .txt
            raise InputError(refusal)
        yield container, streams[0]


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    """Frames in display order; InputError at the first that is lost, since what follows would be counted wrongly.

    Lost is what the container or codec notices: most have no checksum, and a frame with a few wrong bytes may pass.
    """
    good, packets, first = 0, 0, None
    with _open_video(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise EOFError
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise EOFError
                    first = first or (frame.height, frame.width)
                    same_size((frame.height, frame.width), first, f"Frame {good} of {path}")
                    good += 1
                    yield frame
                packets += packet.size > 0
            # An edit list drops packets from the index and discards others: stream.frames counts both, the index neither.
            indexed = len(stream.index_entries) if container.format.name.startswith("mov") else 0
            if packets >= indexed and not is_cut(path):
                return
        except (av.FFmpegError, EOFError):
            pass
        total = stream.frames or round((container.duration or 0) / av.time_base * float(stream.average_rate or 0))
    share = f"{good} of {total} frames" if total > good else f"{good} frames"
    part = f", or take the readable part with --frames 0:{good}" if good else ""
    raise InputError(f"{path} is cut off or damaged: only the first {share} can be decoded. Copy or repair it{part}.")
