"""mIoU and pixel accuracy after each stage, beside baselines, under the first-frame protocol.

    python benchmarks/accuracy.py                                   the sample clips and the generated one
    python benchmarks/accuracy.py --camvid DIR --davis DIR          and labelled frames: DIR/CLIP/frames, DIR/CLIP/labels

The mask of the first frame names the clusters (so it is not blind to the truth). With --restart every window of 14 frames is
a clip of its own with its own first mask; without, one first mask serves the whole clip. Sample clips are scored on their
drawn frames but the first, all others on all labelled frames. CamVid's label 11 is void, DAVIS' labels are object or not.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidseg_core import ContextSettings, Settings, VidSeg, generated_clip, load_backbone, read_frames, read_mask, sample_clip
from vidseg_core.context import SceneContext, kmeans, name_clusters
from vidseg_core.metrics import confusion, flicker, mean_iou, pixel_accuracy
from vidseg_core.viz import enlarge

STAGES = ("colour + position", "coarse", "refined", "bilinear", "full resolution")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """`truth` maps frame numbers to masks (255 = void), 0 among them; `scored` are those that count."""

    frames: np.ndarray
    truth: dict[int, np.ndarray]
    scored: list[int]
    num_classes: int
    num_clusters: int


def sample(name: str) -> Labelled:
    """A sample clip with its hand-drawn masks."""
    clip = sample_clip(name)
    last = max(clip.masks)
    return Labelled(clip.frames[: last + 1], clip.masks, [n for n in clip.masks if n], len(clip.names), 20)


def folder(path: Path, num_classes: int, num_clusters: int, window: int | None) -> Iterator[Labelled]:
    """A clip as frames/ and labels/ of equal length, whole or in windows."""
    frames = read_frames(path / "frames")
    labels = [read_mask(p) for p in sorted((path / "labels").glob("*.png"))]
    if len(labels) != len(frames):
        sys.exit(f"{path} has {len(frames)} frames but {len(labels)} labels; this benchmark needs one label for each frame")
    labels = [np.where(m == 11, 255, m) if num_classes == 11 else (m > 0).astype(int) for m in labels]
    for start in range(0, len(frames), window or len(frames)):
        part = slice(start, start + (window or len(frames)))
        truth = dict(enumerate(labels[part]))
        yield Labelled(frames[part], truth, list(truth), num_classes, num_clusters)


def bilinear(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each mask enlarged bilinearly, the largest wins."""
    values = torch.from_numpy(np.unique(cells))
    masks = (torch.from_numpy(cells)[:, None] == values[None, :, None, None]).float()
    return values[torch.nn.functional.interpolate(masks, size=size, mode="bilinear").argmax(1)].numpy()


def colour_and_position(clip: Labelled, grid: tuple[int, int]) -> np.ndarray:
    """Baseline: each cell's mean RGB in [-1, 1] and (y, x) in the place of the queries; the rest as ours."""
    images = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    colour = torch.nn.functional.interpolate(images, size=grid, mode="area").permute(0, 2, 3, 1)
    y, x = (torch.linspace(-1, 1, n) for n in grid)
    position = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).expand(len(colour), -1, -1, -1)
    tokens, settings = torch.cat([colour, position], -1), ContextSettings(num_clusters=clip.num_clusters)
    clusters = kmeans(tokens[:14].flatten(0, 2), settings)
    first = clusters.labels[: grid[0] * grid[1]].reshape(1, *grid)
    context = SceneContext(settings)
    context.update(tokens[:1], name_clusters(first[0], clip.truth[0], clip.num_clusters)[first])
    return torch.cat([context.predict(frame[None]) for frame in tokens]).numpy()


def score(clip: Labelled, vidseg: VidSeg) -> tuple[dict[str, np.ndarray], float]:
    """A confusion matrix for each stage, and the flicker of the labels."""
    result = vidseg(clip.frames, first_mask=clip.truth[0], keep=())
    size, cells = clip.frames.shape[1:3], {"coarse": result.coarse, "refined": result.refined}
    cells["colour + position"] = colour_and_position(clip, result.coarse.shape[1:])
    counts = dict.fromkeys(STAGES, 0)
    for n in clip.scored:
        maps = {name: enlarge(m[n], size) for name, m in cells.items()}
        maps |= {"bilinear": bilinear(result.refined[n : n + 1], size)[0], "full resolution": result.labels[n]}
        for name, labels in maps.items():
            counts[name] = counts[name] + confusion(labels, clip.truth[n], clip.num_classes)
    return counts, flicker(result.labels)


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, metavar="DIR")
    parser.add_argument("--davis", type=Path, metavar="DIR")
    parser.add_argument("--restart", action="store_true", help="each window of 14 frames is a clip of its own")
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    backbone, window = load_backbone(options.model), 14 if options.restart else None
    generated = generated_clip()
    sets = {
        "cup": [sample("cup")],
        "box": [sample("box")],
        "generated": [Labelled(generated.frames, dict(enumerate(generated.labels)), list(range(28)), 3, 20)],
    }
    for name, root, classes, clusters in (("CamVid", options.camvid, 11, 20), ("DAVIS", options.davis, 2, 8)):
        if root:
            sets[name] = [part for path in sorted(root.iterdir()) for part in folder(path, classes, clusters, window)]
    print(f"| {'clip(s)':10} | {' | '.join(STAGES)} | flicker |\n|---|{'---|' * len(STAGES)}---|")
    for name, clips in sets.items():
        total, flickers = dict.fromkeys(STAGES, 0), []
        for clip in tqdm(clips, desc=name, disable=None):
            settings = Settings(context=ContextSettings(num_clusters=clip.num_clusters))
            counts, share = score(clip, VidSeg(backbone, settings))
            total = {stage: total[stage] + counts[stage] for stage in STAGES}
            flickers.append(share)
        cells = [f"{mean_iou(total[s]):.3f} / {pixel_accuracy(total[s]):.3f}" for s in STAGES]
        print(f"| {name:10} | {' | '.join(cells)} | {np.mean(flickers):.3f} |", flush=True)


if __name__ == "__main__":
    main()
