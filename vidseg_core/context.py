"""Stage 2: the scene context model.

K-means on the first window finds out what the scene consists of. A k-NN classifier over remembered tokens, the *scene context*,
then labels every frame. After each window the context takes in that window, and so follows a changing scene (VidSeg, section
3.2). Clusters get class names from the mask of the first frame (the paper's protocol) or stay anonymous segments.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidseg_core.common import VOID, InputError, enlarge
from vidseg_core.settings import ContextSettings

ROWS = 512
"""Tokens compared at once by k-NN; bounds the distance matrix."""
SAME = 1e-6
"""Squared distance below which two tokens are the same one, but for rounding."""
MAX_ITERATIONS = 100
"""Of Lloyd's algorithm; on the sample clips all runs converge earlier."""
TOLERANCE = 1e-4
"""K-means stops when the centroids move less than this times the mean variance of the channels, as scikit-learn's does."""


@dataclass(frozen=True, eq=False)
class Votes:
    """The votes on each cell after stage 2 or 3: their `shares`, column k for label `numbers[k]` (ascending). They sum
    to 1, or to less where some votes are for nobody."""

    shares: Float[Tensor, "f h w K"]
    numbers: Int[Tensor, " K"]

    @classmethod
    def certain(cls, labels: Int[Tensor, "f h w"]) -> "Votes":
        """All votes for these labels."""
        numbers, column = torch.unique(labels, return_inverse=True)
        return cls(torch.nn.functional.one_hot(column, len(numbers)).float(), numbers)

    @property
    def labels(self) -> Int[Tensor, "f h w"]:
        """The label with the largest share; of equal ones the smallest."""
        return self.numbers[self.shares.argmax(-1)]

    @property
    def confidence(self) -> Float[Tensor, "f h w"]:
        """The winner's share, in (0, 1]."""
        return self.shares.amax(-1)


@dataclass(frozen=True)
class Clusters:
    """K-means' result: `centroids` [K, d], `sizes` [K] tokens, `labels` [n] of the tokens, `inertia` the sum of squares."""

    centroids: Float[Tensor, "K d"]
    sizes: Int[Tensor, " K"]
    labels: Int[Tensor, " n"]
    inertia: float


def kmeans(tokens: Float[Tensor, "n d"], settings: ContextSettings, seed: int = 0) -> Clusters:
    """K-means (Lloyd 1982) from greedy k-means++ starts (Arthur & Vassilvitskii 2007), the best of `restarts` by inertia.
    Centroids are found on a draw of `max_context` tokens, and all tokens are then assigned.

    Deterministic by seed on one kind of device. Raises InputError if there are fewer tokens than clusters.
    """
    if len(tokens) < settings.num_clusters:
        what = f"{settings.num_clusters} clusters cannot be made of {len(tokens)} tokens"
        raise InputError(f"{what}; ask for fewer clusters, or give more or larger frames")
    generator, best, drawn = torch.Generator().manual_seed(seed), None, tokens
    if settings.max_context is not None and len(tokens) > settings.max_context:
        drawn = tokens[torch.randperm(len(tokens), generator=generator)[: settings.max_context].to(tokens.device)]
    for _ in range(settings.restarts):
        found = lloyd(drawn, _plus_plus(drawn, settings.num_clusters, generator))
        if best is None or found.inertia < best.inertia:
            best = found
    return best if drawn is tokens else assign(tokens, best.centroids)


def lloyd(tokens: Float[Tensor, "n d"], centroids: Float[Tensor, "K d"]) -> Clusters:
    """Assign and average until the centroids rest; a cluster that empties restarts at the worst-fitted token."""
    enough = TOLERANCE * tokens.var(0).mean()
    for _ in range(MAX_ITERATIONS):
        distance, labels = _squared(tokens, centroids).min(1)
        # a product with one-hot rows, not index_add: the latter sums in random order on a GPU
        members = torch.nn.functional.one_hot(labels, len(centroids)).to(tokens.dtype)
        sizes = members.sum(0)
        before, centroids = centroids, members.T @ tokens / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        centroids[empty] = tokens[distance.topk(len(empty)).indices]
        if (centroids - before).square().sum() <= enough:
            break
    return assign(tokens, centroids)


def assign(tokens: Float[Tensor, "n d"], centroids: Float[Tensor, "K d"]) -> Clusters:
    """Each token to the nearest centroid."""
    distance, labels = _squared(tokens, centroids).min(1)
    return Clusters(centroids, torch.bincount(labels, minlength=len(centroids)), labels, float(distance.cpu().double().sum()))


def _plus_plus(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Starting centroids far apart: each drawn with probability proportional to the squared distance to those before it,
    the best of 2 + ln(K) draws, as scikit-learn does."""
    trials = 2 + int(np.log(count))
    chosen = [int(torch.randint(len(tokens), (1,), generator=generator))]
    distance = _squared(tokens, tokens[chosen])[:, 0]
    while len(chosen) < count:
        total = torch.cumsum(distance.cpu().double(), 0)  # on the CPU: in order, and some devices have no float64
        draws = torch.rand(trials, generator=generator, dtype=torch.float64) * total[-1]
        candidates = torch.searchsorted(total, draws).clamp(max=len(tokens) - 1).to(tokens.device)
        shrunk = torch.minimum(distance[:, None], _squared(tokens, tokens[candidates]))
        best = int(shrunk.sum(0).argmin())
        chosen.append(int(candidates[best]))
        distance = shrunk[:, best]
    return tokens[chosen].clone()


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return ((a * a).sum(-1)[:, None] - 2 * a @ b.T + (b * b).sum(-1)[None]).clamp(min=0)


def nearest_references(
    tokens: Float[Tensor, "n d"], references: Float[Tensor, "m d"], count: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Squared Euclidean distances and indices of the `count` nearest references (all, if there are fewer), nearest first."""
    length, count, parts = (references * references).sum(-1), min(count, len(references)), []
    for rows in tokens.split(ROWS):  # the tokens' own length moves no nearest one: it is added to those alone
        found = torch.addmm(length, rows, references.T, alpha=-2).topk(count, largest=False)
        parts.append(((found.values + (rows * rows).sum(-1, keepdim=True)).clamp(min=0), found.indices))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


@dataclass(frozen=True, eq=False)
class SceneContext:
    """The remembered tokens [m, d] and their labels [m], each one of `count` numbers from 0: a k-NN classifier (Cover & Hart
    1967) that moves along with the clip, by `after`. The first `anchored` tokens are what the clip began with and stay."""

    tokens: Float[Tensor, "m d"] = field(repr=False)
    labels: Int[Tensor, " m"] = field(repr=False)
    count: int
    anchored: int
    settings: ContextSettings
    seed: int = 0

    @classmethod
    def begin(
        cls, tokens: Float[Tensor, "n d"], labels: Int[Tensor, " n"], settings: ContextSettings, seed: int = 0,
        count: int | None = None,
    ) -> "SceneContext":  # fmt: skip
        """What the clip begins with; with memory="anchored" these tokens, at most half of `max_context`, stay. `count`: how
        many labels there are, if not those up to the largest of `labels`."""
        limit, anchored = settings.max_context, settings.memory == "anchored"
        kept = stratified_draw(labels, limit // 2 if anchored and limit else limit, settings.neighbours, seed)
        return cls(tokens[kept], labels[kept], count or int(labels.max()) + 1, len(kept) if anchored else 0, settings, seed)

    def after(self, features: Float[Tensor, "f h w d"], labels: Int[Tensor, "f h w"]) -> "SceneContext":
        """The context behind this window: its tokens, beside the anchored ones and then as many as those, so that neither
        outvotes the other. Above that number, or `max_context`, a draw in proportion to each label's share."""
        s, limit = self.settings, self.settings.max_context
        if self.anchored:
            limit = self.anchored
        limit = limit and max(limit, self.count * s.neighbours)  # room for k of each label, those that were born as well
        tokens, labels = features.flatten(0, 2), labels.flatten()
        kept = stratified_draw(labels, limit, s.neighbours, self.seed)
        tokens = torch.cat([self.tokens[: self.anchored], tokens[kept]])
        return replace(self, tokens=tokens, labels=torch.cat([self.labels[: self.anchored], labels[kept]]))

    def predict(self, features: Float[Tensor, "f h w d"]) -> Float[Tensor, "f h w K"]:
        """The share of each label in the votes of the k nearest remembered tokens, as scikit-learn's `predict_proba`.

        A vote counts 1 / distance with weights="distance" (Dudani 1976, in scikit-learn's form), else 1.
        """
        squared, nearest = nearest_references(features.flatten(0, 2), self.tokens, self.settings.neighbours)
        weight = squared.clamp(min=SAME).rsqrt() if self.settings.weights == "distance" else torch.ones_like(squared)
        votes = weight.new_zeros(len(weight), self.count)
        for n in range(weight.shape[1]):  # one neighbour at a time: sums in the same order on every device
            votes.scatter_add_(1, self.labels[nearest[:, n : n + 1]], weight[:, n : n + 1])
        return (votes / weight.sum(1, keepdim=True)).unflatten(0, features.shape[:3])


def stratified_draw(labels: Int[Tensor, " n"], count: int | None, least: int, seed: int) -> Int[Tensor, " m"]:
    """Indices of `count` tokens, each label in proportion to its size but with at least `least` (or all) of its tokens; of all
    tokens if there are no more, or `count` is None."""
    if count is None or len(labels) <= count:
        return torch.arange(len(labels), device=labels.device)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = order[labels[order].sort(stable=True).indices]  # grouped by label, shuffled within
    _, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    rank = torch.cat([torch.arange(int(n), device=labels.device) for n in sizes])
    priority = (rank + 0.5) / sizes.repeat_interleave(sizes)
    priority[rank < least] = 0
    return order[priority.sort(stable=True).indices[:count]].sort().values


def name_clusters(labels: Int[Tensor, "h w"], mask: Int[np.ndarray, "H W"], num_clusters: int) -> Int[Tensor, " K"]:
    """Class of each cluster: the majority of the first frame's mask under its cells.

    Void pixels (255) do not vote; a cluster that lies on void alone, or is not in the first frame, is void.
    """
    clusters = enlarge(labels.cpu().numpy(), mask.shape).ravel()
    votes = np.bincount(clusters * 256 + mask.ravel(), minlength=num_clusters * 256).reshape(num_clusters, 256)
    votes[:, VOID] = 0
    classes = np.where(votes.any(1), votes.argmax(1), VOID)
    return torch.from_numpy(classes).to(labels.device)


def name_cells(mask: Int[np.ndarray, "H W"], grid: tuple[int, int]) -> Int[Tensor, "h w"]:
    """Class of each cell: the majority of the mask under it, 255 where all of it is void."""
    cells = torch.arange(grid[0] * grid[1]).reshape(grid)
    return name_clusters(cells, mask, cells.numel()).reshape(grid)
