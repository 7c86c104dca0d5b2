"""What the owner of a GPU runs once: a real model on the sample clips with both strategies, and a report to send back.

    make gpu-check MODEL=sd21-base [VSPW=folder]
    python benchmarks/gpu_check.py --model sd21-base [--vspw FOLDER] [--frames 28] [--size 512x288] [--device cuda] [--offload]

Downloads the model if it is not there. For each sample clip (hand-drawn masks) and up to three clips of VSPW, and for `direct`
and `guided`: mIoU of the coarse map, of bilinear enlarging and at full resolution under the first-frame protocol, mVC8 where
all frames are labelled, the share of pixels on which the strategies agree, seconds per stage and peak GPU memory; where memory
is too small for a strategy, only that. Writes report.md and report.json into outputs/gpu-check/MODEL; nothing in them names the
machine or its user, nor where the model lies.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidseg_core import InputError, Segmentation, Settings, VidSeg, load_backbone, sample_clip
from vidseg_core.common import enlarge
from vidseg_core.evaluation.baselines import bilinear
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.metrics import confusion, mean_iou, video_consistency
from vidseg_core.io.files import replacing
from vidseg_core.io.options import working_size
from vidseg_core.io.provenance import run_record
from vidseg_core.models.memory import Pieces

COLUMNS = ("clip", "strategy", "coarse", "bilinear", "full", "mVC8", "agreement", "seconds per frame", "upsample", "memory, GB",
           "not run")  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """Frames [f, H, W, 3], the masks there are by frame number (0 among them), and how many classes these have."""

    name: str
    frames: np.ndarray
    truth: dict[int, np.ndarray]
    num_classes: int


def clips(vspw: Path | None, frames: int) -> Iterator[Labelled]:
    """The sample clips and, given VSPW, its first three validation clips."""
    for name in ("cup", "box"):
        clip = sample_clip(name)
        last = max(n for n in clip.masks if n < frames or n == sorted(clip.masks)[1])  # one mask beside the first at least
        masks = {n: mask for n, mask in clip.masks.items() if n <= last}
        yield Labelled(name, clip.frames[: last + 1], masks, len(clip.names))
    for clip in open_dataset("vspw", vspw).clips[:3] if vspw else ():
        images = np.stack([frame for _, frame in zip(range(frames), clip.frames, strict=False)])
        truth = {n: t for n in range(len(images)) if (t := clip.truth(n)) is not None}
        yield Labelled(clip.name, images, truth, 124)


def run(vidseg: VidSeg, clip: Labelled, bar: tqdm) -> tuple[Segmentation, float]:
    """The segmentation and the peak of the GPU's memory in GB (0 elsewhere)."""
    device = vidseg.backbone.device
    vidseg.backbone.pieces = Pieces()  # or a full memory would go on making the pieces of the next run smaller
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = vidseg(clip.frames, first_mask=clip.truth[0], keep=(), progress=lambda stage, n: bar.update(n / 4))
    return result, torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def scores(result: Segmentation, clip: Labelled) -> dict[str, float]:
    """mIoU after the stages on the labelled frames, frame 0 left out, and mVC8 if all frames have labels."""
    size, counts = clip.frames.shape[1:3], dict.fromkeys(("coarse", "bilinear", "full"), 0)
    for n in sorted(set(clip.truth) - {0}):
        maps = {"coarse": enlarge(result.coarse[n], size), "bilinear": bilinear(result.refined[n : n + 1], size)[0]}
        for name, labels in {**maps, "full": result.labels[n]}.items():
            counts[name] = counts[name] + confusion(labels, clip.truth[n], clip.num_classes)
    found = {name: mean_iou(c) for name, c in counts.items()}
    if len(clip.truth) == len(clip.frames):
        found["mVC8"] = float(np.nanmean(video_consistency(result.labels, np.stack(list(clip.truth.values())), 8)))
    return found


def check(options: argparse.Namespace) -> tuple[list[dict], dict]:
    """One row for each clip and strategy, and what they were made with. A strategy that cannot run has a row that says why."""
    backbone, rows = load_backbone(options.model, options.device, options.dtype, options.offload), []
    for clip in clips(options.vspw, options.frames):
        labels = {}
        for strategy in ("direct", "guided"):
            base = Settings(working_size=options.size and working_size(options.size))
            vidseg = VidSeg(backbone, replace(base, upsample=replace(base.upsample, strategy=strategy)))
            rows.append({"clip": clip.name, "strategy": strategy})
            try:
                with tqdm(total=len(clip.frames), desc=f"{clip.name} {strategy}", unit="frame", disable=None) as bar:
                    result, memory = run(vidseg, clip, bar)
            except InputError as error:
                rows[-1]["not run"] = str(error)
                continue
            labels[strategy] = result.labels
            if "direct" in labels:
                rows[-1]["agreement"] = float((labels["direct"] == result.labels).mean())
            rows[-1] |= scores(result, clip) | {
                "seconds per frame": sum(result.timings.values()) / len(clip.frames),
                "upsample": result.timings["upsample"] / len(clip.frames), "memory, GB": memory,
            }  # fmt: skip
    record = run_record(backbone, vidseg.settings)
    device = backbone.device
    record["processor"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if Path(options.model).is_dir():  # where it lies is its owner's business
        record["model"] = _name(options.model)
    return rows, {k: record[k] for k in ("settings", "model", "dtype", "versions", "processor")} | {"offload": options.offload}


def _name(model: str) -> str:
    return Path(model).resolve().name


def table(rows: list[dict]) -> str:
    """The rows in markdown; a dash where something was not measured."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [row.get(c, "-") for c in COLUMNS]
        lines.append("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the check and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd21-base")
    parser.add_argument("--vspw", type=Path, metavar="FOLDER", help="the data set as its owner distributes it")
    parser.add_argument("--frames", type=int, default=28, help="of each clip (default: 28, two windows)")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--size", metavar="WxH", help="working size (default: the model's native area)")
    parser.add_argument("--offload", action="store_true", help="keep weights in main memory until they run")
    parser.add_argument("--out", type=Path, default=Path("outputs", "gpu-check"))
    options = parser.parse_args(arguments)
    try:
        rows, made_with = check(options)
    except InputError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    folder = options.out / _name(options.model)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"# {made_with['model']} on {made_with['processor']}, {made_with['dtype']}\n\n"
    with replacing(folder / "report.md") as path:
        path.write_text(title + table(rows) + "\nmIoU with the mask of the first frame given, which is not scored.\n")
    with replacing(folder / "report.json") as path:
        path.write_text(json.dumps({"rows": rows, **made_with}, indent=1) + "\n")
    print(title + table(rows) + f"\nPlease send {folder / 'report.json'} to the project: open an issue and attach it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
