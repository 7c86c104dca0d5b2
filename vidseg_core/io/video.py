"""Clips in: videos, folders of images, patterns. A frame is uint8 RGB [H, W, 3]."""

import difflib
import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vidseg_core.common import InputError, natural_order
from vidseg_core.io.decoding import decode, probe, same_size
from vidseg_core.io.orientation import upright
from vidseg_core.io.playback import IMAGE_FPS

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_WORD = (
    r"(?<=.)[ ._-]+(masks?|labels?|labelids|gt|seg|segmentation|annotations?|l)$"
    r"|^(masks?|labels?|gt|seg|segmentation|annotations?|im|img|images?|frames?|rgb)[ ._-]*(?=\d)"
)
"""What is written behind a frame's name for its mask, as in 000_mask.png and CamVid's 0001TP_006690_L.png, or before the
number of either: img0.jpg, mask0.png."""

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
            yield from map(upright, islice(decode(self.source), self.indices.start, self.indices.stop, self.indices.step))

    def times(self) -> list[float]:
        """At how many seconds of a video each frame is shown, the source's first at 0; by the rate where the file has no time
        stamps. [] for images, which carry no clock."""
        if self.files:
            return []
        stamps = [coded.time for coded in islice(decode(self.source), self.indices.stop)]
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
    video = None if files else probe(path, needed)
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
        if not found:
            raise InputError(f"{path} matches no file. Check the pattern, and where it begins.")
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
