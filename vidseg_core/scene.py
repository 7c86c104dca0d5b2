"""What a clip's labels are called, and the state between its windows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import pad

from vidseg_core import paper
from vidseg_core.births import Strangers, meet
from vidseg_core.common import VOID, InputError
from vidseg_core.context import SceneContext, Votes, kmeans, name_cells
from vidseg_core.correspondence import Overlap
from vidseg_core.features import Features
from vidseg_core.merging import cut_merges, merge_order, natural_cut
from vidseg_core.settings import Settings


@dataclass(frozen=True, eq=False)
class Scene:
    """All that one window hands on to the next, and what the first one settled for the whole clip. It never changes: behind
    each window stands a new one (`after`).

    `context`: what is remembered. `overlap`: the last `reach` frames, which vote on the next window's first. `frames`: how many
    it has seen. `segment` [K]: the number that stands in the results for each label that `context` knows, a class of the mask
    (255 is void) or the segment of a cluster; `names` of those numbers; `merges`: the order in which clusters merge, in
    label-free runs (labels behind these clusters were born later); `strangers`: what may be born; `given`: the names that the
    user gave; `lost`: classes of the mask without a cell or cluster of their own.
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

    def predict(self, features: Features) -> Float[Tensor, "f h w K"]:
        """Stage 2 for one window: the coarse shares of its cells, of the labels that the context knows (`named` translates)."""
        return self.context.predict(features.context)

    def after(self, features: Features, coarse: Float[Tensor, "f h w K"], refined: Float[Tensor, "f h w K"]) -> "Scene":
        """The scene behind a window: the window has become the context, and the coarse votes of its last `reach` frames the
        overlap, so that refinement hears the same over a seam as within a window."""
        match, shares = features.match, coarse
        if self.overlap is not None and len(coarse) < self.reach:
            match, shares = torch.cat([self.overlap.match, match]), torch.cat([self.overlap.shares, shares])
        last = slice(max(0, len(match) - self.reach), None)
        overlap = Overlap(match[last].clone(), shares[last].clone())  # clones, or the whole window stays in memory
        context, strangers = self.context.after(features.context, refined.argmax(-1)), None
        most = 0 if self.merges is None else min(2 * len(self.merges) + 2, VOID)  # as many born as there were, or none
        if (births := self.context.settings.births) and self.context.count < most:
            known = self.strangers or Strangers(context.tokens[:0], 0)
            context, strangers = meet(self.context, context, known, births)
        scene = replace(self, context=context, overlap=overlap, frames=self.frames + len(refined), strangers=strangers)
        return scene if context.count == self.context.count else scene.with_newborn()

    def with_newborn(self) -> "Scene":
        """A number and a name for the label that the context has and the scene lacks; if a segment is called as the user wants
        to call this one, it belongs to that."""
        label, overlap = len(self.segment), replace(self.overlap, shares=pad(self.overlap.shares, (0, 1)))
        name = self.given.get(label, f"segment {label}")
        number = next((n for n, other in self.names.items() if other == name), label)
        names = dict(sorted({**self.names, number: name}.items()))
        return replace(self, segment=np.append(self.segment, number), names=names, overlap=overlap)

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
            raise InputError(f"{num_segments} segments cannot be had: give 1 to {len(self.merges) + 1}, the clusters")
        born, first = np.arange(len(self.merges) + 1, self.context.count), {}
        segment = np.concatenate([cut_merges(self.merges, num_segments), born])
        names = {n: f"segment {n}" for n in np.unique(segment).tolist()} | {VOID: "void"}
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
        numbers = {
            "windows": np.array(self.strangers.windows if self.strangers else 0),
            "anchored": np.array(self.context.anchored),
            "frames": np.array(self.frames),
            "segment": self.segment,
        }
        merges = {} if self.merges is None else {"merges": self.merges}
        return {**{k: a.cpu().numpy() for k, a in arrays.items()}, **numbers, **merges, "words": np.array(json.dumps(words))}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], settings: Settings, device: torch.device | str = "cpu") -> "Scene":
        """The inverse of `state`, under the settings of the run that it comes from. Raises InputError for other arrays."""
        arrays = {
            k: torch.from_numpy(a).to(device)
            for k, a in state.items()
            if k in ("tokens", "labels", "strange") or "overlap" in k
        }
        try:
            count, anchored = len(state["segment"]), int(state["anchored"])
            context = SceneContext(arrays["tokens"], arrays["labels"], count, anchored, settings.context, settings.seed)
            words, frames = json.loads(str(state["words"])), int(state["frames"])
            overlap = Overlap(arrays["overlap_match"], arrays["overlap_shares"]) if "overlap_match" in state else None
            strangers = Strangers(arrays["strange"], int(state["windows"])) if "strange" in state else None
            return cls(context, state["segment"], dict(words["names"]), state.get("merges"), dict(words["given"]),
                       tuple(words["lost"]), settings.refine.reach, overlap, frames, strangers)  # fmt: skip
        except KeyError as error:
            raise InputError(f"the saved scene lacks {error}: it is damaged or of another version, so start anew") from error


def open_scene(
    features: Features, settings: Settings, first_mask: Integer[np.ndarray, "H W"] | None, names: dict[int, str] | None
) -> Scene:
    """Fill the context: with frame 0 and its classes if there is a mask, as the paper does; else with the clusters of the whole
    first window, lest those that are not in frame 0 vanish. Raises InputError for a name of what is not there."""
    if first_mask is not None:
        return _named_scene(features, settings, first_mask, names or {})
    tokens = features.context.flatten(0, 2)
    clusters = kmeans(tokens, settings.context, settings.seed)
    count = len(clusters.sizes)  # the last may be empty, in a still picture
    context = SceneContext.begin(tokens, clusters.labels, settings.context, settings.seed, count)
    (merges, costs), names = merge_order(clusters, settings.context.size_weight), names or {}
    count = natural_cut(costs) if settings.context.num_segments == "auto" else settings.context.num_segments
    scene = Scene(context, np.arange(context.count), {}, merges, reach=settings.refine.reach).cut(count)
    later = range(context.count, 2 * context.count) if settings.context.births else ()
    if unknown := sorted(set(names) - (set(scene.names) - {VOID}) - set(later)):
        begins = sorted(set(scene.names) - {VOID})
        raise InputError(f"there is a name for segment {unknown[0]}, but this run begins with {begins}")
    return replace(scene, given=names).cut(count)


def _named_scene(features: Features, settings: Settings, mask: np.ndarray, names: dict[int, str]) -> Scene:
    """The scene that a first-frame mask describes; what lies on void alone stays void."""
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


def check_mask(mask: np.ndarray, size: tuple[int, int], settings: Settings) -> Integer[np.ndarray, "H W"]:
    """A first-frame mask as int64, or InputError if it does not fit the frames (`size` = (H, W)) or the settings."""
    if mask.shape != tuple(size):
        raise InputError(f"the first-frame mask is {mask.shape}, the frames are {tuple(size)}: resize it (nearest neighbour)")
    if not np.issubdtype(mask.dtype, np.integer):
        raise InputError(f"the first-frame mask holds {mask.dtype}: give whole numbers 0..254, 255 for void")
    if mask.min() < 0 or mask.max() > VOID:
        raise InputError(
            f"the first-frame mask holds {mask.min()} to {mask.max()} as {mask.dtype}: give whole numbers 0..254, 255 for void"
        )
    classes, clusters = np.setdiff1d(mask, [VOID]), settings.context.num_clusters
    if not len(classes):
        raise InputError("the first-frame mask is void everywhere: draw at least one class")
    if set(np.unique(mask)) == {0, VOID}:
        raise InputError("the first-frame mask has class 0 and void (255) only: in a black-and-white mask, save the white as 1")
    if settings.context.naming == "clusters" and len(classes) > clusters:
        raise InputError(
            f"the first-frame mask has {len(classes)} classes, but only {clusters} clusters are to be named: raise num_clusters"
        )
    if isinstance(settings.context.num_segments, int):
        raise InputError(
            "num_segments is for label-free runs: with a first-frame mask its classes are the segments, so leave it out"
        )
    return mask.astype(np.int64)
