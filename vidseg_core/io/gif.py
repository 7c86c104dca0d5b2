"""Where a GIF ends, which its decoders do not say: they show half a picture as if it were whole."""

EXTENSION, IMAGE, END = b"!", b",", b";"


def gif_is_cut(data: bytes) -> bool:
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


TRAILING = 64
"""Bytes behind the last picture that are taken for a broken end mark, not for lost pictures."""


def _palette(flags: bytes) -> int:
    """Bytes of the palette that is announced by a header's flags."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    """The place behind a chain of blocks, each with its length before it, and a 0 at the end; beyond the data if it is cut."""
    while at < len(data) and (length := data[at]):
        at += 1 + length
    return at + 1
