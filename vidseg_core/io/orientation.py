"""The orientation of a video's frames: files keep pixels as the sensor read them, and a matrix to show them by."""

import av
import numpy as np
from av.sidedata.sidedata import Type

from vidseg_core.common import Frame


def upright(coded: av.VideoFrame) -> Frame:
    """A decoded frame as players show it, uint8 RGB [H, W, 3]: turned by quarters, mirrored, both or neither."""
    transposed, from_right, from_below = _turn(coded)
    pixels = coded.to_ndarray(format="rgb24")
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    return np.ascontiguousarray(pixels[:: -1 if from_below else 1, :: -1 if from_right else 1])


def upright_size(coded: av.VideoFrame) -> tuple[int, int]:
    """(H, W) of the same."""
    return (coded.width, coded.height) if is_transposed(coded) else (coded.height, coded.width)


def is_transposed(coded: av.VideoFrame) -> bool:
    """Whether its rows are shown as columns."""
    return _turn(coded)[0]


def _turn(coded: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(rows become columns, then columns run from the right, rows from below).

    FFmpeg's display matrix shows pixel (x, y) at (a x + c y, b x + d y), x to the right and y down. Angles between quarter
    turns go to the nearest, and scales and shifts are not applied.
    """
    matrix = coded.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0
