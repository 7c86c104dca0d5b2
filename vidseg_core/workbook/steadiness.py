"""What a window's features are worth along a motion that is known: is it found, are features steady, are labels right."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8

from vidseg_core.features import Features
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.video_backbone import VideoBackbone
from vidseg_core.settings import Settings
from vidseg_core.tracks import find_moves
from vidseg_core.workbook.context import Cells, named_cells, read_features
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.motion import stability, true_paths
from vidseg_core.workbook.temporal import without_time

Frames = UInt8[np.ndarray, "f H W 3"]
Moves = Float[np.ndarray, "g n 2"]
GAP = 2
"""Frames from one side of a compared pair to the other. From one frame to the next most points move by less than a cell, and
the answer "nothing moves" would win."""


@dataclass(frozen=True)
class Steadiness:
    """A window's features against the exact answer: `away` in cells, all others in 0..1.

    Of moves over `GAP` frames, `away` is the mean distance of their ends from the truth; `found`, the share that ends within
    half a cell of it along both axes; `pace`, how much of the true motion they make (1: all; the slope of a regression
    through 0). `similarity` is the mean cosine of a point
    with itself a frame later; `right`, the share of cells, frame 0 left out, that get their true class; `kept`, the share of
    cells that have the same class a frame later. Points that are hidden then do not count.
    """

    away: float
    found: float
    pace: float
    similarity: float
    right: float
    kept: float


def judge(features: Features, clip: GeneratedClip) -> Steadiness:
    """Features of the clip's first frames; the first mask names the cells."""
    cells = named_cells(features, clip.labels[0], Settings())
    moves = [find_moves(features.match[[n, n + GAP]])[0][0] for n in range(len(cells) - GAP)]
    return _judge(torch.stack(moves).numpy(), features.match, cells, clip)


def judge_still(features: Features, clip: GeneratedClip) -> Steadiness:
    """What the answer "nothing moves" is worth: no move at all, and the features and labels of frame 0 for each frame."""
    match, frames = features.match, len(features.match)
    cells = named_cells(Features(features.context[:1], match[:1]), clip.labels[0], Settings())
    none = np.zeros((frames - GAP, cells[0].size, 2))
    return _judge(none, match[:1].expand_as(match), np.repeat(cells, frames, 0), clip)


def _judge(moves: Moves, match: torch.Tensor, cells: Cells, clip: GeneratedClip) -> Steadiness:
    frames, grid = len(cells), cells.shape[1:]
    similar = float(along_motion(match, clip).mean())
    right = (cells == at_centres(clip.labels[:frames], grid))[1:].mean()
    kept = stability(cells, clip.flow[: frames - 1], clip.visible[: frames - 1]).mean()
    return Steadiness(*judge_moves(moves, true_moves(clip, frames, grid)), similar, float(right), float(kept))


def judge_moves(moves: Moves, truth: Moves) -> tuple[float, float, float]:
    """`away`, `found` and `pace` of a `Steadiness`; `truth` is NaN where a point is hidden."""
    seen = np.isfinite(truth[..., 0])
    moves, truth = moves[seen], truth[seen]
    away = np.linalg.norm(moves - truth, axis=-1).mean()
    found = (np.abs(moves - truth).max(-1) <= 0.5).mean()
    return float(away), float(found), float((moves * truth).sum() / np.square(truth).sum())


def true_moves(clip: GeneratedClip, frames: int, grid: tuple[int, int], gap: int = GAP) -> Moves:
    """Where the centre of each cell goes within `gap` frames, (dy, dx) in cells, from each of the first frames but the last
    `gap`; NaN where it is hidden on the way or leaves the picture."""
    side = np.array(clip.labels.shape[1:]) / grid
    centres = (np.indices(grid).reshape(2, -1).T + 0.5) * side - 0.5
    ends = [true_paths(clip, centres, n, n + gap + 1)[:, -1] for n in range(frames - gap)]
    return (np.stack(ends) - centres) / side


def along_motion(match: Float[torch.Tensor, "f h w e"], clip: GeneratedClip, start: int = 0) -> Float[np.ndarray, " g"]:
    """Mean cosine between each cell and the place where it is in the next frame; frame `start` of the clip is the first. Places
    between cells are interpolated; cells that are hidden then do not count."""
    unit, cells = torch.nn.functional.normalize(match, dim=-1), tuple(match.shape[1:3])
    side = np.array(clip.labels.shape[1:]) / cells
    centres = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) for n in cells], indexing="ij"), -1)
    means = []
    for n in range(len(match) - 1):
        flow = np.stack([at_centres(clip.flow[start + n][None, ..., k], cells)[0] / side[k] for k in range(2)], -1)
        where = (centres + flow) / cells * 2 - 1
        grid = torch.from_numpy(where[None, ..., ::-1].copy()).float()
        there = torch.nn.functional.grid_sample(
            unit[n + 1].permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=False
        )[0].permute(1, 2, 0)
        cosine = torch.nn.functional.cosine_similarity(unit[n], there, dim=-1).numpy()
        means.append(cosine[at_centres(clip.visible[start + n][None], cells)[0]].mean())
    return np.array(means)


def shuffled(backbone: Backbone, frames: Frames, seed: int = 0) -> Features:
    """Features of the frames when the model is shown them in another order (the first stays), put back in their own."""
    order = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(len(frames) - 1)])
    found, back = read_features(backbone, frames[order]), torch.from_numpy(np.argsort(order))
    return Features(found.context[back], found.match[back])


def judge_time(backbone: VideoBackbone, clip: GeneratedClip, features: Features) -> dict[str, Steadiness]:
    """`judge` for a video model as it is (its `features` of the clip's first frames), with its sense of time disturbed in three
    ways, and without looking at all."""
    shown = clip.frames[: len(features.match)]
    table = {"as it is": judge(features, clip), "frames shuffled": judge(shuffled(backbone, shown), clip)}
    for name, what in (("no attention over time", "attention"), ("no temporal layer", "all")):
        with backbone.edit(without_time(backbone, what)):
            table[name] = judge(read_features(backbone, shown), clip)
    return table | {"nothing moves": judge_still(features, clip)}


def hide(frames: Frames, frame: int, lost: float, seed: int = 0) -> Frames:
    """The frames with the middle of one of them lost, as in a broken stream: random colours in blocks of 8x8 pixels over a
    rectangle whose sides are `lost` times the picture's."""
    spoiled, size = frames.copy(), frames.shape[1:3]
    part = tuple(slice(round(side * (1 - lost) / 2), round(side * (1 + lost) / 2)) for side in size)
    there = spoiled[frame][part]
    blocks = np.random.default_rng(seed).integers(0, 256, (*(-(-side // 8) for side in there.shape[:2]), 3))
    there[:] = blocks.repeat(8, 0).repeat(8, 1)[: there.shape[0], : there.shape[1]]
    return spoiled


def lost_cells(frames: Frames, spoiled: Frames, frame: int, cells: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Which cells of a frame lie in the part that `hide` took."""
    rows, columns = ((spoiled[frame] != frames[frame]).any(-1).any(axis) for axis in (1, 0))
    return at_centres((rows[:, None] & columns[None])[None], cells)[0]


@dataclass(frozen=True)
class Recovered:
    """Of the lost cells, `right` is the share that gets the true class; `by_class`, the same for the cells of each class alone,
    mean over the classes that are there: a single answer for all cells has 1 / classes."""

    right: float
    by_class: float


def judge_lost(
    cells: Integer[np.ndarray, "h w"], labels: Integer[np.ndarray, "H W"], lost: Bool[np.ndarray, "h w"]
) -> Recovered:
    """Labels of one frame's cells against its true labels, where it is lost."""
    truth = at_centres(labels[None], lost.shape)[0][lost]
    same = cells[lost] == truth
    return Recovered(float(same.mean()), float(np.mean([same[truth == k].mean() for k in np.unique(truth)])))


def guess_lost(
    labels: Integer[np.ndarray, "f H W"], frame: int, lost: Bool[np.ndarray, "h w"]
) -> dict[str, Integer[np.ndarray, "h w"]]:
    """Labels of a frame's cells by two guesses that look at nothing: the class that is most common where the frame is lost, the
    best that a single class can do; and the first mask, as if nothing had moved."""
    first, truth = (at_centres(labels[n][None], lost.shape)[0] for n in (0, frame))
    return {"most common class": np.full(lost.shape, np.bincount(truth[lost]).argmax()), "first mask": first}
