"""The paper's schedule against the default: compute, time, memory, disk and labels, on one input in one process.

    make bench                                     both tables and the plot in benchmarks/results
    python benchmarks/bench.py counted             SD 2.1 at its true size, 512x512, K=20: operations, on the meta device
    python benchmarks/bench.py measured [--quick]  the embedded model on the generated clip

Counted: floating-point operations for one frame by torch's own counter (a multiplication and an addition are two), every mask
in every frame; the number of colours is that of the refined maps of the cup clip, K=20. Measured: with guidance off on both
sides, since it doubles every pass of the paper's schedule and of nothing else; the features are those of the default on both
sides. Working size 128x96 and, of 224 frames, the default alone, so that the paper's schedule ends within the hour.
"""

import argparse
import csv
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from architectures import true_backbone
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vidseg_core import (
    ContextSettings,
    PaperSettings,
    Segmentation,
    Settings,
    UpsampleSettings,
    VidSeg,
    generated_clip,
    load_backbone,
    reference_settings,
    sample_clip,
    save_segmentation,
)
from vidseg_core.evaluation.metrics import confusion, mean_iou
from vidseg_core.models import hooks
from vidseg_core.models.backbone import Backbone
from vidseg_core.modulation import plan

RESULTS = Path(__file__).parent / "results"
SIZE = (96, 128)
STAGES = ("features", "context", "refine", "upsample")


def operations(work: Callable[[], object]) -> float:
    """Tera-operations."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def colours_per_frame(num_clusters: int, separation: int | None) -> float:
    """Of the first window of the cup clip, with the embedded model."""
    settings = Settings(context=ContextSettings(num_clusters=num_clusters, num_segments=None), working_size=(240, 320))
    vidseg = VidSeg(load_backbone("tiny", device="cpu"), settings)
    cells = torch.from_numpy(next(vidseg.cells(sample_clip("cup").frames[:14])).refined)
    return len(plan(cells, separation, coupled=False)) / len(cells)


def counted(num_masks: int = 20) -> None:
    """Print operations for one frame of SD 2.1: network, decoder, both, and the ratios."""
    backbone, reference = true_backbone("sd21-base", "meta"), reference_settings("sd21-base")
    settings, paper = reference.upsample, reference.paper
    x, image = torch.empty(1, 4, 64, 64, device="meta"), torch.empty(1, 3, 512, 512, device="meta")
    with backbone.record(settings.block) as record, torch.inference_mode():
        backbone.denoise(x, settings.timestep)
    whole, decode = operations(lambda: backbone.denoise(x, settings.timestep)), operations(lambda: backbone.decode(x))
    encode = operations(lambda: backbone.encode(image))
    with hooks.replayed(backbone.unet, record, lambda value: value):
        replayed = operations(lambda: backbone.denoise(x, settings.timestep))
    steps, colours = paper.steps - paper.start_step, colours_per_frame(num_masks, UpsampleSettings().separation)
    calls = (1 + 2 * num_masks) * steps
    signs = 1 if UpsampleSettings().difference == "one-sided" else 2
    rows = {
        "the paper's schedule": (2 * calls * whole, (1 + 2 * num_masks) * decode + encode),
        "the same without guidance": (calls * whole, (1 + 2 * num_masks) * decode + encode),
        "default, mask by mask": (2 * whole + signs * num_masks * replayed, (1 + num_masks) * decode + 2 * encode),
        f"default, {colours:.1f} colours": (2 * whole + signs * colours * replayed, (1 + colours) * decode + 2 * encode),
    }
    base = rows["the paper's schedule"]
    print(
        f"SD 2.1, 512x512, K={num_masks}, one frame; a pass {whole:.3f}, replayed {replayed:.3f}, a decode {decode:.3f} TFLOP\n"
    )
    print("| schedule | UNet, TFLOP | autoencoder | both | UNet, times fewer | both, times fewer |\n|---|---|---|---|---|---|")
    for name, (unet, codec) in rows.items():
        less = f"{base[0] / unet:.1f} | {sum(base) / (unet + codec):.1f}"
        print(f"| {name} | {unet:.1f} | {codec:.1f} | {unet + codec:.1f} | {less} |")


class Meter:
    """Tera-operations of the network, images that an autoencoder would decode, and the peak of the process' memory in GB, while
    it is entered."""

    def __init__(self, backbone: Backbone):
        self.backbone, self.operations, self.decodes, self.gigabytes, self.known = backbone, 0.0, 0, 0.0, set()

    @contextmanager
    def running(self) -> Iterator["Meter"]:
        """Count within the block."""
        unet, codec, stop = self.backbone.unet, self.backbone.codec, threading.Event()
        forward, decode = unet.forward, codec.decode_difference

        def counted_forward(*args, **kwargs):
            with FlopCounterMode(display=False) as counter:
                output = forward(*args, **kwargs)
            self.operations += counter.get_total_flops() / 1e12
            return output

        def counted_decode(a, b, known=None):
            before = len(self.known)
            self.known |= set() if known is None else {latent.numpy().tobytes() for latent in b}
            self.decodes += len(a) + (len(b) if known is None else len(self.known) - before)
            return decode(a, b, known)

        def watch():
            while not stop.wait(0.05):
                self.gigabytes = max(self.gigabytes, psutil.Process().memory_info().rss / 1e9)

        unet.forward, codec.decode_difference = counted_forward, counted_decode
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield self
        finally:
            stop.set()
            del unet.forward, codec.decode_difference


def run(backbone: Backbone, frames: np.ndarray, num_clusters: int, strategy: str) -> tuple[Segmentation, dict[str, float]]:
    """A segmentation and what it cost."""
    how = {"upsample": UpsampleSettings(strategy=strategy), "paper": PaperSettings(guidance=1.0)}
    settings = Settings(context=ContextSettings(num_clusters=num_clusters, num_segments=None), **how, working_size=SIZE)
    started = time.perf_counter()
    with Meter(backbone).running() as meter:
        result = VidSeg(backbone, settings)(frames, keep=())
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        save_segmentation(result, backbone, Path(folder) / "run")
        disk = sum(p.stat().st_size for p in (Path(folder) / "run" / "masks").iterdir()) / 1e6
    spent = {stage: result.timings[stage] / seconds for stage in STAGES}
    return result, {"TFLOP": meter.operations, "decodes": meter.decodes, "seconds": seconds, "GB": meter.gigabytes,
                    "MB of masks": disk, **spent}  # fmt: skip


def quality(result: Segmentation, truth: np.ndarray) -> float:
    """mIoU of the label-free segments, each named by the class that most of its pixels have in frame 0."""
    classes = int(truth.max()) + 1
    counts = np.zeros((int(result.labels.max()) + 1, classes), int)
    np.add.at(counts, (result.labels[0].ravel(), truth[0].ravel()), 1)
    return mean_iou(confusion(counts.argmax(1)[result.labels], truth, classes))


def measured(quick: bool) -> None:
    """Run both strategies for several K and lengths; print, and write bench.csv and bench.png."""
    backbone, rows = load_backbone("tiny", device="cpu"), []
    cases = [(14, k) for k in (5, 10, 20, 40)] + [(n, 20) for n in (56, 224)]
    for count, num_clusters in tqdm([(4, 5), (4, 10)] if quick else cases, disable=None):
        clip, made = generated_clip(num_frames=count, size=SIZE), {}
        for strategy in ("guided", "direct") if count < 200 else ("direct",):
            result, cost = run(backbone, clip.frames, num_clusters, strategy)
            made[strategy] = result.labels
            agreement = float((made["guided"] == result.labels).mean()) if "guided" in made else np.nan
            rows.append({"frames": count, "K": num_clusters, "strategy": strategy, **cost, "mIoU": quality(result, clip.labels),
                         "agreement": agreement})  # fmt: skip
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "bench.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        draw(rows).savefig(RESULTS / "bench.png", dpi=90)


def draw(rows: list[dict]):
    """Seconds against the number of masks and against the number of frames, both strategies."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, fixed, varied in zip(figure.subplots(1, 2), ("frames", "K"), ("K", "frames"), strict=True):
        value = 14 if fixed == "frames" else 20
        for strategy, name in (("guided", "the paper's schedule"), ("direct", "default")):
            points = [(r[varied], r["seconds"]) for r in rows if r["strategy"] == strategy and r[fixed] == value]
            axes.plot(*zip(*points, strict=True), "o-", label=name)
        axes.set(xlabel=varied, ylabel="seconds", yscale="log", xscale="log", title=f"{fixed} = {value}")
        ticks = sorted({r[varied] for r in rows if r[fixed] == value})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> None:
    """Either table, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("counted", "measured", "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="two tiny cases, nothing written")
    parser.add_argument("--threads", type=int, default=1, help="of torch: one, so that a busy neighbour does no harm")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what != "measured":
        counted()
    if options.what != "counted":
        measured(options.quick)


if __name__ == "__main__":
    main()
