"""The steps of a training: what it holds, its learning rate, its losses, one update."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_training.images import cut, draw_crop
from tiny_training.losses import align_loss, border_loss, relation_loss
from tiny_training.settings import TrainSettings
from tiny_training.targets import Targets
from vidseg_core.common import InputError
from vidseg_core.models.codec import BlockDCT
from vidseg_core.models.registry import data_folder

TINY = data_folder() / "models" / "tiny"  # architecture, codec and scheduler are those of the model in the repository


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


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a diffusers folder, float32. Raises InputError if it is not there or of another architecture than tiny."""
    if not (folder / "unet" / "config.json").is_file():
        raise InputError(f"{folder} holds no unet/config.json: give a folder such as OUT/model, or data/models/tiny")
    ours, theirs = (UNet2DConditionModel.load_config(f / "unet", local_files_only=True) for f in (TINY, folder))
    if different := [k for k in ours if not k.startswith("_") and ours[k] != theirs.get(k)]:
        raise InputError(
            f"{folder}/unet differs from the embedded model in {', '.join(different)}: only its architecture is trained"
        )
    try:
        return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"the weights in {folder}/unet cannot be read ({error})") from error


def start(settings: TrainSettings, channels: list[int], init: Path | None) -> Run:
    """A fresh run, from random weights or from those of `init`."""
    torch.manual_seed(settings.seed)
    config = UNet2DConditionModel.load_config(TINY / "unet")
    unet = UNet2DConditionModel.from_config(config)
    if init:
        unet = load_unet(init)
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
    """The full rate for the head alone; for all, a linear rise over the first `warmup` steps (those of the head count among
    them) and a cosine to zero at the end of the budget."""
    if frozen:
        return settings.lr
    rise = min(1, (run.step + 1) / max(1, settings.warmup))
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
        """The loss. Raises InputError if a term is not finite: the weights would be lost with the next step."""
        s = self.settings
        weights = {"epsilon": 1.0, "align": s.align_weight, "relation": s.relation_weight, "border": s.border_weight}
        for name, value in found.items():
            if not value.isfinite():
                remedy = "Nothing more was saved; begin anew, in another OUT, with a lower --lr"
                raise InputError(f"step {self.run.step}: the {name} loss is {value.item()}. {remedy}")
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
def mean_with(average: UNet2DConditionModel, folder: Path | None) -> UNet2DConditionModel:
    """A network whose weights are the mean of the average's and of those in `folder` (a model soup, Wortsman et al. 2022);
    without `folder` a copy."""
    mean = UNet2DConditionModel.from_config(average.config)
    mean.load_state_dict(average.state_dict())
    if folder:
        follow(mean, load_unet(folder), 0.5)
    return mean.eval()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
