"""Measures of a segmentation: numpy in, numbers out.

The confusion matrix accumulates over frames and clips by addition, so that a data set needs no more memory than a frame.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

VOID = 255
"""Label of pixels that belong to no class."""


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


def class_iou(counts: Int[np.ndarray, "classes _"]) -> Float[np.ndarray, " classes"]:
    """TP / (TP + FP + FN) of each class; NaN for a class without ground-truth pixels."""
    square = counts[:, : len(counts)]
    hits, present = np.diag(square).astype(float), counts.sum(1) > 0
    union = counts.sum(1) + square.sum(0) - hits
    return np.where(present, hits / np.maximum(union, 1), np.nan)


def mean_iou(counts: Int[np.ndarray, "classes _"]) -> float:
    """Mean of `class_iou` over the classes that have ground-truth pixels (VSPW's evaluator)."""
    return float(np.nanmean(class_iou(counts)))


def pixel_accuracy(counts: Int[np.ndarray, "classes _"]) -> float:
    """Share of the labelled pixels that are right."""
    return float(np.trace(counts[:, : len(counts)]) / max(counts.sum(), 1))


def flicker(labels: Integer[np.ndarray, "f H W"]) -> float:
    """Share of pixels that change label between consecutive frames; 0 for one frame."""
    changed: Bool[np.ndarray, "g H W"] = labels[1:] != labels[:-1]
    return float(changed.mean()) if len(changed) else 0.0
