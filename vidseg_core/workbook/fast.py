"""What makes stage 4 fast, by hand: masks that share a pass, and what runs once for a frame and is replayed."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vidseg_core.common import enlarge
from vidseg_core.io.overlay import Drawing, blend, panel
from vidseg_core.modulation import plan
from vidseg_core.workbook.upsampling import Bench
from vidseg_core.workbook.widgets import Drawn, Explorer, levels

Frame = UInt8[np.ndarray, "H W 3"]
Cells = Integer[np.ndarray, "h w"]
Pixels = Integer[np.ndarray, "H W"]


@dataclass(frozen=True)
class Coloured:
    """Stage 4 at one `separation`: `passes`, the image of the frame that each cell is modulated in; the labels; seconds."""

    passes: Cells
    labels: Pixels
    seconds: float


def colourings(bench: Bench, separations: Sequence[int | None]) -> dict[int | None, Coloured]:
    """The frame with masks more than so many cells apart modulated together; None: each alone."""
    runs, cells = {}, torch.from_numpy(bench.cells[None])
    bench.run(replace(bench.settings.upsample, separation=0))  # the first run is slower than those that follow
    for separation in separations:
        masks = plan(cells, separation, coupled=False).masks
        found = bench.run(replace(bench.settings.upsample, separation=separation))
        runs[separation] = Coloured(masks.long().argmax(0).numpy(), *found)
    return runs


def explore_colouring(bench: Bench, runs: Mapping[int | None, Coloured]) -> Explorer:
    """Which masks share a pass, for each separation in `runs` (None among them), and what that changes and saves. The slider's
    values are "each alone" and "0 cells", "1 cells", ...

    `shown` has "passes", "labels" [H, W], "agreement" (share of pixels as with each mask alone) and "seconds".
    """
    alone = runs[None]
    curve = np.array([(run.passes.max() + 1, (run.labels == alone.labels).mean()) for run in runs.values()])
    named = {"each alone" if s is None else f"{s} cells": run for s, run in runs.items()}

    def draw(separation: str) -> Drawn:
        run = named[separation]
        passes, other = int(run.passes.max()) + 1, run.labels != alone.labels
        figure = show_colouring(bench.frame, bench.cells, run.passes, run.labels, other, curve)
        return figure, {"passes": passes, "labels": run.labels, "agreement": 1 - float(other.mean()), "seconds": run.seconds}

    own = f"{bench.settings.upsample.separation} cells"
    return Explorer(draw, separation=levels("separation", own if own in named else "each alone", list(named)))


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


def replay_error(bench: Bench) -> float:
    """Largest difference between a whole pass and one that starts from a recording of it, in latents: 0 if replay is exact."""
    noisy, own = bench.backbone.encode(bench.image), bench.settings.upsample
    with bench.backbone.record(own.block) as record:
        whole = bench.backbone.denoise(noisy, own.timestep)
    with bench.backbone.replay(record, torch.zeros(1, dtype=torch.long)):
        return float((bench.backbone.denoise(noisy, own.timestep) - whole).abs().max())


def time_of_parts(bench: Bench, repeats: int = 3) -> list[tuple[str, float, bool]]:
    """(module, seconds, whether it runs before the modulated layer) for the parts of one UNet pass in the order of running; the
    fastest of some passes. Parts are as large as can be without the modulated layer's falling inside one."""
    unet, own = bench.backbone.unet, bench.settings.upsample
    noisy = bench.backbone.encode(bench.image)
    with bench.backbone.record(own.block) as record:
        bench.backbone.denoise(noisy, own.timestep)
    live = _after(unet, "", set(record.outputs))
    begun, seconds, order = {}, {}, []

    def start(path: str) -> None:
        begun[path] = time.perf_counter()
        if path not in order:
            order.append(path)

    def stop(path: str) -> None:
        seconds[path] = min(seconds.get(path, np.inf), time.perf_counter() - begun[path])

    hooks = []
    for path in {*record.outputs, *live}:
        module = unet.get_submodule(path)
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: start(path)))
        hooks.append(module.register_forward_hook(lambda *_, path=path: stop(path)))
    try:
        for _ in range(repeats):
            bench.backbone.denoise(noisy, own.timestep)
    finally:
        for hook in hooks:
            hook.remove()
    return [(path, seconds[path], path in record.outputs) for path in order]


def _after(module: torch.nn.Module, path: str, recorded: set[str]) -> list[str]:
    """The largest modules that hold no recorded one and are not recorded themselves."""
    if path in recorded:
        return []
    if path and not any(r.startswith(path + ".") for r in recorded):
        return [path]
    return [p for name, child in module.named_children() for p in _after(child, f"{path}.{name}".lstrip("."), recorded)]


def show_replay(parts: Sequence[tuple[str, float, bool]], masks: int) -> Figure:
    """Where the time of a UNet pass goes, from left to right in the order of running: `parts` are (module, seconds, whether it
    runs before the modulated layer). Above one pass for the frame, below one for each mask and sign, `masks` of them."""
    figure = Drawing(figsize=(9, 2.6), layout="constrained")
    axes, at = figure.subplots(), 0.0
    total = sum(seconds for _, seconds, _ in parts)
    for name, seconds, before in parts:
        width = 100 * seconds / total
        axes.barh(1, width, left=at, color="0.75" if before else "0.35", edgecolor="white", height=0.62)
        if before:
            axes.barh(0, width, left=at, color="none", edgecolor="0.75", linestyle=":", height=0.62)
        else:
            axes.barh(0, width, left=at, color="0.35", edgecolor="white", height=0.62)
        short, colour = re.sub("_blocks?|entions", "", name), "black" if before else "white"
        if width > 0.9 * len(short):
            axes.text(at + width / 2, 1, short, ha="center", va="center", fontsize=8, color=colour)
        at += width
    later = sum(seconds for _, seconds, before in parts if not before) / total
    axes.set_yticks([1, 0], ["once for the frame", f"{2 * masks} times: each\nmask and sign"], fontsize=9)
    axes.set_xlabel("share of the time of a UNet pass, %", fontsize=9)
    axes.set_xlim(0, 100)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    labels = "before the modulated layer: recorded, and replayed", f"after it: {later:.0%} of a pass"
    handles = [Patch(color=c, label=label) for c, label in zip(("0.75", "0.35"), labels, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure
