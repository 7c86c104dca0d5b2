"""Frames out of video files, all of them or an error, and what such a file says of itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from vidseg_core.common import InputError
from vidseg_core.io.endings import is_cut
from vidseg_core.io.orientation import is_transposed, upright_size
from vidseg_core.io.playback import Clock, remarks

MP4_BOXES = (b"ftyp", b"wide", b"free", b"mdat", b"moov")  # what MP4 and MOV files may begin with


def same_size(size: tuple[int, int], first: tuple[int, int], where: Path | str) -> None:
    """Refuse a frame whose (height, width) is not that of the first; `where` names it in the InputError."""
    if size != first:
        raise InputError(
            f"{where} is {size[1]}x{size[0]} pixels, but the frames before it are {first[1]}x{first[0]}. "
            "All frames of a clip must have one size: resize or crop them, or leave this part out."
        )


@dataclass(frozen=True)
class Video:
    """What a video says of itself: fields as those of `Clip`, and when each frame appears."""

    size: tuple[int, int]
    clock: Clock
    aspect: Fraction
    remarks: tuple[str, ...]


def probe(path: Path, stop: int | None) -> Video:
    """All frames up to `stop`, decoded once."""
    stamps: list[int | None] = []
    frame = None
    first: dict[str, Any] = {}
    for frame in islice(decode(path), stop):
        if not first:
            first = {"size": upright_size(frame), "remarks": remarks(frame)}
        stamps.append(frame.pts)
    if frame is None:
        raise InputError(f"{path} is a video without a single frame. Export it again.")
    with _open_video(path) as (_, stream):
        clock = Clock(tuple(stamps), frame.duration or 0, frame.time_base or stream.time_base, stream.average_rate)
        aspect = stream.sample_aspect_ratio or Fraction(1)  # 0: not said
        return Video(clock=clock, aspect=1 / aspect if is_transposed(frame) else aspect, **first)


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


def decode(path: Path) -> Iterator[av.VideoFrame]:
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
