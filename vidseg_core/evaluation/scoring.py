"""A clip's label maps scored against its truth, stage by stage. Nothing here touches the disk or a model."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, Integer

from vidseg_core.common import VOID, InputError, enlarge
from vidseg_core.evaluation.labelled import AnyClip, Dataset
from vidseg_core.evaluation.metrics import majority_segments, match_segments
from vidseg_core.evaluation.tally import Meter, Tally

PROTOCOLS = ("first", "named", "matched")
"""How clusters come by names: the mask of frame 0 is given to the method (the paper's); the method runs without labels, and
each segment is called what most of its pixels are in the first labelled frame; the same, but called so that most pixels of the
whole clip are right, one segment a class (Hungarian matching)."""


@dataclass(frozen=True)
class Rules:
    """How label maps are scored: `protocol` is one of `PROTOCOLS`; `official_vc` and `objects` as for `tally.Meter`."""

    num_classes: int
    protocol: str = "first"
    official_vc: bool = False
    objects: bool = False

    @classmethod
    def of(cls, dataset: Dataset, protocol: str | None = None) -> "Rules":
        """A set's own, but for the protocol if one is named."""
        return cls(len(dataset.classes), protocol or dataset.protocol, dataset.official_vc, dataset.objects)


@dataclass(frozen=True)
class Window:
    """A method's label maps of n consecutive frames, the first of them number `start`: for each stage [n, h, w] in cells or
    [n, H, W] in pixels, 255 = void."""

    start: int
    maps: dict[str, Integer[np.ndarray, "n _ _"]] = field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.maps.values())))


@dataclass(frozen=True)
class Scores:
    """`tallies` and `names` by stage: a name is the class [256] that each label number stands for. `strays`: values of the
    label files that mean nothing in the set, and in how many frames they are."""

    tallies: dict[str, Tally]
    names: dict[str, Int64[np.ndarray, "256"]] = field(repr=False)
    strays: dict[str, int]


def given_mask(clip: AnyClip, num_clusters: int) -> Int64[np.ndarray, "H W"]:
    """Frame 0's classes. K clusters can't bear more than K names: of more classes only the largest are given, the rest void."""
    if 0 not in clip.labels:
        raise InputError(
            f"frame 0 of {clip.name} has no labels, which protocol 'first' gives to the method: use --protocol named or matched"
        )
    mask = clip.read_labels(0)[0]
    areas = np.bincount(mask.ravel(), minlength=256)[:VOID]
    kept = np.argsort(-areas, kind="stable")[:num_clusters]
    return np.where(np.isin(mask, kept), mask, VOID)


def score(clip: AnyClip, windows: Iterable[Window], rules: Rules) -> Scores:
    """All windows of a clip, in order; they are gone through more than once. Cells are enlarged to the pixels of the frame:
    every pixel has the label of its cell."""
    names = segment_names(clip, windows, rules)
    meters = {stage: Meter(rules.num_classes, rules.official_vc, rules.objects) for stage in names}
    size, strays = clip.size, Counter()
    for window in windows:
        for i in range(len(window)):
            n, truth = window.start + i, None
            if n in clip.labels:
                truth, values = clip.read_labels(n)
                strays.update(values)
            for stage, meter in meters.items():
                labels = names[stage][enlarge(window.maps[stage][i], size)]
                meter.add(labels, truth, clip.scored(n), i == 0, *clip.motion(n))
    return Scores({stage: meter.finish() for stage, meter in meters.items()}, names, dict(sorted(strays.items())))


def segment_names(clip: AnyClip, windows: Iterable[Window], rules: Rules) -> dict[str, Int64[np.ndarray, "256"]]:
    """For each stage the class of each label number: itself, or for anonymous segments as the protocol has it. Segments
    without a class get numbers beyond the classes, so that they remain apart."""
    if rules.protocol == "first":
        return {stage: np.arange(256) for stage in next(iter(windows)).maps}
    how = majority_segments if rules.protocol == "named" else match_segments
    used = {min(clip.labels)} if rules.protocol == "named" else set(clip.labels)
    tables = {}
    for stage, pixels in _common_pixels(clip, windows, used).items():
        tables[stage] = names = how(pixels[: rules.num_classes])
        nameless = names == VOID
        names[nameless] = np.minimum(rules.num_classes + np.arange(nameless.sum()), VOID)
        names[VOID] = VOID
    return tables


def _common_pixels(clip: AnyClip, windows: Iterable[Window], used: set[int]) -> dict[str, Int64[np.ndarray, "256 256"]]:
    """For each stage how many pixels have class i and label j, in the frames `used`."""
    counts: dict[str, np.ndarray] = {}
    for window in windows:
        for n in sorted(used & set(range(window.start, window.start + len(window)))):
            truth = clip.read_labels(n)[0]
            for stage, maps in window.maps.items():
                pairs = truth * 256 + enlarge(maps[n - window.start], truth.shape)
                counts[stage] = counts.get(stage, 0) + np.bincount(pairs.ravel(), minlength=65536).reshape(256, 256)
    return counts
