"""Stage 2 without a mask: clusters merge into fewer segments, along a tree that can be cut at any number."""

import numpy as np
from jaxtyping import Float, Int

from vidseg_core.context import Clusters

FEWEST = 5
"""The fewest segments that `natural_cut` leaves: cutting a frame in two is a large jump in cost, but says little."""


def merge_order(clusters: Clusters, size_weight: float) -> tuple[Int[np.ndarray, "merges 2"], Float[np.ndarray, " merges"]]:
    """Ward's agglomeration (1963) of clusters: rows (kept, absorbed), cheapest merge first, and what each costs; the larger
    side keeps its number. A centroid weighs its number of tokens to the power of `size_weight`: 1 is Ward's own cost, 0 ignores
    sizes.

    SciPy's `ward` counts every row once, so it can't weigh centroids, and on the tokens themselves it needs n^2 memory.
    """
    centre, size = clusters.centroids.cpu().double().numpy(), clusters.sizes.cpu().double().numpy()
    alive, order, costs = np.arange(len(size)), [], []
    while len(alive) > 1:
        c, s = centre[alive], size[alive] ** size_weight
        weight = s[:, None] * s / np.maximum(s[:, None] + s, 1)
        cost = weight * np.square(c[:, None] - c).sum(-1)
        cost[np.tril_indices(len(alive))] = np.inf
        pair = alive[list(np.unravel_index(cost.argmin(), cost.shape))]
        absorbed, kept = sorted(pair, key=lambda k: (size[k], -k))
        total = size[kept] + size[absorbed]
        centre[kept] = (size[kept] * centre[kept] + size[absorbed] * centre[absorbed]) / max(total, 1)
        size[kept] = total
        alive = alive[alive != absorbed]
        order.append((kept, absorbed))
        costs.append(cost.min())
    return np.array(order, dtype=int).reshape(-1, 2), np.array(costs)


def cut_merges(order: Int[np.ndarray, "merges 2"], num_segments: int | None) -> Int[np.ndarray, " K"]:
    """Segment of each cluster when `num_segments` are left; cuts are nested, and a segment that a coarser cut does not
    touch keeps its number, and so its colour. None: no merging."""
    segment = np.arange(len(order) + 1)
    for kept, absorbed in order[: max(0, len(segment) - num_segments)] if num_segments else ():
        segment[segment == absorbed] = kept
    return segment


def natural_cut(costs: Float[np.ndarray, " merges"]) -> int:
    """The number of segments, from `FEWEST` to half of the clusters, at which the next merge costs most times as much as the
    one before; all clusters if they are no more than `FEWEST`."""
    clusters = len(costs) + 1
    rising = np.maximum.accumulate(costs).clip(min=1e-12)  # with sizes weighed by a power, a merge can make the next cheaper
    jumps = {n: rising[clusters - n] / rising[clusters - n - 1] for n in range(FEWEST, max(FEWEST, clusters // 2) + 1)
             if n < clusters}  # fmt: skip
    return max(jumps, key=jumps.get) if jumps else clusters
