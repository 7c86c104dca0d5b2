"""The steps of a training: what it holds, its learning rate, its losses, one update."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tiny_training.clips import Material, draw_shot, frames_of, targets_of
from tiny_training.correspondences import Pairs, correspondence_loss, draw_pairs, join
from tiny_training.families import FAMILIES, TINY, Family, ImageFamily
from tiny_training.images import Crop, cut, draw_crop
from tiny_training.losses import align_loss, border_loss, concept_loss, relation_loss
from tiny_training.settings import TrainSettings
from tiny_training.targets import Targets
from vidseg_core.common import InputError
from vidseg_core.models.codec import BlockDCT

Batch = tuple[Tensor, list[Tensor], Pairs | None]
"""Images [n, 3, H, W] in [-1, 1], per block of the CNN features [n, d, h, w] and, of clips, where points go."""


MATCHED = (0,)  # of the tapped blocks, the one whose queries stage 3 compares (`match_blocks` of both registry entries)


class Taps:
    """The tapped queries of the last forward pass."""

    def __init__(self, attentions: nn.ModuleList):
        self.found: dict[int, Tensor] = {}
        for n, attention in enumerate(attentions):
            attention.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda m, i, o, n=n: self.found.update({n: o}))

    def map(self, grid: tuple[int, int], taps: Sequence[int] | None = None) -> Tensor:
        """Queries of all taps (or of those) side by side: [n, d, h, w], float32."""
        tokens = torch.cat([self.found[n] for n in (sorted(self.found) if taps is None else taps)], -1).float()
        return tokens.transpose(1, 2).unflatten(2, grid)


def make_head(queries: int, embedding: int, channels: list[int], teacher: int = 0) -> nn.ModuleDict:
    """The alignment heads, for inputs of those widths: queries [n, d, h, w] to features of all blocks, and the teacher's, side
    by side; if there is an embedding of a clip's first frame (not 0), [n, d] to the last block's mean."""
    convolutions = nn.Sequential(nn.Conv2d(queries, 256, 1), nn.SiLU(), nn.Conv2d(256, max(1, sum(channels) + teacher), 1))
    concept = {"concept": nn.Linear(embedding, channels[-1] if channels else 1)} if embedding else {}
    return nn.ModuleDict({"queries": convolutions, **concept})


@dataclass
class Run:
    """All that changes during training, and what a checkpoint holds."""

    network: nn.Module
    average: nn.Module
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
    family = FAMILIES[settings.model]()
    network = (family.load(init) if init else family.create()).train()
    average = copy.deepcopy(network).eval().requires_grad_(False)
    attentions = family.tapped(network)
    width = sum(a.transformer_blocks[0].attn1.to_q.out_features for a in attentions)
    head = make_head(width, family.embedding, channels, width if settings.teacher_weight else 0)
    tapped = [getattr(a.transformer_blocks[0].attn1, name).weight for a in attentions for name in ("to_q", "to_k")]
    rest = [p for p in network.parameters() if all(p is not t for t in tapped)]
    groups = [{"params": rest, "factor": 1.0}, {"params": tapped, "factor": settings.query_lr_factor},
              {"params": head.parameters(), "factor": settings.head_lr_factor}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
    noise = torch.Generator().manual_seed(settings.seed)
    return Run(network, average, head, optimizer, np.random.default_rng(settings.seed), noise)


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


def image_batch(material: Material, targets: Targets | None, settings: TrainSettings, rng: np.random.Generator) -> Batch:
    """Random crops of random images."""
    sizes = [image.size for image in material.images]
    crops: list[Crop] = [draw_crop(sizes, settings, rng) for _ in range(settings.batch)]
    images = torch.stack([cut(material.images[c.image], c, settings) for c in crops])
    if targets is None:
        return images, [], None
    sampled = [targets.sample(c, settings.grid) for c in crops]
    return images, [torch.stack(block) for block in zip(*sampled, strict=True)], None


def clip_batch(material: Material, targets: Targets | None, settings: TrainSettings, rng: np.random.Generator) -> Batch:
    """Random clips, one after the other."""
    shots = [draw_shot(material, settings, rng) for _ in range(settings.batch)]
    images = torch.cat([frames_of(shot, material, settings) for shot in shots])
    pairs = join([draw_pairs(shot, settings, rng) for shot in shots]) if settings.correspondence_weight else None
    if targets is None:
        return images, [], pairs
    sampled = [targets_of(shot, targets, settings) for shot in shots]
    return images, [torch.cat(block) for block in zip(*sampled, strict=True)], pairs


BATCHES: dict[str, Callable[..., Batch]] = {"tiny": image_batch, "tiny-video": clip_batch}


class Teacher:
    """The embedded image model's queries of clean frames: a target for the video model, which began with its weights."""

    def __init__(self, settings: TrainSettings):
        self.network, self.grid = ImageFamily().load(TINY).eval().requires_grad_(False), settings.grid
        self.taps = Taps(ImageFamily().tapped(self.network))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Queries [n, d, h, w] of images [n, 3, H, W] in [-1, 1], at the first of the noise levels and without noise."""
        latents = BlockDCT.load(TINY / "codec.json").encode(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.network(latents, 0, torch.zeros(len(images), 1, self.network.config.cross_attention_dim))
        return self.taps.map(self.grid)


class Trainer:
    """Draws batches and takes steps; holds what does not change during a run."""

    def __init__(self, run: Run, settings: TrainSettings, material: Material, targets: Targets | None, init: bool):
        self.run, self.settings, self.material, self.targets = run, settings, material, targets
        self.family: Family = FAMILIES[settings.model]()
        self.taps = Taps(self.family.tapped(run.network))
        self.teacher = Teacher(settings) if settings.teacher_weight and targets else None
        self.head_only = settings.head_steps if init and targets else 0

    def losses(self, images: Tensor, targets: list[Tensor], pairs: Pairs | None = None) -> dict[str, Tensor]:
        """One noisy forward pass and its loss terms, unweighted."""
        run, settings = self.run, self.settings
        made = self.family.noisy_pass(run.network, images, settings, run.noise)
        queries = self.taps.map(settings.grid)
        found = {"denoising": made.denoising, "border": border_loss(queries)}
        if targets:
            weights, certainty = settings.target_weights, made.certainty
            count = len(images) * settings.grid[0] * settings.grid[1]
            pick = torch.randperm(count, generator=run.noise)[: settings.relation_tokens]
            found["align"] = align_loss(run.head["queries"](queries), targets, weights, certainty)
            found["relation"] = relation_loss(queries, targets, weights, certainty, pick)
        if pairs:
            compared = self.taps.map(settings.grid, MATCHED)
            found["correspondence"] = correspondence_loss(compared, pairs, made.certainty)
        if targets and made.embedding is not None:
            found["concept"] = concept_loss(run.head["concept"](made.embedding[:, 0]), targets[len(settings.blocks) - 1])
        return found

    def total(self, found: dict[str, Tensor]) -> Tensor:
        """The loss. Raises InputError if a term is not finite: the weights would be lost with the next step."""
        s = self.settings
        weights = {"denoising": 1.0, "align": s.align_weight, "relation": s.relation_weight, "border": s.border_weight}
        weights |= {"concept": s.concept_weight, "correspondence": s.correspondence_weight}
        for name, value in found.items():
            if not value.isfinite():
                remedy = "Nothing more was saved; begin anew, in another OUT, with a lower --lr"
                raise InputError(f"step {self.run.step}: the {name} loss is {value.item()}. {remedy}")
        return sum(weights[name] * value for name, value in found.items())

    def step(self) -> dict[str, float]:
        """One update of weights, head and average; returns the loss terms and the learning rate."""
        run, frozen = self.run, self.run.step < self.head_only
        run.network.requires_grad_(not frozen)
        rate = learning_rate(run, self.settings, frozen)
        for group in run.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch = BATCHES[self.settings.model](self.material, self.targets, self.settings, run.rng)
        if self.teacher:
            batch[1].append(self.teacher(batch[0]))
        found = self.losses(*batch)
        run.optimizer.zero_grad()
        self.total(found).backward()
        nn.utils.clip_grad_norm_([p for g in run.optimizer.param_groups for p in g["params"]], self.settings.clip)
        run.optimizer.step()
        run.step += 1
        if not frozen:
            follow(run.average, run.network, min(self.settings.ema, (1 + run.step) / (20 + run.step)))
        return {name: value.item() for name, value in found.items()} | {"learning_rate": rate}


@torch.no_grad()
def mean_with(average: nn.Module, other: nn.Module | None) -> nn.Module:
    """A network whose weights are the mean of the average's and the other's (a model soup, Wortsman et al. 2022); without
    another a copy."""
    mean = copy.deepcopy(average)
    if other is not None:
        follow(mean, other, 0.5)
    return mean.eval()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
