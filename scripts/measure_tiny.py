"""Score a model's queries on labelled frames by the first-frame protocol, beside three things that need no diffusion model.

    python scripts/measure_tiny.py data/models/tiny --camvid CAMVID --davis DAVIS

CAMVID and DAVIS are folders as `vidseg_core.evaluation.datasets` reads them: as their owners distribute them, or
CLIP/frames, CLIP/labels.

Protocol, per window of 14 frames: each token is divided by its largest entry (`--normalise`); K-means on all tokens of the
window; the mask of its first frame names each cluster by majority (void pixels do not vote); a k-NN with k = 4, fitted on
frame 0, labels every frame; coarse maps are enlarged by nearest neighbour. The score is one confusion matrix over all windows:
mean IoU over the classes that occur, and pixel accuracy, void left out. "k-NN from the mask" leaves K-means out: frame 0
carries its own mask. Windows that are not full are dropped.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script also runs where the package is not installed
from vidseg_core import InputError, load_backbone
from vidseg_core.evaluation import metrics
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.extractors import cnn_blocks, load_cnn, side_by_side
from vidseg_core.evaluation.labelled import Dataset, LabelledClip
from vidseg_core.features import QUERY, append_position, normalise
from vidseg_core.settings import ConditionSettings

Extractor = Callable[[torch.Tensor], np.ndarray]  # RGB in [-1, 1], [f, 3, H, W] -> tokens [f, H/8, W/8, d]

CELL = 8  # pixels per token, the grid of the tapped queries; every other feature is brought to it
LENGTH = 14  # frames of a window, as in the reference
NEIGHBOURS = 4  # of the k-NN, as in the reference
QUERIES = ("up_blocks.1.attentions.0" + QUERY, "up_blocks.1.attentions.1" + QUERY)  # both at H/8
POSITION = {"max": 0.5, "l2": 0.15}  # weight of (y, x), each in [-1, 1]; tokens with a largest entry of 1 are 4.4 long


@dataclass(frozen=True)
class Benchmark:
    """One labelled set, and how it is cut (each window a clip of its own) and scored. `size`: width and height at which frames
    are shown to the model, multiples of 16; `clusters`: K of K-means; labels from `classes` on are void."""

    name: str
    windows: list[LabelledClip]
    size: tuple[int, int]
    clusters: int
    classes: int

    def read(self, window: LabelledClip) -> tuple[torch.Tensor, np.ndarray]:
        """Frames [f, 3, H, W] in [-1, 1], and labels int [f, H', W'] at their own size."""
        images = [Image.fromarray(frame).resize(self.size, Image.Resampling.BICUBIC) for frame in window.frames]
        pixels, truth = np.stack(images), np.stack([window.read_labels(n)[0] for n in range(len(images))])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, truth


def scaled(extract: Extractor, position: float, how: str, frames: torch.Tensor) -> np.ndarray:
    """Tokens, each divided by its largest absolute entry or its length; then (y, x) times `position`, if not 0."""
    return append_position(normalise(torch.from_numpy(extract(frames)), how), position).numpy()


def colour(frames: torch.Tensor) -> np.ndarray:
    """Mean RGB of each cell and its place: [f, h, w, 5], all in [-1, 1]."""
    return append_position(F.avg_pool2d(frames, CELL).permute(0, 2, 3, 1), 1.0).numpy()


def queries(folder: Path, pad: int) -> Extractor:
    """Self-attention queries of both decoder blocks side by side, at the model's own noise level with one noise for all frames,
    which are reflected by `pad` pixels on every side; the border's tokens are cut off. A video model sees the window at once.
    InputError for a folder that holds no model."""
    if missing := [part for part in ("unet", "codec.json") if not (folder / part).exists()]:
        what = "a folder with unet/, scheduler/ and codec.json, such as OUT/model of scripts/train_tiny.py"
        raise InputError(f"{folder} has no {' and no '.join(missing)}. Give {what}")
    # An absolute path is neither the name of an embedded model nor one to ask the hub for.
    backbone, cells = load_backbone(folder.absolute(), "cpu", "float32"), pad // CELL
    timestep = backbone.model.feature_timestep

    @torch.inference_mode()
    def extract(frames: torch.Tensor) -> np.ndarray:
        frames = F.pad(frames, [pad] * 4, mode="reflect")
        latents, condition = backbone.encode(frames), backbone.condition(frames, ConditionSettings(), seed=0)
        noisy = latents + backbone.sigma(timestep) * backbone.noise(latents, seed=0, shared=True)
        with backbone.tap(QUERIES, enough=True) as taps:
            backbone.denoise(noisy, timestep, condition=condition)
        h, w = frames.shape[2] // CELL, frames.shape[3] // CELL
        tokens = torch.cat([taps[path] for path in QUERIES], -1).unflatten(1, (h, w)).numpy()
        return tokens[:, cells : h - cells, cells : w - cells]

    return extract


def cnn(blocks: tuple[int, ...], enlarge: int = 1) -> Extractor:
    """EfficientNet-Lite0 (ImageNet) after `blocks`, tokens of unit length per block, at H/8; `enlarge` the input first."""
    net = load_cnn()

    @torch.inference_mode()
    def extract(frames: torch.Tensor) -> np.ndarray:
        grid = (frames.shape[2] // CELL, frames.shape[3] // CELL)
        if enlarge > 1:
            frames = F.interpolate(frames, scale_factor=enlarge, mode="bicubic")
        return side_by_side(cnn_blocks(net, frames, blocks), grid).numpy()

    return extract


def to_cells(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask [H, W] in 0..255 brought to `shape` by nearest neighbour, uint8 and flat [h*w]; the way back as well."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST)).reshape(-1)


def name_clusters(clusters: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Majority class of every cluster under the first mask; both flat [h*w]. Void does not vote; all void gives class 0."""
    votes = [mask[(clusters == n) & (mask < classes)] for n in range(clusters.max() + 1)]
    return np.array([np.bincount(v, minlength=classes).argmax() for v in votes])[clusters]


def confusion(tokens: np.ndarray, truth: np.ndarray, bench: Benchmark, seed: int | None) -> np.ndarray:
    """One window -> counts [classes, classes + 1], as `metrics.confusion` has them. `seed` is K-means' own; None: k-NN from the
    mask itself, in which one token at least must not be void."""
    f, h, w, d = tokens.shape
    flat, mask = tokens.reshape(f * h * w, d), to_cells(truth[0], (h, w))
    if seed is None:
        known, reference = mask < bench.classes, mask
    else:
        clusters = KMeans(bench.clusters, n_init=2, random_state=seed).fit(flat).labels_[: h * w]
        known, reference = np.ones(h * w, bool), name_clusters(clusters, mask, bench.classes)
    knn = KNeighborsClassifier(min(NEIGHBOURS, int(known.sum()))).fit(flat[: h * w][known], reference[known])
    coarse = knn.predict(flat).reshape(f, h, w)
    labels = np.stack([to_cells(frame, truth.shape[1:]) for frame in coarse]).reshape(truth.shape)
    return metrics.confusion(labels, truth, bench.classes)


def scores(counts: np.ndarray) -> tuple[float, float]:
    """Mean IoU over the classes that occur in the truth, and pixel accuracy."""
    return metrics.mean_iou(counts), metrics.pixel_accuracy(counts)


def row(name: str, extract: Extractor, bench: Benchmark, pad: int, seeds: int) -> str:
    """One line of the table: over the seeds of K-means, and from the mask itself."""
    totals = dict.fromkeys([*range(seeds), None], 0)
    for window in tqdm(bench.windows, f"{bench.name}, {name}", unit="window", leave=False, disable=None):
        frames, truth = bench.read(window)
        tokens = extract(frames)
        totals = {seed: counts + confusion(tokens, truth, bench, seed) for seed, counts in totals.items()}
    *clustered, mask = [scores(counts) for counts in totals.values()]
    (miou, accuracy), (width, height) = np.array(clustered).T, bench.size
    spread = f"{miou.mean():.3f} ± {miou.std(ddof=1) if len(miou) > 1 else 0:.3f} | {accuracy.mean():.3f}"
    return f"| {bench.name}, {width}x{height} | {pad} | {name} | {spread} | {mask[0]:.3f} | {mask[1]:.3f} |"


def candidates(args: argparse.Namespace, pad: int) -> dict[str, Extractor]:
    """What is compared, by name. A model is called as its folder, or as the path given if others are called so too."""
    table: dict[str, Extractor] = {}
    how, position = args.normalise, POSITION[args.normalise]
    length = ", by length" if how == "l2" else ""
    names = [folder.absolute().name for folder in args.models]
    for name, folder in zip(names, args.models, strict=True):
        tokens, name = queries(folder, pad), name if names.count(name) == 1 else folder
        table[f"{name} queries{length}"] = partial(scaled, tokens, 0, how)
        table[f"{name} queries{length} + {position} (y, x)"] = partial(scaled, tokens, position, how)
    if pad or args.no_baselines:
        return table  # padding is a cure for the UNet's border, which the others do not have
    table["colour + position"] = colour  # scaling a token of five numbers by its largest would throw brightness away
    if not args.no_cnn:
        for blocks, enlarge in (((4, 10, 15), 1), ((4, 10), 1), ((4, 10, 15), 2)):
            name = f"EfficientNet-Lite0, blocks {'+'.join(map(str, blocks))}" + (", input enlarged 2x" if enlarge == 2 else "")
            table[name + length] = partial(scaled, cnn(blocks, enlarge), 0, how)
    return table


def windows(dataset: Dataset, count: int | None) -> list[LabelledClip]:
    """The full windows of every clip, of each clip the first `count`. Says which clips are too short for one; InputError if
    all are, or if a frame has no labels."""
    if short := [clip.name for clip in dataset.clips if clip.num_frames < LENGTH]:
        print(f"{dataset.name}: left out, shorter than a window of {LENGTH} frames: {', '.join(short)}", file=sys.stderr)
    found = [clip.part(n, n + LENGTH) for clip in dataset.clips for n in range(0, clip.num_frames - LENGTH + 1, LENGTH)[:count]]
    if not found:
        raise InputError(f"{dataset.name}: no clip has the {LENGTH} frames of a window. Give a set with longer clips")
    for window in found:
        if missing := [path for n, path in enumerate(window.files) if n not in window.labels]:
            raise InputError(f"{missing[0]} has no labels; every frame of a window needs them. Add them or leave the clip out")
    return found


def benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    """What the folders given allow, in every size asked for. What is wrong with them is said here, not after an hour."""
    camvid = ("CamVid", args.camvid, args.camvid_sizes, 20, None)
    davis = ("DAVIS", args.davis, args.davis_sizes, 8, args.davis_windows)
    found = []
    for name, root, sizes, clusters, count in (camvid, davis):
        if root is not None:
            dataset = open_dataset(name.lower(), root)
            cut = windows(dataset, count)
            found += [Benchmark(name, cut, size, clusters, len(dataset.classes)) for size in sizes]
    for bench in found:
        check(bench, max(args.pads))
    return found


def check(bench: Benchmark, pad: int) -> None:
    """Raises InputError for a size that cannot be padded so far, or at which the first mask of a window says nothing."""
    width, height = bench.size
    if pad >= min(bench.size):
        raise InputError(f"--pads {pad}: frames of {width}x{height} have fewer pixels than that to reflect. Take less")
    for window in bench.windows:
        if (to_cells(window.read_labels(0)[0], (height // CELL, width // CELL)) >= bench.classes).all():
            raise InputError(
                f"{window.name}: the labels of its first frame, {window.files[0].name}, are void in all cells of {width}x"
                f"{height}, so that nothing gets a name. Label that frame, or leave the clip out"
            )


def frame_size(text: str) -> tuple[int, int]:
    """ "320x240" -> (320, 240)."""
    width, height = (int(v) for v in text.split("x"))
    if width % 16 or height % 16 or min(width, height) < 16:
        raise argparse.ArgumentTypeError(f"{text}: both sides must be positive multiples of 16")
    return width, height


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="folders with unet/, scheduler/ and codec.json")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid")
    parser.add_argument("--davis", type=Path, help="folder of DAVIS")
    parser.add_argument("--camvid-sizes", type=frame_size, nargs="+", default=[(320, 240), (256, 192)], metavar="WxH")
    parser.add_argument("--davis-sizes", type=frame_size, nargs="+", default=[(368, 208)], metavar="WxH")
    parser.add_argument("--davis-windows", type=int, default=None, help="windows per clip (default: all)")
    parser.add_argument("--pads", type=int, nargs="+", default=[0, 32], help="reflect padding in pixels, multiples of 16")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of K-means to average over")
    about = "tokens are divided by their largest entry, as in the reference, or by their length, as with tiny in the pipeline"
    parser.add_argument("--normalise", choices=POSITION, default="max", help=about)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-baselines", action="store_true", help="the models alone")
    parser.add_argument("--no-cnn", action="store_true", help="leave EfficientNet-Lite0 out")
    args = parser.parse_args(arguments)
    if args.camvid is None and args.davis is None:
        parser.error("nothing to measure on: give --camvid, --davis or both")
    for option, value in (("seeds", args.seeds), ("davis-windows", args.davis_windows), ("threads", args.threads)):
        if value is not None and value < 1:
            parser.error(f"--{option} {value}: give at least 1")
    if wrong := [pad for pad in args.pads if pad < 0 or pad % 16]:
        parser.error(f"--pads {wrong[0]}: give 0 or positive multiples of 16, or the cells no longer line up")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Print one markdown table. Returns the exit status: 0, or 2 for a wrong input, which is said on stderr."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    try:
        sets, tables = benchmarks(args), {pad: candidates(args, pad) for pad in args.pads}
        print("| frames | padding | features | K-means, mIoU | pixel acc. | k-NN from the mask, mIoU | pixel acc. |")
        print("|---|---|---|---|---|---|---|")
        for bench in sets:
            for pad, table in tables.items():
                for name, extract in table.items():
                    print(row(name, extract, bench, pad, args.seeds), flush=True)
    except InputError as error:
        print(f"measure_tiny: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
