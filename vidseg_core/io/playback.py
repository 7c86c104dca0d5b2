"""How a video is meant to be shown: the times of its frames, and whatever is unusual about it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

IMAGE_FPS = 25.0  # images carry no clock; 25 lies between the rates of VSPW (15), DAVIS (24) and CamVid (30)

HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of ITU-T H.273 that code more light than a screen's white."""


def remarks(frame: Any) -> tuple[str, ...]:
    """A sentence for each way in which PyAV's `frame` is not as usual: what was done with it."""
    said = []
    if frame.color_trc in HDR:
        curve = HDR[frame.color_trc]
        said.append(f"HDR ({curve}): its values are taken as they are, without tone mapping, so that pictures look pale")
    if frame.interlaced_frame:
        said.append(
            "interlaced: both fields stay in a frame, so that edges in motion are combs; deinterlace it first if need be"
        )
    return tuple(said)


@dataclass(frozen=True)
class Clock:
    """When the frames of a video appear: `stamps` in units of `tick` seconds, None where the file does not say it; `last` is
    for how long the last one stays (0: unknown), `nominal` the rate that the file names."""

    stamps: tuple[int | None, ...]
    last: int
    tick: Fraction
    nominal: Fraction | None

    def rate(self, indices: range) -> float:
        """Frames a second at which the frames `indices` take as long as in the video.

        That is the rate that the file names if its time stamps agree; 25 if neither is known.
        """
        nominal = float(self.nominal) / indices.step if self.nominal else None
        length = self._length(indices)
        if not length or length <= 0:
            return nominal or IMAGE_FPS / indices.step
        slack = max(2 * float(self.tick), 0.02 / nominal) if nominal else 0.0  # time stamps are rounded
        if nominal and abs(length - len(indices) / nominal) <= slack:
            return nominal
        return len(indices) / length

    def _length(self, indices: range) -> float | None:
        """Seconds from the first of the frames to the end of the last, None if the time stamps do not say it."""
        first, last = self.stamps[indices[0]], self.stamps[indices[-1]]
        behind = self.stamps[indices[-1] + indices.step :][:1]
        if first is None or last is None:
            return None
        if behind and behind[0] is not None:
            return float((behind[0] - first) * self.tick)
        if self.last and indices[-1] == len(self.stamps) - 1 and indices.step == 1:
            return float((last + self.last - first) * self.tick)
        steps = len(indices) - 1  # the last stays as long as the others on average
        return float((last - first) * self.tick) * len(indices) / steps if steps else None
