"""Measures of a segmentation: numpy in, numbers out.

`tally.py` adds them up over frames and clips, so that a data set needs no more memory than a frame. Label maps are integers
in 0..255, of which 255 is void: a pixel that belongs to no class.
"""

from math import isqrt

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt64
from scipy.optimize import linear_sum_assignment

from vidseg_core.common import VOID

TOLERANCE = 0.008
"""Share of the image diagonal within which boundaries agree (DAVIS)."""


def confusion(
    predicted: Integer[np.ndarray, "*shape"], truth: Integer[np.ndarray, "*shape"], num_classes: int
) -> Int[np.ndarray, "classes _"]:
    """Counts [num_classes, num_classes + 1] of pixels by true class (row) and predicted class (column).

    Pixels whose truth is void (255) are left out; predictions of void or of an unknown class stand in the last column and
    so count as wrong. Raises ValueError if the truth has a class outside 0..num_classes - 1.
    """
    known = truth != VOID
    rows = truth[known].astype(np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= num_classes):
        raise ValueError(
            f"the ground truth has class {rows.max() if rows.max() >= num_classes else rows.min()} of {num_classes}"
        )
    columns = predicted[known].astype(np.int64)
    columns = np.where((columns < 0) | (columns >= num_classes), num_classes, columns)
    return np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1)).reshape(num_classes, -1)


def class_iou(
    counts: Int[np.ndarray, "classes _"], objects: Integer[np.ndarray, " _"] | None = None
) -> Float[np.ndarray, " classes"]:
    """TP / (TP + FP + FN) of each class; NaN for a class without ground-truth pixels.

    With `objects`, DAVIS' rule: of these classes and no others, one that the truth does not show has 0 if it is predicted
    and 1 if it is not.
    """
    square = counts[:, : len(counts)]
    hits = np.diag(square).astype(float)
    union = counts.sum(1) + square.sum(0) - hits
    values = np.where(union > 0, hits / np.maximum(union, 1), 1.0)
    judged = counts.sum(1) > 0 if objects is None else np.isin(np.arange(len(counts)), objects)
    return np.where(judged, values, np.nan)


def mean_iou(counts: Int[np.ndarray, "classes _"]) -> float:
    """Mean of `class_iou` over the classes that have ground-truth pixels (VSPW's evaluator); NaN if there are none."""
    return float(np.nanmean(class_iou(counts))) if counts.any() else float("nan")


def pixel_accuracy(counts: Int[np.ndarray, "classes _"]) -> float:
    """Share of the labelled pixels that are right."""
    return float(np.trace(counts[:, : len(counts)]) / max(counts.sum(), 1))


def flicker(labels: Integer[np.ndarray, "f H W"]) -> float:
    """Share of pixels that change label between consecutive frames; 0 for one frame."""
    changed: Bool[np.ndarray, "g H W"] = labels[1:] != labels[:-1]
    return float(changed.mean()) if len(changed) else 0.0


def match_segments(counts: Int[np.ndarray, "classes segments"]) -> Int[np.ndarray, " segments"]:
    """Class of each anonymous segment: the one-to-one assignment (Hungarian method, Kuhn 1955) under which the most pixels
    are right. `counts` has pixels by true class and segment; segments that are left over are void."""
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return _naming(counts.shape[1], columns, rows, counts)


def majority_segments(counts: Int[np.ndarray, "classes segments"]) -> Int[np.ndarray, " segments"]:
    """Class of each segment: the one most of its pixels have, so that several segments may be one class."""
    return _naming(counts.shape[1], np.arange(counts.shape[1]), counts.argmax(0), counts)


def _naming(length: int, segments: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    names = np.full(length, VOID)
    hit = counts[classes, segments] > 0  # a segment and a class that never meet are no match
    names[segments[hit]] = classes[hit]
    return names


def stable_pixels(
    before: Integer[np.ndarray, "H W"],
    after: Integer[np.ndarray, "H W"],
    flow: Float[np.ndarray, "H W 2"] | None = None,
    visible: Bool[np.ndarray, "H W"] | None = None,
) -> tuple[int, int]:
    """(pixels that keep their label, pixels compared) from one frame to the next.

    `flow` = (dy, dx) in pixels from each pixel's centre to its place in the next frame, rounded to the pixel that holds it;
    None: nothing moves. `visible` says which places are in the picture and not hidden; others are not compared.
    """
    if flow is None:
        return int((before == after).sum()), before.size
    y, x = (np.indices(before.shape) + np.moveaxis(flow, -1, 0)).round().astype(int)
    seen = (y >= 0) & (y < before.shape[0]) & (x >= 0) & (x < before.shape[1])
    seen = seen if visible is None else seen & visible
    return int((before[seen] == after[y[seen], x[seen]]).sum()), int(seen.sum())


def boundary_f(
    predicted: Integer[np.ndarray, "H W"], truth: Integer[np.ndarray, "H W"], num_classes: int, tolerance: float = TOLERANCE,
    objects: Integer[np.ndarray, " _"] | None = None,
) -> Float[np.ndarray, " classes"]:  # fmt: skip
    """F-measure of each class's outline in one frame, NaN for classes that the truth does not show there (DAVIS' measure,
    Perazzi et al. 2016): a boundary pixel is matched if the other outline has one within `tolerance` of the diagonal,
    rounded up to pixels. Void pixels of the truth are taken out of both. Classes beyond `num_classes` do not count.
    `objects`: these classes and no others, shown or not, as in `class_iou`.
    """
    radius = int(np.ceil(tolerance * np.hypot(*truth.shape)))
    scores, present = np.full(num_classes, np.nan), np.setdiff1d(truth if objects is None else objects, [VOID])
    present = present[present < num_classes]
    for start in range(0, len(present), 64):
        group = present[start : start + 64]
        ours, theirs = (_outlines(np.where(truth == VOID, VOID, labels), group) for labels in (predicted, truth))
        near_theirs, near_ours = ours & _grow(theirs, radius), theirs & _grow(ours, radius)
        hit, drawn, found, real = (_per_bit(bits, len(group)) for bits in (near_theirs, ours, near_ours, theirs))
        # an outline that is not there is matched by one that is not there either
        precision = np.where(drawn > 0, hit / np.maximum(drawn, 1), 1.0)
        recall = np.where(real > 0, found / np.maximum(real, 1), 1.0)
        scores[group] = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return scores


def _outlines(labels: np.ndarray, classes: np.ndarray) -> UInt64[np.ndarray, "H W"]:
    """Bit i of a pixel: whether the mask of classes[i] changes to the right, below or to the lower right of it. One integer
    a pixel holds 64 classes, so that growing all outlines costs as much as growing one."""
    table = np.zeros(256, np.uint64)
    table[classes] = np.uint64(1) << np.arange(len(classes), dtype=np.uint64)
    bits = table[labels]
    edge = np.zeros_like(bits)
    edge[:, :-1] |= bits[:, :-1] ^ bits[:, 1:]
    edge[:-1] |= bits[:-1] ^ bits[1:]
    edge[:-1, :-1] |= bits[:-1, :-1] ^ bits[1:, 1:]
    return edge


def _grow(bits: np.ndarray, radius: int) -> np.ndarray:
    """Dilation by a disc: rows widened by 0..radius pixels, then laid over each other as the disc's rows are."""
    rows = [bits]
    for width in range(1, radius + 1):
        wider = rows[-1].copy()
        wider[:, width:] |= bits[:, :-width]
        wider[:, :-width] |= bits[:, width:]
        rows.append(wider)
    grown, height = np.zeros_like(bits), len(bits)
    for dy in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        row = rows[isqrt(radius * radius - dy * dy)]
        grown[max(0, dy) : height + min(0, dy)] |= row[max(0, -dy) : height - max(0, dy)]
    return grown


def _per_bit(bits: np.ndarray, count: int) -> np.ndarray:
    values, pixels = np.unique(bits[bits != 0], return_counts=True)  # few combinations of classes meet at one pixel
    return np.array([pixels[(values >> np.uint64(i)) & np.uint64(1) == 1].sum() for i in range(count)])


class Consistency:
    """mVC_n of one clip, frame after frame (Miao et al. 2021, re-derived from VSPW's evaluator).

    For every n consecutive frames: of the pixels whose true label is one and the same in all of them, the share whose
    predicted label is too. The two labels are not compared: a stable wrong label scores 1. Void is a label like others.
    `official`: the last window of a clip is left out, as the evaluator's loop does; so a clip of n frames has none.
    """

    def __init__(self, span: int, official: bool = False):
        self.span, self.official = span, official
        self.values: list[float] = []
        self._pending: float | None = None

    def add(self, predicted_runs: Integer[np.ndarray, "H W"], truth_runs: Integer[np.ndarray, "H W"]) -> None:
        """One frame more, given for how many frames up to it each pixel has had its label (`run_lengths`)."""
        if self._pending is not None:
            self.values.append(self._pending)
            self._pending = None
        common = truth_runs >= self.span
        if common.any():
            self._pending = float((predicted_runs[common] >= self.span).mean())

    def finish(self) -> Float[np.ndarray, " windows"]:
        """VC of every window that has pixels of constant truth."""
        last = [] if self._pending is None or self.official else [self._pending]
        return np.array([*self.values, *last], dtype=float)


def run_lengths(runs: np.ndarray | None, before: np.ndarray | None, now: np.ndarray | None) -> np.ndarray | None:
    """For how many frames up to `now` each pixel has had its label; None, where the frame has no labels, ends all runs."""
    if now is None or before is None or runs is None:
        return None if now is None else np.ones(now.shape, np.int32)
    return np.where(before == now, runs + 1, 1)


def video_consistency(
    predicted: Integer[np.ndarray, "f H W"], truth: Integer[np.ndarray, "f H W"], span: int, official: bool = False
) -> Float[np.ndarray, " windows"]:
    """VC_n of all windows of `span` frames of a clip; see `Consistency`."""
    meter, runs, before = Consistency(span, official), (None, None), (None, None)
    for now in zip(predicted, truth, strict=True):
        runs = tuple(run_lengths(*state) for state in zip(runs, before, now, strict=True))
        meter.add(*runs)
        before = now
    return meter.finish()
