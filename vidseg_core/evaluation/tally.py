"""Scores that accumulate: frame after frame within a clip (`Meter`), clip after clip within a set (`Tally`)."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from vidseg_core.evaluation.metrics import (
    VOID,
    Consistency,
    boundary_f,
    class_iou,
    confusion,
    mean_iou,
    pixel_accuracy,
    run_lengths,
    stable_pixels,
)

SPANS = (8, 16)
"""Window lengths n, in frames, of the reported mVC_n."""


@dataclass
class Tally:
    """Sums from which all scores follow; those of clips add up with `+`.

    `counts` as by `confusion`; `given` the part of it that is frame 0. `region`, `boundary` [classes, 2]: sums over
    frames of a class's IoU and boundary F, and how many frames count for it. `vc8`, `vc16`: sum and number of windows.
    `inside`, `seams`: pixels that kept their label along the flow and pixels compared, between frames of one window of the
    method and across two; `changed`: pixels that differ from the same place in the frame before, and all.
    """

    counts: np.ndarray
    given: np.ndarray
    region: np.ndarray
    boundary: np.ndarray
    vc8: np.ndarray = field(default_factory=lambda: np.zeros(2))
    vc16: np.ndarray = field(default_factory=lambda: np.zeros(2))
    inside: np.ndarray = field(default_factory=lambda: np.zeros(2))
    seams: np.ndarray = field(default_factory=lambda: np.zeros(2))
    changed: np.ndarray = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def empty(cls, num_classes: int) -> "Tally":
        """Nothing counted yet."""
        counts = np.zeros((num_classes, num_classes + 1), np.int64)
        return cls(counts, counts.copy(), np.zeros((num_classes, 2)), np.zeros((num_classes, 2)))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers, ready for JSON."""
        return {f.name: getattr(self, f.name).tolist() for f in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Tally":
        """The inverse of `to_dict`."""
        return cls(**{name: np.array(values) for name, values in data.items()})

    def scores(self) -> dict[str, float]:
        """Every measure as a share in 0..1, NaN where nothing could be measured. `mIoU later` leaves frame 0 out, whose truth
        the first-frame protocol gives away. J and F: mean over (class, frame) pairs of region and boundary agreement."""
        later = self.counts - self.given
        return {
            "mIoU": mean_iou(self.counts), "mIoU later": mean_iou(later),
            "accuracy": pixel_accuracy(self.counts) if self.counts.any() else float("nan"),
            "mVC8": _share(self.vc8), "mVC16": _share(self.vc16),
            "J": _share(self.region.sum(0)), "F": _share(self.boundary.sum(0)),
            "stability": _share(self.inside), "seam stability": _share(self.seams), "flicker": _share(self.changed),
        }  # fmt: skip


def _share(pair: np.ndarray) -> float:
    return float(pair[0] / pair[1]) if pair[1] else float("nan")


class Meter:
    """All measures of one clip's labels, in one pass. `official_vc`: see `metrics.Consistency`. `objects`: J and F are DAVIS',
    of the classes but 0 that the first labelled frame shows, in every scored frame, whether it shows them or not."""

    def __init__(self, num_classes: int, official_vc: bool = False, objects: bool = False):
        self.num_classes, self.frames = num_classes, 0
        self._by_object, self._objects = objects, None
        self.tally, self._spans = Tally.empty(num_classes), [Consistency(span, official_vc) for span in SPANS]
        self._before: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        self._runs: tuple[np.ndarray | None, np.ndarray | None] = (None, None)

    def add(
        self,
        labels: Integer[np.ndarray, "H W"],
        truth: Integer[np.ndarray, "H W"] | None = None,
        scored: bool = True,
        seam: bool = False,
        flow: Float[np.ndarray, "H W 2"] | None = None,
        visible: Bool[np.ndarray, "H W"] | None = None,
    ) -> None:
        """The next frame. `truth` None: it has no labels; `scored` False: its labels count for mVC only. `seam`: a window of
        the method begins with it. `flow`, `visible`: from the frame before to this one, as for `stable_pixels`."""
        before = self._before[0]
        if before is not None:
            pair = self.tally.seams if seam else self.tally.inside
            pair += stable_pixels(before, labels, flow, visible)
            self.tally.changed += ((before != labels).sum(), labels.size)
        self._runs = tuple(map(run_lengths, self._runs, self._before, (labels, truth)))
        self._before = labels, truth
        if truth is not None:
            if self._by_object and self._objects is None:  # the first labelled frame need not be scored
                self._objects = np.setdiff1d(truth, [0, VOID])
            for span in self._spans:
                span.add(*self._runs)
            if scored:
                self._score(labels, truth)
        self.frames += 1

    def _score(self, labels: np.ndarray, truth: np.ndarray) -> None:
        counts = confusion(labels, truth, self.num_classes)
        self.tally.counts += counts
        if self.frames == 0:
            self.tally.given += counts
        for sums, values in (
            (self.tally.region, class_iou(counts, self._objects)),
            (self.tally.boundary, boundary_f(labels, truth, self.num_classes, objects=self._objects)),
        ):
            sums += np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1)

    def finish(self) -> Tally:
        """The clip's sums; call it once, after the last frame."""
        for name, span in zip(("vc8", "vc16"), self._spans, strict=True):
            values = span.finish()
            setattr(self.tally, name, np.array([values.sum(), len(values)]))
        return self.tally
