"""Where a file ends by what it says of itself: demuxers just stop there, and decoders show half a picture as a whole one."""

import re
from pathlib import Path

EXTENSION, IMAGE, END = b"!", b",", b";"  # what a block of a GIF begins with
TRAILING = 64
"""Bytes behind the last picture that are taken for a broken end mark, not for lost pictures."""


def is_cut(path: Path) -> bool:
    """Whether an AVI, GIF, MKV or WebM says of itself that it goes on beyond its end; FFmpeg's demuxers just stop there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head.startswith(b"RIFF"):  # AVI
            return 8 + int.from_bytes(head[4:8], "little") > size + 1  # 1: the last chunk's padding may lack
        if head.startswith(b"GIF8"):
            file.seek(0)
            return _gif_is_cut(file.read())
    # Matroska and WebM: the segment's size follows its id in 1 to 8 bytes
    segment = re.match(rb"\x1a\x45\xdf\xa3.*?\x18\x53\x80\x67(.{8})", head, re.DOTALL)
    if segment:
        width = 9 - segment[1][0].bit_length()
        unknown = (1 << 7 * width) - 1
        length = int.from_bytes(segment[1][:width]) & unknown
        return length != unknown and segment.start(1) + width + length > size
    return False


def _gif_is_cut(data: bytes) -> bool:
    """Whether a GIF ends amid a picture, or goes on with what is no picture; that only its last byte, the end mark, is missing
    or wrong is no loss. By the blocks of the GIF89a specification."""
    at = 13 + _palette(data[10:11])
    while at < len(data):
        kind = data[at : at + 1]
        if kind == EXTENSION:
            at = _behind_blocks(data, at + 2)
        elif kind == IMAGE:
            at = _behind_blocks(data, at + 11 + _palette(data[at + 9 : at + 10]))
        else:
            return kind != END and len(data) - at > TRAILING
    return at > len(data)


def _palette(flags: bytes) -> int:
    """Bytes of the palette that is announced by a header's flags."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    """The place behind a chain of blocks, each with its length before it, and a 0 at the end; beyond the data if it is cut."""
    while at < len(data) and (length := data[at]):
        at += 1 + length
    return at + 1
