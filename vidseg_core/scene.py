"""Names the clusters of a clip and carries state between its windows."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import pad

from vidseg_core import paper
from vidseg_core.births import Strangers, meet, teach
from vidseg_core.common import VOID, InputError, count_blends
from vidseg_core.context import SceneContext, Votes, kmeans, name_cells
from vidseg_core.correspondence import Overlap
from vidseg_core.features import Features
from vidseg_core.merging import cut_merges, merge_order, natural_cut
from vidseg_core.settings import Settings


@dataclass(frozen=True, eq=False)
class Scene:
    """Names the clusters and carries state between windows. A scene never changes: `after` makes the one for the next
    window.

    `context`: what is remembered. `overlap`: the last `reach` frames, which vote on the next window's first. `frames`: how many
    it has seen. `segment` [K]: the number that stands in the results for each label that `context` knows, a class of the mask
    (255 is void) or the segment of a cluster; `names` of those numbers; `merges`: the order in which clusters merge, in
    label-free runs (labels behind these clusters came later); `numbers`: those of the labels there, before clusters merge;
    `strangers`: what may be born; `given`: the names that the user gave; `lost`: classes of a mask without a cell or cluster of
    their own.
    """

    context: SceneContext
    segment: Integer[np.ndarray, " K"]
    names: dict[int, str]
    merges: Integer[np.ndarray, "merges 2"] | None
    given: dict[int, str] = field(default_factory=dict)
    lost: tuple[int, ...] = ()
    reach: int = 0
    overlap: Overlap | None = None
    frames: int = 0
    strangers: Strangers | None = None
    numbers: Integer[np.ndarray, " numbers"] = field(default_factory=lambda: np.arange(VOID))

    def predict(self, features: Features) -> Float[Tensor, "f h w K"]:
        """Stage 2 for one window: the coarse shares of its cells, of the labels that the context knows (`named` translates).
        Raises InputError for features of another size or kind than this scene's."""
        known = (self.context.tokens.shape[1], *(self.overlap.match.shape[1:] if self.overlap else ()))
        given = (features.context.shape[-1], *(features.match.shape[1:] if self.overlap else ()))
        if known != given:
            raise InputError(f"the scene has features of (channels, rows, columns, channels) {known}, these frames {given}: go "
                             "on with the model, the size of frames and the settings that it comes from")  # fmt: skip
        return self.context.predict(features.context)

    def after(self, features: Features, coarse: Float[Tensor, "f h w K"], refined: Float[Tensor, "f h w K"]) -> "Scene":
        """The scene after a window: the context takes in the window, and the coarse votes of its last `reach` frames become
        the overlap, so that refinement works the same across a seam as within a window."""
        match, shares = features.match, coarse
        if self.overlap is not None and len(coarse) < self.reach:
            match, shares = torch.cat([self.overlap.match, match]), torch.cat([self.overlap.shares, shares])
        last = slice(max(0, len(match) - self.reach), None)
        overlap = Overlap(match[last].clone(), shares[last].clone())  # clones, or the whole window stays in memory
        context, strangers = self.context.after(features.context, refined.argmax(-1)), None
        most = 0 if self.merges is None else min(2 * len(self.merges) + 2, len(self.numbers))  # as many as there were, or none
        if (births := self.context.settings.births) and self.context.count < most:
            known = self.strangers or Strangers(context.tokens[:0], 0)
            context, strangers = meet(self.context, context, known, births)
        scene = replace(self, context=context, overlap=overlap, frames=self.frames + len(refined), strangers=strangers)
        return scene if context.count == self.context.count else scene.with_newborn()

    def with_newborn(self) -> "Scene":
        """This scene with a number and a name for the newest label of the context. If the user gave it the name of a segment
        that exists, it joins that segment."""
        own = int(self.numbers[len(self.segment)])
        name = self.given.get(own, f"segment {own}")
        number = next((n for n, other in self.names.items() if other == name), own)
        return self._grown([number], {**self.names, number: name})

    def told(self, features: Features, masks: Mapping[int, Integer[np.ndarray, "H W"]]) -> "Scene":
        """This scene before a window, corrected by the masks of that window's frames; that of frame 0 has opened the scene."""
        scene = self
        for number in sorted(n for n in masks if n and self.frames <= n < self.frames + len(features.context)):
            scene = scene.taught(features.context[number - self.frames], masks[number])
        return scene

    def taught(self, cells: Float[Tensor, "h w d"], mask: Integer[np.ndarray, "H W"]) -> "Scene":
        """This scene after a mask has named the cells of a frame; void leaves cells open. A class belongs to the label with its
        number; if there is none, it becomes a new label."""
        classes, named = name_cells(mask, cells.shape[:2]).flatten().numpy(), np.setdiff1d(mask, [VOID]).tolist()
        new = np.setdiff1d(classes, [*self.segment, VOID])
        scene = self._grown(new.tolist(), {n: self.given.get(n, f"class {n}") for n in named} | self.names)
        segment = scene.segment.tolist()
        labels = torch.tensor([-1 if n == VOID else segment.index(n) for n in classes], device=cells.device)
        context = teach(self.context, cells.flatten(0, 1), labels, len(segment))
        lost = {*self.lost, *named}.difference(segment)
        numbers = np.concatenate([self.numbers[: len(self.segment)], new, np.setdiff1d(self.numbers[len(self.segment) :], new)])
        return replace(scene, context=context, lost=tuple(sorted(lost)), numbers=numbers)

    def _grown(self, numbers: list[int], names: dict[int, str]) -> "Scene":
        """This scene with further labels, which stand for these numbers."""
        overlap = self.overlap and replace(self.overlap, shares=pad(self.overlap.shares, (0, len(numbers))))
        segment = np.append(self.segment, numbers).astype(self.segment.dtype)
        return replace(self, segment=segment, names=dict(sorted(names.items())), overlap=overlap)

    def named(self, shares: Float[Tensor, "f h w K"]) -> Votes:
        """Shares of `predict` or `refine` as votes for the numbers of the results: what became one segment is added up. Shares
        of an earlier window lack the labels that were born since."""
        numbers, column = torch.from_numpy(self.segment[: shares.shape[-1]]).to(shares.device).unique(return_inverse=True)
        sums = shares.new_zeros(*shares.shape[:3], len(numbers)).index_add_(-1, column, shares)
        return Votes(sums, numbers.long())

    def cut(self, num_segments: int | None) -> "Scene":
        """This scene with its clusters merged to so many segments (None: none merged), beside those that were born, and those
        of equal given name joined."""
        if self.merges is None:
            raise InputError("this run has the classes of its mask; only a label-free run can change its number of segments")
        whole = isinstance(num_segments, int | np.integer) and not isinstance(num_segments, bool)
        if num_segments is not None and not (whole and 1 <= num_segments <= len(self.merges) + 1):
            raise InputError(f"{num_segments} segments are not possible: give 1 to {len(self.merges) + 1}, the clusters")
        later, first = np.arange(len(self.merges) + 1, self.context.count), {}
        segment = self.numbers[np.concatenate([cut_merges(self.merges, num_segments), later])]
        names = {n: self.names.get(n, f"segment {n}") for n in np.unique(segment).tolist()} | {VOID: "void"}
        for number in sorted(set(self.given) & set(names)):
            owner = first.setdefault(self.given[number], number)
            segment[segment == number] = owner
            names[owner] = self.given[number]
        return replace(self, segment=segment, names={n: names[n] for n in [*np.unique(segment).tolist(), VOID]})

    def state(self) -> dict[str, np.ndarray]:
        """All of it as plain arrays, for `np.savez`: what `VidSeg.stream` goes on from, bit for bit, after a window."""
        words = {"names": sorted(self.names.items()), "given": sorted(self.given.items()), "lost": self.lost}
        arrays = {"tokens": self.context.tokens, "labels": self.context.labels}
        if self.overlap is not None:
            arrays |= {"overlap_match": self.overlap.match, "overlap_shares": self.overlap.shares}
        if self.strangers is not None:
            arrays["strange"] = self.strangers.tokens
        counts = {"windows": self.strangers.windows if self.strangers else 0, "anchored": self.context.anchored}
        numbers = {k: np.array(n) for k, n in {**counts, "frames": self.frames}.items()}
        merges = {"segment": self.segment, "numbers": self.numbers} | ({} if self.merges is None else {"merges": self.merges})
        return {**{k: a.cpu().numpy() for k, a in arrays.items()}, **numbers, **merges, "words": np.array(json.dumps(words))}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], settings: Settings, device: torch.device | str = "cpu") -> "Scene":
        """The inverse of `state`, under the settings of the run that it comes from. Raises InputError for other arrays."""
        kept = ("tokens", "labels", "strange", "overlap_match", "overlap_shares")
        arrays = {k: torch.from_numpy(a).to(device) for k, a in state.items() if k in kept}
        try:
            count, anchored = len(state["segment"]), int(state["anchored"])
            context = SceneContext(arrays["tokens"], arrays["labels"], count, anchored, settings.context, settings.seed)
            words, frames = json.loads(str(state["words"])), int(state["frames"])
            overlap = Overlap(arrays["overlap_match"], arrays["overlap_shares"]) if "overlap_match" in state else None
            strangers = Strangers(arrays["strange"], int(state["windows"])) if "strange" in state else None
            return cls(context, state["segment"], dict(words["names"]), state.get("merges"), dict(words["given"]),
                       tuple(words["lost"]), settings.refine.reach, overlap, frames, strangers,
                       state.get("numbers", np.arange(VOID)))  # fmt: skip
        except KeyError as error:
            raise InputError(f"the saved scene lacks {error}: it is damaged or of another version, so start anew") from error


def open_scene(
    features: Features, settings: Settings, first_mask: Integer[np.ndarray, "H W"] | None, names: dict[int, str] | None,
    masks: Mapping[int, Integer[np.ndarray, "H W"]] = MappingProxyType({}),
) -> Scene:  # fmt: skip
    """The first scene: with a mask, its context is frame 0 and the mask's classes, as in the paper; without one, the clusters
    of the whole first window, so that those absent from frame 0 are kept. No segment has the number of a class in `masks`.
    Raises InputError for a name of a segment that does not exist."""
    if first_mask is not None:
        return _named_scene(features, settings, first_mask, names or {})
    tokens = features.context.flatten(0, 2)
    clusters = kmeans(tokens, settings.context, settings.seed)
    count = len(clusters.sizes)  # the last may be empty, in a still picture
    context = SceneContext.begin(tokens, clusters.labels, settings.context, settings.seed, count)
    (merges, costs), names = merge_order(clusters, settings.context.size_weight), names or {}
    count = natural_cut(costs) if settings.context.num_segments == "auto" else settings.context.num_segments
    classes = {n for mask in masks.values() for n in np.unique(mask).tolist()} - {VOID}
    numbers = np.setdiff1d(np.arange(VOID), [*classes])
    if len(numbers) < context.count:
        raise InputError(f"the masks have {len(classes)} classes, and of 255 numbers too few are left for {context.count} "
                         "clusters: ask for fewer")  # fmt: skip
    scene = Scene(context, numbers[: context.count], {}, merges, reach=settings.refine.reach, numbers=numbers).cut(count)
    later = numbers[context.count : 2 * context.count].tolist() if settings.context.births else ()
    if unknown := sorted(set(names) - (set(scene.names) - {VOID}) - set(later) - classes):
        begins = sorted(set(scene.names) - {VOID})
        raise InputError(f"there is a name for segment {unknown[0]}, but this run begins with {begins}")
    return replace(scene, given=names).cut(count)


def _named_scene(features: Features, settings: Settings, mask: np.ndarray, names: dict[int, str]) -> Scene:
    """The scene that a mask of the first frame describes; cells on nothing but void stay void."""
    s, first = settings.context, features.context[0]
    if s.naming == "cells":
        classes = name_cells(mask, first.shape[:2]).to(first.device)
    else:
        labels = kmeans(features.context.flatten(0, 2), s, settings.seed).labels.reshape(features.context.shape[:3])
        classes = paper.name_clusters(labels[0], mask, s.num_clusters)[labels[0]]
    segment, labels = classes.flatten().unique(return_inverse=True)
    context = SceneContext.begin(first.flatten(0, 1), labels, s, settings.seed)
    named = [int(c) for c in np.unique(mask) if c != VOID]
    called = {n: names.get(n, f"class {n}") for n in named} | {VOID: "void"}
    lost = tuple(n for n in named if n not in classes)
    return Scene(context, segment.cpu().numpy(), called, None, names, lost, settings.refine.reach)


def check_masks(
    given: Iterable[tuple[Any, Any]], size: tuple[int, int], settings: Settings, begin: int, count: int | None
) -> dict[int, Integer[np.ndarray, "H W"]]:
    """Masks by the numbers of their frames, checked as by `check_mask`. InputError for a number twice, or none of the `count`
    from `begin` on."""
    masks = {}
    for number, mask in given:
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise InputError(f"there is a mask of frame {number!r}: give the frame's number, counted from 0")
        if number < begin or (count is not None and number >= begin + count):
            last = "" if count is None else f" and end with {begin + count - 1}"
            raise InputError(f"there is a mask of frame {number}, but the frames begin with {begin}{last}")
        if number in masks:
            raise InputError(f"there are two masks of frame {number}: give one")
        masks[int(number)] = check_mask(np.asarray(mask), size, settings, number)
    return masks


def check_mask(mask: np.ndarray, size: tuple[int, int], settings: Settings, frame: int = 0) -> Integer[np.ndarray, "H W"]:
    """A frame's mask as int64, or InputError if it does not fit the frames (`size` = (H, W)) or the settings."""
    which = f"the mask of frame {frame}" if frame else "the first-frame mask"
    if mask.shape != tuple(size):
        raise InputError(f"{which} is {mask.shape}, the frames are {tuple(size)}: resize it (nearest neighbour)")
    whole = np.issubdtype(mask.dtype, np.integer)
    if not whole or mask.min() < 0 or mask.max() > VOID:
        held = f"{mask.min()} to {mask.max()} as {mask.dtype}" if whole else mask.dtype
        raise InputError(f"{which} holds {held}: give whole numbers 0..254, 255 for void")
    classes, clusters = np.setdiff1d(mask, [VOID]), settings.context.num_clusters
    if not len(classes):
        raise InputError(f"{which} is void everywhere: draw at least one class")
    if set(np.unique(mask)) == {0, VOID}:
        raise InputError(f"{which} has class 0 and void (255) only: in a black-and-white mask, save the white as 1")
    blends, between = count_blends(mask.astype(np.uint8))
    if between > 2 and 4 * blends >= 3 * between:  # files know more of themselves, and are checked more closely
        raise InputError(f"{which} has soft edges, but class numbers do not blend: resize it by nearest neighbour")
    if settings.context.naming == "clusters" and len(classes) > clusters and not frame:
        many = f"{len(classes)} classes, but only {clusters} clusters are to be named"
        raise InputError(f"{which} has {many}: raise num_clusters")
    if isinstance(settings.context.num_segments, int) and not frame:
        raise InputError(f"num_segments is for label-free runs: with {which} its classes are the segments, so leave it out")
    return mask.astype(np.int64)
