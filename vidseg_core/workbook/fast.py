"""What makes stage 4 fast, by hand: masks that share a pass, and what runs once for a frame and is replayed."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.io.overlay import Drawing, blend, panel
from vidseg_core.models.backbone import Backbone
from vidseg_core.modulation import plan
from vidseg_core.pipeline import VidSeg
from vidseg_core.workbook.widgets import Drawn, Explorer, levels

Frame = UInt8[np.ndarray, "H W 3"]
Cells = Integer[np.ndarray, "h w"]
Pixels = Integer[np.ndarray, "H W"]


@dataclass(frozen=True)
class Part:
    """A module of the UNet, its floating-point operations in one pass, in billions, and whether it runs before the modulated
    layer."""

    path: str
    operations: float
    before: bool


@dataclass(frozen=True)
class Coloured:
    """Stage 4 at one `separation`: `passes`, the image of the frame that each cell is modulated in, and the labels."""

    passes: Cells
    labels: Pixels


def colourings(vidseg: VidSeg, frame: Frame, votes: Votes, separations: Sequence[int | None]) -> dict[int | None, Coloured]:
    """The frame with masks more than so many cells apart modulated together; None: each alone. The cells of `votes` are those
    of the modulated layer."""
    runs = {}
    for separation in separations:
        masks = plan(votes.labels, separation, coupled=False).masks
        settings = replace(vidseg.settings, upsample=replace(vidseg.settings.upsample, separation=separation))
        labels = VidSeg(vidseg.backbone, settings).enlarge(frame[None], votes)[0]
        runs[separation] = Coloured(masks.long().argmax(0).cpu().numpy(), labels)
    return runs


def explore_colouring(frame: Frame, cells: Cells, runs: Mapping[int | None, Coloured]) -> Explorer:
    """Which masks share a pass, for each separation in `runs` (None among them), and what that changes. The slider's values
    are "each alone" and "0 cells", "1 cell", "2 cells", ...

    `shown` has "passes", "labels" [H, W] and "agreement" (share of pixels as with each mask alone).
    """
    alone = runs[None]
    curve = np.array([(run.passes.max() + 1, (run.labels == alone.labels).mean()) for run in runs.values()])
    named = {"each alone" if s is None else f"{s} cell{'s' * (s != 1)}": run for s, run in runs.items()}

    def draw(separation: str) -> Drawn:
        run = named[separation]
        passes, other = int(run.passes.max()) + 1, run.labels != alone.labels
        figure = show_colouring(frame, cells, run.passes, run.labels, other, curve)
        return figure, {"passes": passes, "labels": run.labels, "agreement": 1 - float(other.mean())}

    return Explorer(draw, separation=levels("separation", "1 cell", list(named)))


def show_colouring(
    frame: Frame,
    cells: Integer[np.ndarray, "h w"],
    passes: Integer[np.ndarray, "h w"],
    labels: Integer[np.ndarray, "H W"],
    other: Bool[np.ndarray, "H W"],
    curve: Float[np.ndarray, "n 2"],
) -> Figure:
    """The masks of a frame, the pass that each is modulated in, the labels, the pixels that get another label if each mask is
    modulated alone (black), and `curve`, (passes, share of the other pixels) of several ways to share passes."""
    size, count = frame.shape[:2], int(passes.max()) + 1
    figure = Drawing(figsize=(9, 6 * size[0] / size[1] + 0.9), layout="constrained")
    axes = figure.subplots(2, 3)
    panel(axes[0, 0], frame, "the frame")
    panel(axes[0, 1], blend(frame, enlarge(cells, size)), f"{len(np.unique(cells))} masks, in cells")
    panel(axes[0, 2], enlarge(passes, size), f"the pass of each: {count} passes", cmap="gray", vmin=-1, vmax=max(count - 1, 1))
    panel(axes[1, 0], blend(frame, labels), "labels")
    faded = (frame // 4 + 170).astype(np.uint8)
    panel(axes[1, 1], np.where(other[..., None], 0, faded).astype(np.uint8), f"otherwise than each alone: {other.mean():.1%}")
    axes[1, 2].plot(curve[:, 0], 100 * curve[:, 1], "o-", color="black", markersize=4)
    axes[1, 2].plot(
        count, 100 - 100 * other.mean(), "o", color="black", markersize=11, markerfacecolor="none", markeredgewidth=2
    )
    axes[1, 2].set_xlabel("passes", fontsize=9)
    axes[1, 2].set_title("% of pixels as with each alone", fontsize=10)
    axes[1, 2].grid(alpha=0.3)
    return figure


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count floating-point operations within the block, those of attention too: torch does not count its fused kernels."""
    with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        yield counter


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of `work()`, in billions; a multiplication and an addition are two."""
    with counting() as counter:
        work()
    return counter.get_total_flops() / 1e9


def operations_of_parts(backbone: Backbone, noisy: Float[Tensor, "1 c h w"], timestep: float, block: str) -> list[Part]:
    """The parts of one UNet pass in the order of running, as large as can be without the modulated `block`'s falling inside
    one."""
    unet = backbone.unet
    with backbone.record(block) as record:
        backbone.denoise(noisy, timestep)
    begun, parts, hooks = {}, {}, []
    with counting() as counter:

        def start(path: str) -> None:
            begun[path] = counter.get_total_flops()

        def stop(path: str) -> None:
            parts[path] = Part(path, (counter.get_total_flops() - begun[path]) / 1e9, path in record.outputs)

        for path in (*record.outputs, *_after(unet, "", set(record.outputs))):
            module = unet.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(lambda *_, path=path: start(path)))
            hooks.append(module.register_forward_hook(lambda *_, path=path: stop(path)))
        try:
            backbone.denoise(noisy, timestep)
        finally:
            for hook in hooks:
                hook.remove()
    return list(parts.values())


def _after(module: torch.nn.Module, path: str, recorded: set[str]) -> list[str]:
    """The largest modules that run by themselves, hold no recorded one and are not recorded."""
    if path in recorded:
        return []
    if path and not isinstance(module, torch.nn.ModuleList) and not any(r.startswith(path + ".") for r in recorded):
        return [path]
    return [p for name, child in module.named_children() for p in _after(child, f"{path}.{name}".lstrip("."), recorded)]


def show_replay(parts: Sequence[Part], masks: int) -> Figure:
    """Where the operations of a UNet pass go, from left to right in the order of running. Above one pass for the frame, below
    one for each of `masks` masks."""
    figure = Drawing(figsize=(9, 2.6), layout="constrained")
    axes, at = figure.subplots(), 0.0
    total = sum(part.operations for part in parts)
    for part in parts:
        width = 100 * part.operations / total
        axes.barh(1, width, left=at, color="0.75" if part.before else "0.35", edgecolor="white", height=0.62)
        again = (
            {"color": "none", "edgecolor": "0.75", "linestyle": ":"} if part.before else {"color": "0.35", "edgecolor": "white"}
        )
        axes.barh(0, width, left=at, height=0.62, **again)
        short, colour = _short(part.path), "black" if part.before else "white"
        if width > 0.9 * len(short):
            axes.text(at + width / 2, 1, short, ha="center", va="center", fontsize=8, color=colour)
        at += width
    _mark_lambda(axes, parts, total)
    later = sum(part.operations for part in parts if not part.before) / total
    axes.set_yticks([1, 0], ["once for the frame", f"{masks} times:\nonce for each mask"], fontsize=9)
    axes.set_xlabel("share of the operations of a UNet pass, %", fontsize=9)
    axes.set_xlim(0, 100)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    labels = "before the modulated layer: recorded, and replayed", f"after it: {later:.0%} of a pass"
    handles = [Patch(color=c, label=label) for c, label in zip(("0.75", "0.35"), labels, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def _mark_lambda(axes: Axes, parts: Sequence[Part], total: float) -> None:
    """A line where λ is added, and between the rows of bars a bracket under the block in which that is."""
    ends = np.cumsum([100 * part.operations / total for part in parts])
    last = max(n for n, part in enumerate(parts) if part.before)
    block = ".".join(parts[last].path.split(".")[:2])
    of_block = [n for n, part in enumerate(parts) if part.path.startswith(f"{block}.")] or [last]
    left, right = ends[of_block[0]] - 100 * parts[of_block[0]].operations / total, ends[of_block[-1]]
    axes.plot([left, left, right, right], [0.62, 0.55, 0.55, 0.62], color="black", linewidth=1)
    axes.text((left + right) / 2, 0.44, f"{_short(block)}, λ at the line", ha="center", va="center", fontsize=9)
    axes.vlines(ends[last], 0.55, 1.4, color="black", linewidth=2)


def _short(path: str) -> str:
    return re.sub("_blocks?|entions", "", path)
