"""Stage 4 by hand: one mask's two predictions and what they become; borders; confidence."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.evaluation.baselines import bilinear
from vidseg_core.features import working_images
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.models.backbone import Backbone
from vidseg_core.modulation import NoisyWindow, predict_masks
from vidseg_core.settings import Settings, UpsampleSettings
from vidseg_core.upsample import claim, frame_edges, score_responses, upsample
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, levels, pick, share, slider

Frame = UInt8[np.ndarray, "H W 3"]
Cells = Integer[np.ndarray, "h w"]
Pixels = Integer[np.ndarray, "H W"]
Colours = Float[np.ndarray, "a b 3"]
Map = Float[np.ndarray, "H W"]
STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
TIMESTEPS = (20, 50, 100, 200, 400, 600)


@dataclass(frozen=True)
class Answers:
    """What each mask of a frame answered: its number, its prediction with +lambda and the one that it is compared with, without
    lambda or with -lambda (RGB, 0..1), and their distance."""

    names: list[int]
    plus: Float[np.ndarray, "n H W 3"]
    minus: Float[np.ndarray, "n H W 3"]
    response: Float[Tensor, "n H W"]


class Bench:
    """One frame of a clip with the labels of its cells: all that stage 4 is given."""

    def __init__(self, backbone: Backbone, frame: Frame, cells: Cells, names: Mapping[int, str], settings: Settings):
        self.backbone, self.frame, self.cells, self.names = backbone, frame, cells, names
        self.settings = settings.resolve(backbone.model)
        self.image = working_images(backbone, frame[None], self.settings)

    def ask(self, settings: UpsampleSettings) -> Answers:
        """Modulate every mask alone in one step at one noise level (strategy "direct")."""
        latents, cells = self.backbone.encode(self.image), torch.from_numpy(self.cells[None]).to(self.backbone.device)
        window = NoisyWindow(latents, self.backbone.noise(latents, self.settings.seed, shared=True), None)
        found = list(predict_masks(self.backbone, window, cells, replace(settings, separation=None)))
        names = [name for p in found for name in p.group.owners[:, 0, 0].tolist()]  # a mask that is alone owns all cells
        plus, minus = torch.cat([p.plus for p in found]), torch.cat([p.minus for p in found])
        pictures = ((self.backbone.decode(z).permute(0, 2, 3, 1).cpu().numpy() / 2 + 0.5).clip(0, 1) for z in (plus, minus))
        return Answers(names, *pictures, self.backbone.decode_difference(plus, minus).norm(dim=1).cpu())

    def judge(self, answers: Answers, settings: UpsampleSettings) -> Float[Tensor, "n H W"]:
        """The score of each mask at each pixel."""
        masks = torch.stack([torch.from_numpy(self.cells == name).float() for name in answers.names])
        owners = torch.tensor(answers.names)[:, None, None].expand(masks.shape)
        scores = score_responses(answers.response, masks, owners, settings)
        guide = frame_edges(self.backbone, self.frame[None], self.image, settings)
        return torch.stack([guide.follow(0, map_) for map_ in scores]) if guide else scores

    def decide(self, answers: Answers, scores: Float[Tensor, "n h w"]) -> tuple[Pixels, Float[np.ndarray, "H W"]]:
        """Labels, and by how much the winner leads the second."""
        labels = torch.from_numpy(enlarge(self.cells, self.frame.shape[:2]).astype(np.int16))
        best = torch.zeros(labels.shape)
        for name, map_ in zip(answers.names, scores, strict=True):
            claim(labels, best, torch.full(self.cells.shape, name), map_)
        if scores.shape[1:] != best.shape:
            scores = F.interpolate(scores[None], size=best.shape, mode="bilinear", align_corners=False)[0]
        first = scores.topk(min(2, len(scores)), dim=0).values
        return labels.numpy(), (first[0] - first[-1] * (len(scores) > 1)).numpy()

    def run(self, settings: UpsampleSettings) -> tuple[Pixels, float]:
        """The stage as the pipeline runs it: labels of the frame's pixels, and the seconds it took."""
        refined = Votes.certain(torch.from_numpy(self.cells[None]).to(self.backbone.device))
        started = time.perf_counter()
        labels = upsample(self.backbone, self.frame[None], refined, replace(self.settings, upsample=settings))
        return labels[0].cpu().numpy(), time.perf_counter() - started


def explore_modulation(bench: Bench) -> Explorer:
    """One mask's two predictions, their difference, its score and the labels of all masks.

    A new lambda or timestep runs the UNet for every mask, and what was seen is remembered; damping and the choice of
    the mask are instant. `shown` has "response" and "score" [H, W] of the mask, "labels" [H, W] and "margin" [H, W].
    """
    own = bench.settings.upsample
    ask = lru_cache(maxsize=32)(lambda strength, timestep: bench.ask(replace(own, strength=strength, timestep=timestep)))
    present = [(bench.names.get(n, f"segment {n}"), n) for n in np.unique(bench.cells).tolist()]

    def draw(mask: int, strength: float, timestep: int, damping: float) -> Drawn:
        answers = ask(strength, timestep)
        scores, k = bench.judge(answers, replace(own, damping=damping)), answers.names.index(mask)
        labels, margin = bench.decide(answers, scores)
        seen = answers.plus[k], answers.minus[k], answers.response[k].numpy(), scores[k].numpy()
        figure = show_modulation(bench.frame, bench.cells == mask, *seen, labels, bench.names)
        return figure, {"response": seen[2], "score": seen[3], "labels": labels, "margin": margin}

    def on_click(panel: str, x: float, y: float) -> dict[str, int]:
        place = pick(bench.cells.shape, bench.frame.shape[:2], x, y)
        return {"mask": int(bench.cells[place["row"], place["column"]])}

    return Explorer(
        draw, on_click,
        mask=choice("mask", present[-1][1], present),
        strength=levels("λ", own.strength, sorted({*STRENGTHS, own.strength})),
        timestep=levels("noise level t", round(own.timestep), sorted({*TIMESTEPS, round(own.timestep)})),
        damping=share("damping", own.damping),
    )  # fmt: skip


def show_modulation(
    frame: Frame,
    chosen: Bool[np.ndarray, "h w"],
    plus: Colours,
    minus: Colours,
    response: Float[np.ndarray, "a b"],
    score: Float[np.ndarray, "c d"],
    labels: Integer[np.ndarray, "H W"],
    names: Mapping[int, str],
) -> Figure:
    """One mask on its way: its cells, the prediction with +lambda and the one that it is compared with (RGB in 0..1, at the
    working size), their distance, its score, and the labels that all masks together give. Panel "cells" takes clicks."""
    size = frame.shape[:2]
    figure = Drawing(figsize=(9, 6 * size[0] / size[1] + 1.3), layout="constrained")
    axes = figure.subplots(2, 3)
    inside = enlarge(chosen.astype(np.int64), size) == 1
    panel(axes[0, 0], np.where(inside[..., None], frame, frame // 4 + 160).astype(np.uint8), "the mask, in cells", name="cells")
    panel(axes[0, 1], plus, "prediction with +λ", size)
    panel(axes[0, 2], minus, "what it is compared with", size)
    panel(axes[1, 0], response, "their distance (black: 0)", size, cmap="magma", vmin=0)
    panel(axes[1, 1], score, "blurred, scaled, damped", cmap="magma", vmin=0, vmax=1)
    panel(axes[1, 2], blend(frame, labels), "the largest score takes the pixel")
    legend(figure, [labels], names)
    return figure


def compare_masks(benches: Mapping[str, Bench], truth: Pixels, distance: int) -> Float[np.ndarray, "b 3"]:
    """Share of right pixels within `distance` of a true border: a row for each bench, columns cells, bilinear, modulation."""
    near, rows = near_borders(truth, distance), []
    for bench in benches.values():
        modulated, _ = bench.run(bench.settings.upsample)
        maps = enlarge(bench.cells, truth.shape), bilinear(bench.cells[None], truth.shape)[0], modulated
        rows.append([float((labels == truth)[near].mean()) for labels in maps])
    return np.array(rows)


def near_borders(truth: Pixels, distance: int) -> np.ndarray:
    """Bool [H, W]: pixels within `distance` of a true border."""
    inside = [ndimage.distance_transform_edt(truth == name) for name in np.unique(truth)]
    return np.max(inside, axis=0) <= distance


def shifts(labels: Pixels, truth: Pixels, step: int) -> Float[np.ndarray, "3 3"]:
    """Share of right pixels, the truth shifted by (dy, dx) = -step, 0, step pixels: if all is in place, the middle is the
    largest."""
    shares = [(np.roll(truth, (dy * step, dx * step), (0, 1)) == labels).mean() for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.array(shares).reshape(3, 3)


def explore_borders(frame: Frame, maps: Mapping[str, Pixels], truth: Pixels) -> Explorer:
    """Several label maps of one frame close up, wrong pixels in black: click into the frame, or use the sliders.

    `shown` has "view" (top, left, height, width) and "right", the share of right pixels of each map in it.
    """
    size = frame.shape[:2]

    def draw(row: int, column: int, width: int) -> Drawn:
        height = width * size[0] // size[1]
        top, left = (int(np.clip(p - s // 2, 0, n - s)) for p, s, n in zip((row, column), (height, width), size, strict=True))
        cut = np.s_[top : top + height, left : left + width]
        right = {name: float((labels[cut] == truth[cut]).mean()) for name, labels in maps.items()}
        view = (top, left, height, width)
        return show_borders(frame, maps, truth, view, right), {"view": view, "right": right}

    return Explorer(
        draw, lambda panel, x, y: {"row": int(y), "column": int(x)},
        row=slider("y", size[0] // 2, 0, size[0] - 1), column=slider("x", size[1] // 2, 0, size[1] - 1),
        width=slider("width", size[1] // 4, size[1] // 10, size[1]),
    )  # fmt: skip


def show_borders(
    frame: Frame,
    maps: Mapping[str, Integer[np.ndarray, "H W"]],
    truth: Integer[np.ndarray, "H W"],
    view: tuple[int, int, int, int],
    right: Mapping[str, float],
) -> Figure:
    """The frame with a rectangle, `view` = (top, left, height, width) in pixels, and what is in it: the true outline in white,
    then each map, wrong pixels in black, with the share of right ones in its title. Panel "frame" takes clicks."""
    top, left, height, width = view
    figure = Drawing(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    panel(axes[0], frame, "click to look elsewhere", name="frame")
    axes[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="black", linewidth=3.5))
    axes[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white", linewidth=1.5))
    cut = np.s_[top : top + height, left : left + width]
    panel(axes[1], blend(frame[cut], truth[cut], 0.0), "the true outline")
    for place, (name, labels) in zip(axes[2:], maps.items(), strict=False):
        picture = blend(frame[cut], labels[cut], 0.6)
        picture[labels[cut] != truth[cut]] = 0
        panel(place, picture, f"{name}: {right[name]:.1%} right")
    for unused in axes[2 + len(maps) :]:
        unused.set_axis_off()
    return figure


def show_confidence(frame: Frame, labels: Integer[np.ndarray, "H W"], margin: Map, wrong: Bool[np.ndarray, "H W"]) -> Figure:
    """Labels, by how much the winner beat the runner-up, and the pixels that are wrong (black)."""
    figure = Drawing(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    panel(axes[0], blend(frame, labels), "labels")
    panel(axes[1], margin, "lead of the winner (black: 0)", cmap="magma", vmin=0, vmax=1)
    faded = (frame // 4 + 170).astype(np.uint8)
    panel(axes[2], np.where(wrong[..., None], 0, faded).astype(np.uint8), "wrong pixels")
    return figure
