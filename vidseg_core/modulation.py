"""Stage 4, the network's part: what the model predicts with lambda added inside masks, and without.

This is one unguided step at one noise level. Everything before the modulated attention is the same with and without masks: it
runs once and is replayed. Masks that lie apart are modulated together. The paper's schedule, mask by mask, is in `paper`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import networkx
import torch
from jaxtyping import Bool, Float, Int, Integer
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.models.backbone import Backbone, Condition
from vidseg_core.models.hooks import Recording
from vidseg_core.settings import UpsampleSettings


@dataclass(frozen=True)
class Group:
    """n modulated images: in frame `frames[i]` the cells of `masks[i]` are shifted, and the response at a cell belongs to label
    `owners[i]`."""

    frames: Int[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]
    owners: Integer[Tensor, "n h w"]

    def __getitem__(self, rows: slice | Tensor) -> "Group":
        return Group(self.frames[rows], self.masks[rows], self.owners[rows])

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Prediction:
    """Clean latents [n, c, h, w] predicted with +lambda inside the masks of a group, and with -lambda or, one-sided, without
    modulation."""

    group: Group
    plus: Float[Tensor, "n c h w"]
    minus: Float[Tensor, "n c h w"]


@dataclass(frozen=True)
class NoisyWindow:
    """Frames ready to be denoised: their clean latents, unit noise for each, and their conditioning."""

    latents: Float[Tensor, "f c h w"]
    noise: Float[Tensor, "f c h w"]
    condition: Condition | None


@dataclass(frozen=True)
class ModulatedPass:
    """The step over some frames, of which the pass without modulation was recorded up to the modulated block and ended in
    `plain`."""

    backbone: Backbone
    noisy: Float[Tensor, "f c h w"]
    condition: Condition | None
    recording: Recording
    plain: Float[Tensor, "f c h w"]
    settings: UpsampleSettings

    def predict(self, group: Group, signs: tuple[int, ...]) -> list[Float[Tensor, "n c h w"]]:
        """The clean latents of a group for each sign of lambda; all signs share one batch."""
        s = self.settings
        rows = torch.cat([group.frames] * len(signs))
        shift = torch.cat([sign * group.masks.float() for sign in signs]) * s.strength
        edits = self.backbone.modulation(s.block, shift, len(self.noisy))
        with self.backbone.replay(self.recording, rows), self.backbone.edit(edits):
            clean = self.backbone.denoise(self.noisy[rows], s.timestep, condition=self.condition)
        return list(clean.chunk(len(signs)))


def predict_masks(
    backbone: Backbone, window: NoisyWindow, cells: Integer[Tensor, "f h w"], settings: UpsampleSettings
) -> Iterator[Prediction]:
    """Predictions for all labels of the cells, as many at a time as a pass holds."""
    noisy, frames = window.latents + backbone.sigma(settings.timestep) * window.noise, len(cells)

    def record(part: slice) -> tuple[slice, ModulatedPass]:
        with backbone.record(settings.block) as recording:
            plain = backbone.denoise(noisy[part], settings.timestep, condition=window.condition)
        return part, ModulatedPass(backbone, noisy[part], window.condition, recording, plain, settings)

    signs = (1,) if settings.difference == "one-sided" else (1, -1)
    for part, step in backbone.in_pieces(frames, frames, settings.chunk, record):
        group = plan(cells[part], settings.separation, backbone.coupled)

        def predict(batch: slice, step: ModulatedPass = step, group: Group = group, first: int = part.start) -> Prediction:
            plus, *minus = step.predict(group[batch], signs)
            minus = minus[0] if minus else step.plain[group.frames[batch]]
            here = group.masks[batch].flatten(1).any(1)  # rows without a cell only keep a video model's window whole
            found = group[batch][here]
            return Prediction(Group(found.frames + first, found.masks, found.owners), plus[here], minus[here])

        yield from backbone.in_pieces(len(group), frames, settings.chunk // len(signs), predict)


def plan(cells: Integer[Tensor, "f h w"], separation: int | None, coupled: bool) -> Group:
    """Everything to modulate in a window. Masks of one frame that are more than `separation` cells apart go together;
    None: each mask alone. If frames are `coupled`, masks keep their colour through the window, and each colour takes a run of
    f rows, one for each frame, whether it has a cell there or not."""
    colours = [colour(cells, separation)] * len(cells) if coupled else [colour(c[None], separation) for c in cells]
    rows = []
    for frame, (labels, of) in enumerate(zip(cells.cpu(), colours, strict=True)):
        for number in range(max(of.values()) + 1):
            chosen = torch.tensor([name for name, c in of.items() if c == number], dtype=labels.dtype)
            mask = torch.isin(labels, chosen)
            if coupled or mask.any():
                rows.append((number if coupled else 0, frame, mask, owners(labels, mask)))
    rows.sort(key=lambda row: row[0])  # stable: the frames of a colour stay in order
    columns = [torch.tensor([r[1] for r in rows]), torch.stack([r[2] for r in rows]), torch.stack([r[3] for r in rows])]
    return Group(*(c.to(cells.device) for c in columns))


def colour(cells: Integer[Tensor, "f h w"], separation: int | None) -> dict[int, int]:
    """A colour for each label such that two of one colour are more than `separation` cells apart (the larger of rows and
    columns) in every frame: greedy graph colouring, most constrained label first (DSATUR, Brelaz 1979)."""
    names = cells.unique()
    if separation is None:
        return {int(name): number for number, name in enumerate(names)}
    masks = (cells[None] == names[:, None, None, None]).float()
    reach = F.max_pool2d(masks, 2 * separation + 1, 1, separation)
    close = torch.einsum("kfhw,lfhw->kl", reach, masks) > 0
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(names)))
    graph.add_edges_from((a, b) for a, b in close.nonzero().tolist() if a < b)
    found = networkx.greedy_color(graph, strategy="saturation_largest_first")
    return {int(names[n]): number for n, number in found.items()}


def owners(labels: Integer[Tensor, "h w"], mask: Bool[Tensor, "h w"]) -> Integer[Tensor, "h w"]:
    """For each cell the label of the nearest cell of the mask (Euclidean); the labels themselves for an empty mask."""
    if not mask.any():
        return labels
    y, x = distance_transform_edt(~mask.numpy(), return_distances=False, return_indices=True)
    return labels[torch.from_numpy(y).long(), torch.from_numpy(x).long()]
