"""Masked modulation itself: which masks a pass modulates, and the passes of the two strategies.

"direct" is one unguided step with replay and colouring, "reference" the paper's schedule, mask by mask.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import networkx
import torch
from jaxtyping import Bool, Float, Int, Integer
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.features import euler_step
from vidseg_core.models.backbone import Backbone, Condition
from vidseg_core.models.hooks import Recording
from vidseg_core.settings import UpsampleSettings


@dataclass(frozen=True)
class Group:
    """n modulated images: in frame `frames[i]` the cells of `masks[i]` are shifted, and the response at a cell belongs to label
    `owners[i]`. `share` is how much of all the work over a window each image is, in frames."""

    frames: Int[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]
    owners: Integer[Tensor, "n h w"]
    share: Float[Tensor, " n"]

    def __getitem__(self, rows: slice | Tensor) -> "Group":
        return Group(self.frames[rows], self.masks[rows], self.owners[rows], self.share[rows])

    def __len__(self) -> int:
        return len(self.frames)


Pair = tuple[Group, Tensor, Tensor]
"""(group, plus [n, c, h, w], minus [n, c, h, w]): clean latents predicted with +lambda and -lambda."""

Steps = tuple[list[Tensor], list[dict[str, Tensor]], Recording]
"""What `unmodulated_steps` gives: latents and attention of each step, and the recording of the first."""


def plan(cells: Integer[Tensor, "f h w"], separation: int | None, coupled: bool) -> Group:
    """All that has to be modulated in a window. Masks of one frame that are more than `separation` cells apart go together;
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
    here = torch.tensor([bool(mask.any()) for _, _, mask, _ in rows]).float()
    columns = [torch.tensor([r[1] for r in rows]), torch.stack([r[2] for r in rows]), torch.stack([r[3] for r in rows])]
    return Group(*(c.to(cells.device) for c in columns), here * len(cells) / here.sum())


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


def direct_pairs(
    backbone: Backbone, latents: Tensor, noise: Tensor, refined: Tensor, s: UpsampleSettings, condition: Condition | None = None
) -> Iterator[Pair]:
    """One unguided step at one noise level. What precedes the modulated attention is the same for every mask and both
    signs: it is run once and replayed."""
    noisy = latents + backbone.sigma(s.timestep) * noise

    def plain(part: slice) -> tuple[slice, Recording]:
        with backbone.record(s.block) as record:
            backbone.denoise(noisy[part], s.timestep, condition=condition)
        return part, record

    for part, record in backbone.in_pieces(len(noisy), s.chunk, plain):
        group = plan(refined[part], s.separation, backbone.coupled)
        unit = len(noisy) if backbone.coupled else 1  # what a pass cannot be divided below
        run = partial(_modulated, backbone, noisy[part], group, record, s, condition, part.start, unit)
        yield from backbone.pieces.run(len(group) // unit, max(1, s.chunk // (2 * unit)), run)


def _modulated(
    backbone: Backbone, x: Tensor, group: Group, record: Recording, s: UpsampleSettings, condition: Condition | None,
    first: int, unit: int, batch: slice,
) -> Pair:  # fmt: skip
    """One pass: the units of `batch`, both signs. Rows of frames without a cell to modulate only keep a window whole."""
    group = group[slice(batch.start * unit, batch.stop * unit)]
    rows = torch.cat([group.frames, group.frames])
    shift = torch.cat([group.masks.float(), -group.masks.float()]) * s.strength
    with backbone.replay(record, rows), backbone.edit(backbone.modulation(s.block, shift, len(x))):
        plus, minus = backbone.denoise(x[rows], s.timestep, condition=condition).chunk(2)
    here = group.masks.flatten(1).any(1)
    found = group[here]
    return Group(found.frames + first, found.masks, found.owners, found.share), plus[here], minus[here]


def reference_pairs(
    backbone: Backbone, latents: Tensor, noise: Tensor, refined: Tensor, s: UpsampleSettings, condition: Condition | None = None
) -> Iterator[Pair]:
    """The paper's schedule (FIELD): from the noising step to the end with guidance, modulated at the first step; queries
    and keys of attention (`backbone.injected`) come from the unmodulated pass, and outside the mask so does the latent."""
    start = latents + backbone.schedule(s.steps)[1][s.start_step] * noise

    def plain(part: slice) -> tuple[slice, Steps]:
        return part, unmodulated_steps(backbone, start[part], condition, s)

    for part, steps in backbone.in_pieces(len(start), s.chunk, plain):
        group = plan(refined[part], None, coupled=False)
        for name in refined[part].unique():
            found = group[(group.owners == name).all(2).all(1)]
            run = partial(_both_signs, backbone, start[part], refined[part] == name, found, steps, s, condition, part.start)
            yield from backbone.in_pieces(len(found), len(found), run)


def _both_signs(
    backbone: Backbone, x: Tensor, cells: Tensor, group: Group, steps: Steps, s: UpsampleSettings,
    condition: Condition | None, first: int, batch: slice,
) -> Pair:  # fmt: skip
    """The paper's schedule for one mask in the frames of `batch`; a video model's window is run whole, whatever these are."""
    plains, recorded, record = steps
    group = group[batch]
    frames = torch.arange(len(cells), device=cells.device) if backbone.coupled else group.frames
    rows = frames if s.scale is None else torch.cat([frames, frames + len(cells)])  # both halves of a guided batch
    kept = [p[frames] for p in plains]
    with_sign = partial(modulated_steps, backbone, x[frames], cells[frames], kept, recorded, (record, rows), condition, s)
    plus, minus = (with_sign(sign)[group.frames if backbone.coupled else slice(None)] for sign in (1, -1))
    return Group(first + group.frames, group.masks, group.owners, group.share), plus, minus


def unmodulated_steps(backbone: Backbone, x: Tensor, condition: Condition | None, settings: UpsampleSettings) -> Steps:
    """The latent after each step from `start_step` on, the outputs of `backbone.injected()` during it, and a recording of the
    first step up to the modulated block."""
    timesteps, sigmas = backbone.schedule(settings.steps)
    latents, recorded, records = [], [], []
    for step in range(settings.start_step, settings.steps):
        with backbone.tap(backbone.injected()) as taps, backbone.record(settings.block) if not records else nullcontext() as r:
            clean = backbone.denoise(x, timesteps[step], settings.scale, condition)
        records.append(r)
        x = euler_step(x, clean, sigmas[step], sigmas[step + 1])
        latents.append(x)
        recorded.append(dict(taps))
    return latents, recorded, records[0]


def modulated_steps(
    backbone: Backbone, x: Tensor, cells: Tensor, plain: list[Tensor], injected: list[dict[str, Tensor]],
    replay: tuple[Recording, Tensor], condition: Condition | None, settings: UpsampleSettings, sign: int,
) -> Tensor:  # fmt: skip
    """The final latent of one mask and sign. `cells` [n, h, w] bool; `plain` is that of these n frames, `injected` and the
    recording are all that `unmodulated_steps` made, the latter with the rows that belong to the n frames: the first step up
    to the modulated block is the same with and without modulation."""
    record, rows = replay
    timesteps, sigmas = backbone.schedule(settings.steps)
    shift = cells.float() * sign * settings.strength
    shift = shift if settings.scale is None else torch.cat([shift, shift])
    mask = F.interpolate(cells[:, None].float(), size=x.shape[-2:], mode="nearest-exact")
    for n, step in enumerate(range(settings.start_step, settings.steps)):
        edits: dict[str, Callable[[Tensor], Tensor]] = {p: partial(_rows, backbone, v, rows) for p, v in injected[n].items()}
        if n == 0:
            edits |= backbone.modulation(settings.block, shift, len(x))
        with backbone.edit(edits), backbone.replay(record, rows) if n == 0 else nullcontext():
            clean = backbone.denoise(x, timesteps[step], settings.scale, condition)
        x = euler_step(x, clean, sigmas[step], sigmas[step + 1])
        if step <= settings.blend_until:
            x = x * mask + plain[n] * (1 - mask)
    return x


def _rows(backbone: Backbone, recorded: Tensor, rows: Tensor, _: Tensor) -> Tensor:
    """The edit that puts what was recorded in the place of an output. Rows are chosen here, so that one layer at a time is
    copied; a video model's are those of whole windows, and its tokens do not lie along the batch."""
    return recorded if backbone.coupled or len(rows) == len(recorded) else recorded[rows]
