"""Stage 2 after the first window. Without a mask, something that enters the clip and resembles nothing in the context becomes a
segment of its own; and masks of later frames add to the context and correct it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vidseg_core.context import SAME, SceneContext, nearest_references, stratified_draw

FAR = 1.15
"""A token is far from the context beyond this times the distance up to which tokens are alike."""
SAID = 1.5
"""A token takes the class of a masked cell up to this times their `spacing`: distant frames are less alike than neighbours.
Measured on three clips: at 1, segments stay that the mask shows to be wrong; from 1.5 to 3 it makes no difference."""
LEAST = 0.01
"""The share of a window's tokens that must be far and alike: a square of a tenth of the frame's height and width."""
MOST = 0.5
"""If a larger share is far, the window shows another scene, and the context takes in all of it."""
STAY = 128
"""Tokens of a born segment that stay, at most."""
TWINS = 4
"""How often the same token may be remembered: in what the clip began with and again in the last window, at the least twice."""
SAMPLE = 1024
"""Remembered tokens whose distances among each other are looked at."""
GROUPED = 4096
"""Strangers whose distances among each other are looked at, at most: bounds memory."""


@dataclass(frozen=True, eq=False)
class Strangers:
    """Tokens of the last window that are far from everything in the context, which leaves them out; and for how many
    successive windows enough of them have been alike."""

    tokens: Float[Tensor, "n d"]
    windows: int


def meet(before: SceneContext, after: SceneContext, known: Strangers, windows: int) -> tuple[SceneContext, Strangers]:
    """The context after a window, without its strangers, and the strangers; `known` are those of the window before. Strangers
    that have stayed for so many `windows` become a label: the context takes them in, some of them for good."""
    tokens, labels = after.tokens[after.anchored :], after.labels[after.anchored :]
    alike = reach(before)
    strange = _nearest(tokens, before.tokens) > FAR * alike
    if strange.float().mean() > MOST:
        return after, Strangers(tokens[:0], 0)
    thing = strange.clone()
    thing[strange] = largest_group(tokens[strange], alike)
    seen = 0
    if thing.sum() >= max(1, LEAST * len(tokens)):
        again = len(known.tokens) and (_nearest(tokens[thing], known.tokens) <= alike).float().mean() >= 0.5
        seen = known.windows + 1 if again else 1
    if seen < windows:
        return _remember(after, tokens[~strange], labels[~strange], 0), Strangers(tokens[strange], seen)
    labels, kept = torch.where(thing, after.count, labels), thing | ~strange
    stays = torch.zeros_like(thing)
    stays[thing.nonzero()[:: 1 + int(thing.sum()) // STAY, 0]] = after.anchored > 0
    order = torch.cat([stays.nonzero()[:, 0], (kept & ~stays).nonzero()[:, 0]])  # right behind what the clip began with
    grown = _remember(after, tokens[order], labels[order], int(stays.sum()))
    return replace(grown, count=after.count + 1), Strangers(tokens[~kept], 0)


def teach(context: SceneContext, tokens: Float[Tensor, "n d"], labels: Int[Tensor, " n"], count: int) -> SceneContext:
    """The context, now of `count` labels, after a mask has named the cells of a frame; label -1: the mask leaves a cell open.

    A remembered token that resembles cells of that frame takes their label if the nearest of them agree: the later statement
    counts, and corrects the context. With memory="anchored" these cells stay for good; their number is bounded.
    """
    s, began = context.settings, context.anchored
    squared, nearest = nearest_references(context.tokens, tokens, s.neighbours)
    said = labels[nearest]
    certain = (squared[:, 0].sqrt() <= SAID * spacing(context)) & (said == said[:, :1]).all(1) & (said[:, 0] >= 0)
    known, named = torch.where(certain, said[:, 0], context.labels), labels >= 0
    order = torch.cat([known[:began], labels[named]])
    limit = s.max_context and max(s.max_context // 2, count * s.neighbours)
    kept = stratified_draw(order, limit, s.neighbours, context.seed)
    tokens = torch.cat([torch.cat([context.tokens[:began], tokens[named]])[kept], context.tokens[began:]])
    labels, anchored = torch.cat([order[kept], known[began:]]), len(kept) if s.memory == "anchored" else 0
    return replace(context, tokens=tokens, labels=labels, count=count, anchored=anchored)


def _remember(context: SceneContext, tokens: Tensor, labels: Tensor, stay: int) -> SceneContext:
    """The context with these tokens in place of the window's; the first `stay` of them become anchored."""
    began = context.anchored
    tokens, labels = torch.cat([context.tokens[:began], tokens]), torch.cat([context.labels[:began], labels])
    return replace(context, tokens=tokens, labels=labels, anchored=began + stay)


def reach(context: SceneContext) -> float:
    """The distance up to which tokens count as alike: `spacing`, but at least the median distance to the nearest token of
    another label, divided by `FAR` (in a still picture, nearly all tokens equal their nearest one)."""
    sample = _sample(context)
    tokens, labels = context.tokens[sample], context.labels[sample]
    apart = torch.cdist(tokens, tokens).masked_fill(labels[:, None] == labels, float("inf")).amin(1)
    apart = apart[apart.isfinite()]  # nothing is left where all have one label
    return max(spacing(context), float(apart.median()) / FAR if len(apart) else 0.0)


def spacing(context: SceneContext) -> float:
    """The distance within which 99 % of the remembered tokens have another one."""
    squared, _ = nearest_references(context.tokens[_sample(context)], context.tokens, TWINS)
    return float(torch.quantile(squared.where(squared > SAME, squared.amax(1, keepdim=True)).amin(1).sqrt(), 0.99))


def _sample(context: SceneContext) -> Int[Tensor, " n"]:
    return torch.linspace(0, len(context.tokens) - 1, min(SAMPLE, len(context.tokens))).long().to(context.tokens.device)


def largest_group(tokens: Float[Tensor, "n d"], near: float) -> Bool[Tensor, " n"]:
    """The largest group of tokens that are connected by steps of at most `near`."""
    if not len(tokens):
        return torch.zeros(0, dtype=torch.bool, device=tokens.device)
    some = tokens[:: 1 + len(tokens) // GROUPED]
    _, group = connected_components(csr_matrix((torch.cdist(some, some) <= near).cpu().numpy()), directed=False)
    group = torch.from_numpy(group).long().to(tokens.device)
    largest = group == torch.bincount(group).argmax()
    return largest if len(some) == len(tokens) else _nearest(tokens, some[largest]) <= near


def _nearest(tokens: Float[Tensor, "n d"], references: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    return nearest_references(tokens, references, 1)[0][:, 0].sqrt()
