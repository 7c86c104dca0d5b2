"""What the queries of stage 1 tell: what a cell resembles, which layer separates what, where the features lie."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped, UInt8
from matplotlib.figure import Figure

from vidseg_core.common import enlarge
from vidseg_core.context import SceneContext
from vidseg_core.evaluation.metrics import class_iou, confusion
from vidseg_core.features import QUERY, extract_features, normalise, working_images
from vidseg_core.io.overlay import Drawing, panel
from vidseg_core.models.backbone import Backbone
from vidseg_core.settings import ContextSettings, FeatureSettings, Settings
from vidseg_core.workbook.figures import mark
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, levels, pick, slider

Frames = UInt8[np.ndarray, "f H W 3"]
NOISE_LEVELS = (1, 20, 50, 100, 200, 400, 600, 800)
"""Timesteps that the explorer offers: finer where the picture is still to be recognised."""


def attention_blocks(backbone: Backbone) -> list[str]:
    """Paths of all blocks of the UNet with self-attention, in the order in which a pass runs through them."""
    parts = ("down_blocks", "mid_block", "up_blocks")
    paths = [path.removesuffix(QUERY) for path, _ in backbone.unet.named_modules() if path.endswith(QUERY)]
    return sorted(paths, key=lambda path: parts.index(path.split(".")[0]))


def queries(
    backbone: Backbone, frames: Frames, block: str, timestep: float, ensemble: int = 1, noise: str = "shared"
) -> Float[np.ndarray, "f h w d"]:
    """Stage 1 with one block and no position appended: normalised queries of the frames, as `extract_features` makes them."""
    features = FeatureSettings(
        blocks=(block,), match_blocks=(block,), timestep=timestep, ensemble=ensemble, noise=noise, combine="mean", position=0.0
    )
    settings = Settings(features=features).resolve(backbone.model)
    return extract_features(backbone, _images(backbone, frames), settings).match.cpu().numpy()


def all_queries(backbone: Backbone, frames: Frames, timestep: float) -> dict[str, Float[np.ndarray, "f _ _ _"]]:
    """What `queries` gives for each attention block, of a single pass: by block, [f, h, w, d] of its own size."""
    settings = Settings().resolve(backbone.model)
    latents = backbone.encode(_images(backbone, frames))
    noisy = latents + backbone.sigma(timestep) * backbone.noise(latents, settings.seed, shared=True)
    with backbone.tap(tuple(block + QUERY for block in attention_blocks(backbone))) as taps:
        backbone.denoise(noisy, timestep)
    height, width = latents.shape[2:]
    maps = {}
    for path, tokens in taps.items():
        stride = round((height * width / tokens.shape[1]) ** 0.5)
        cells = tokens.float().unflatten(1, (height // stride, width // stride))
        maps[path.removesuffix(QUERY)] = normalise(cells, settings.features.normalise).cpu().numpy()
    return maps


def explore_similarity(backbone: Backbone, frames: Frames, numbers: Sequence[int]) -> Explorer:
    """Cosine similarity of one cell, clicked or chosen, to all cells of all frames; `numbers` are the frames' in the clip.

    The frames' queries are read once for each block and noise level (a UNet pass a frame); a new point is a product of
    matrices. `shown` has "similarity" [f, h, w], "best" (row, column of the most similar cell of each frame) and "source".
    """
    own, size = Settings().resolve(backbone.model).features, frames.shape[1:3]
    block, timestep = own.match_blocks[0], round(own.timestep)

    @lru_cache(maxsize=16)
    def read(block: str, timestep: int) -> np.ndarray:
        tokens = queries(backbone, frames, block, timestep)
        return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)

    grid = read(block, timestep).shape[1:3]

    def draw(frame: int, row: int, column: int, block: str, timestep: int) -> Drawn:
        tokens = read(block, timestep)
        cells = tokens.shape[1:3]
        row, column = row * cells[0] // grid[0], column * cells[1] // grid[1]
        similarity = tokens @ tokens[frame, row, column]
        best = [tuple(int(p) for p in np.unravel_index(s.argmax(), s.shape)) for s in similarity]
        figure = show_similarity(frames, similarity, best, (frame, row, column), numbers)
        return figure, {"similarity": similarity, "best": best, "source": (frame, row, column)}

    def on_click(panel: str, x: float, y: float) -> dict[str, int]:
        return {"frame": int(panel.split()[-1])} | pick(grid, size, x, y)

    return Explorer(
        draw, on_click,
        row=slider("row", grid[0] // 2, 0, grid[0] - 1, live=True),
        column=slider("column", grid[1] // 2, 0, grid[1] - 1, live=True),
        frame=slider("of picture", 0, 0, len(frames) - 1),
        block=choice("block", block, [b for b in attention_blocks(backbone) if b.startswith("up")]),
        timestep=levels("noise level t", timestep, sorted({*NOISE_LEVELS, timestep})),
    )  # fmt: skip


def show_similarity(
    frames: UInt8[np.ndarray, "f H W 3"],
    similarity: Float[np.ndarray, "f h w"],
    best: Sequence[tuple[int, int]],
    source: tuple[int, int, int],
    numbers: Sequence[int],
) -> Figure:
    """Frames above, below them how similar each cell is to the cell `source` = (frame, row, column), circled; a cross stands
    on the most similar cell of each frame. `numbers` are the frames' numbers in the clip. Panels "0", "1", ... take clicks."""
    size, cells = frames.shape[1:3], similarity.shape[1:]
    width = 9 / len(frames)
    figure = Drawing(figsize=(9, 2 * width * size[0] / size[1] + 0.9), layout="constrained")
    axes = figure.subplots(2, len(frames), squeeze=False)
    for k, frame in enumerate(frames):
        panel(axes[0, k], frame, f"frame {numbers[k]}", size, name=str(k))
        panel(axes[1, k], similarity[k], "", size, name=f"similarity {k}", cmap="magma", vmin=0, vmax=1)
        for row in axes[:, k]:
            mark(row, *best[k], cells, size, "x")
        if k == source[0]:
            mark(axes[0, k], *source[1:], cells, size)
            mark(axes[1, k], *source[1:], cells, size)
    bar = figure.colorbar(axes[1, 0].images[0], ax=axes[1], location="bottom", shrink=0.4, aspect=40, pad=0.02)
    bar.set_label("cosine similarity of the queries", fontsize=9)
    return figure


def separation(
    tokens: Float[np.ndarray, "f h w d"], masks: Integer[np.ndarray, "f H W"], num_classes: int
) -> Float[np.ndarray, " classes"]:
    """IoU of each class when the cells of frame 0, which carry their true class, name those of the later frames (k-NN).

    No clusters and no tracks take part, so that this measures the features alone. A cell's class is that at its centre.
    """
    features, settings = torch.from_numpy(tokens), ContextSettings(memory="window")
    classes = torch.from_numpy(at_centres(masks[:1], tokens.shape[1:3])).flatten()
    context = SceneContext.begin(features[0].flatten(0, 1), classes, settings)
    found = context.predict(features[1:]).argmax(-1).numpy()
    pairs = ((enlarge(cells, mask.shape), mask) for cells, mask in zip(found, masks[1:], strict=True))
    return class_iou(sum(confusion(labels, mask, num_classes) for labels, mask in pairs))


def separation_table(
    backbone: Backbone, frames: Frames, masks: Integer[np.ndarray, "f H W"], num_classes: int, timesteps: Sequence[float]
) -> Float[np.ndarray, "blocks timesteps classes"]:
    """`separation` for every attention block and each noise level: a UNet pass for each level."""
    levels = [all_queries(backbone, frames, t) for t in timesteps]
    blocks = attention_blocks(backbone)
    return np.array([[separation(level[block], masks, num_classes) for level in levels] for block in blocks])


def steadiness(tokens: Float[np.ndarray, "f h w d"], masks: Integer[np.ndarray, "f H W"], label: int) -> float:
    """Mean cosine between frame 0 and the others of the cells that have `label` in both: 1 if nothing changes there."""
    unit, classes = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True), at_centres(masks, tokens.shape[1:3])
    cosine = (unit[1:] * unit[:1]).sum(-1)
    return float(cosine[(classes[1:] == label) & (classes[:1] == label)].mean())


def alignment(tokens: Float[np.ndarray, "f h w d"], masks: Integer[np.ndarray, "f H W"]) -> Float[np.ndarray, "3 3"]:
    """Correlation between the steps of the features from cell to cell and the borders of the masks, the masks shifted by
    (dy, dx) = -1, 0, 1 cells: entry [1, 1] is that in place. It is the largest if the features stand where the things are."""
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    classes = at_centres(masks, tokens.shape[1:3])
    result = np.zeros((3, 3))
    for dy, dx in np.ndindex(3, 3):
        shifted = np.roll(classes, (dy - 1, dx - 1), axis=(1, 2))
        steps, borders = [], []
        for axis in (1, 2):
            here, there = (np.take(unit, np.arange(1, unit.shape[axis] - 2) + k, axis) for k in (0, 1))
            a, b = (np.take(shifted, np.arange(1, unit.shape[axis] - 2) + k, axis) for k in (0, 1))
            steps.append(1 - (here * there).sum(-1).ravel())
            borders.append((a != b).ravel())
        result[dy, dx] = np.corrcoef(np.concatenate(steps), np.concatenate(borders))[0, 1]
    return result


def at_centres(masks: Shaped[np.ndarray, "f H W"], cells: tuple[int, int]) -> Shaped[np.ndarray, "f h w"]:
    """The label (or other value) at the centre of each cell of a grid `cells` = (h, w)."""
    rows, columns = ((2 * np.arange(n) + 1) * s // (2 * n) for n, s in zip(cells, masks.shape[1:], strict=True))
    return masks[:, rows][:, :, columns]


def _images(backbone: Backbone, frames: Frames) -> torch.Tensor:
    return working_images(backbone, frames, Settings())
