"""Evaluation by hand: protocols, measures and methods on the clips that come along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt8
from matplotlib.figure import Figure

from vidseg_core.common import VOID, enlarge
from vidseg_core.evaluation.baselines import ContextMethod, FrameMethod, FullMethod, Method, PropagationMethod, make_method
from vidseg_core.evaluation.extractors import Extractor, model_features
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.evaluation.metrics import class_iou
from vidseg_core.evaluation.scoring import Rules, Window, given_mask, score
from vidseg_core.evaluation.tally import Meter, Tally
from vidseg_core.features import Features
from vidseg_core.io.masks import PALETTE
from vidseg_core.io.overlay import Drawing, blend, legend, panel
from vidseg_core.io.samples import generated_clip
from vidseg_core.models.backbone import Backbone
from vidseg_core.settings import Settings

Frame = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "H W"]
Maps = Integer[np.ndarray, "f H W"]


@dataclass(frozen=True)
class Judged:
    """What a method gave for a clip: the last stage's classes [f, H, W] (numbers beyond the classes: no class), and the scores
    of every stage."""

    clip: LabelledArrays
    classes: tuple[str, ...]
    labels: Maps
    tallies: dict[str, Tally]

    @property
    def tally(self) -> Tally:
        """The last stage's."""
        return list(self.tallies.values())[-1]

    @property
    def scored(self) -> list[int]:
        """Numbers of the frames whose labels count."""
        return [n for n in sorted(self.clip.labels) if self.clip.scored(n)]


def thin(dataset: Dataset, step: int, stop: int | None = None) -> Dataset:
    """Every `step`-th frame of a set's one clip in memory, and all that have labels unless every frame has, up to frame `stop`;
    the true motion, where it was known, is left out."""
    clip = dataset.clips[0]
    kept = set(range(0, clip.num_frames, step))
    if len(clip.labels) < clip.num_frames:
        kept |= set(clip.labels)
    numbers = sorted(n for n in kept if stop is None or n < stop)
    labels = {k: clip.labels[n] for k, n in enumerate(numbers) if n in clip.labels}
    part = replace(clip, images=clip.images[numbers], labels=labels, flow=None, visible=None)
    return replace(dataset, clips=(part,))


def late_clip(step: int, num_frames: int = 24) -> Dataset:
    """Every `step`-th frame of the generated clip into which a class comes that frame 0 does not show; all are labelled."""
    made = generated_clip(num_frames, late=True)
    clip = LabelledArrays("late", made.frames, dict(enumerate(made.labels)))
    return thin(Dataset("late", tuple(made.names[n] for n in range(len(made.names))), (clip,)), step)


def remembering(extract: Extractor) -> Extractor:
    """The same extractor, which computes every window's features once."""
    known: dict[bytes, Features] = {}

    def cached(frames: np.ndarray) -> Features:
        key = frames.tobytes()
        if key not in known:
            known[key] = extract(frames)
        return known[key]

    return cached


def judge(method: Method, dataset: Dataset, settings: Settings, protocol: str = "first") -> Judged:
    """Run a method over a set's one clip and score it, as `python -m vidseg_core evaluate` does."""
    clip = dataset.clips[0]
    mask = given_mask(clip, settings.context.num_clusters) if protocol == "first" else None
    return judge_windows(list(method.stream(clip.read(0), mask)), method.stages, dataset, protocol)


def judge_windows(windows: Sequence[Window], stages: Sequence[str], dataset: Dataset, protocol: str) -> Judged:
    """Score what a method gave for a set's one clip."""
    clip, last = dataset.clips[0], stages[-1]
    scores = score(clip, windows, Rules.of(dataset, protocol))
    cells = [frame for window in windows for frame in window.maps[last]]
    labels = np.stack([scores.names[last][enlarge(frame, clip.size)] for frame in cells])
    return Judged(clip, dataset.classes, labels, {stage: scores.tallies[stage] for stage in stages})


def name_in_ways(backbone: Backbone, dataset: Dataset) -> dict[str, Judged]:
    """The same features and stages, named in four ways; without a mask all K clusters stay apart until they are named."""
    base = Settings().resolve(backbone.model)
    extract = remembering(model_features(backbone, base))
    result = {}
    for naming in ("cells", "clusters"):
        settings = replace(base, context=replace(base.context, naming=naming))
        result[f"{naming}, by frame 0"] = judge(ContextMethod(backbone, settings, extract), dataset, settings)
    method = ContextMethod(backbone, base, extract)
    windows = list(method.stream(dataset.clips[0].read(0)))  # without a mask, one run is named in both ways
    for name, protocol in {"named by frame 0": "named", "Hungarian": "matched"}.items():
        result[f"no mask, {name}"] = judge_windows(windows, method.stages, dataset, protocol)
    return result


def show_named_ways(frame: Frame, truth: Labels, maps: Mapping[str, Labels], names: Mapping[int, str]) -> Figure:
    """The truth of a frame and label maps beside it, three to a row, wrong pixels black."""
    rows = -(-(len(maps) + 2) // 3)
    figure = Drawing(figsize=(9, rows * (3 * frame.shape[0] / frame.shape[1] + 0.3) + 0.4), layout="constrained")
    axes = figure.subplots(rows, 3).ravel()
    panel(axes[0], frame, "the frame")
    panel(axes[1], blend(frame, truth), "the truth")
    for place, (title, labels) in zip(axes[2:], maps.items(), strict=False):
        panel(place, with_errors(frame, labels, truth), title)
    for unused in axes[2 + len(maps) :]:
        unused.set_axis_off()
    legend(figure, [truth], names)
    return figure


def with_errors(frame: Frame, labels: Labels, truth: Labels) -> Frame:
    """The overlay with wrong pixels black; where the truth is void nothing is wrong."""
    picture = blend(frame, labels, 0.6)
    picture[(labels != truth) & (truth != VOID)] = 0
    return picture


def pretenders(truth: Int64[np.ndarray, "f H W"], num_classes: int) -> dict[str, Int64[np.ndarray, "f H W"]]:
    """Labels made from the truth, each bad or good in one way of its own."""
    rng, (_, height, width) = np.random.default_rng(0), truth.shape
    largest = np.bincount(truth.ravel()).argmax()
    rows, columns = (np.minimum(np.arange(n) // 8 * 8 + 4, n - 1) for n in (height, width))
    noisy = np.where(rng.random(truth.shape) < 0.05, rng.integers(0, num_classes, truth.shape), truth)
    return {
        "the truth": truth,
        "every name wrong": (truth + 1) % num_classes,
        "the largest class everywhere": np.full_like(truth, largest),
        "the mask of frame 0, held still": np.broadcast_to(truth[0], truth.shape).copy(),
        "exact cells of 8 x 8": truth[:, rows[:, None], columns],
        "5 % of the pixels drawn anew": noisy,
    }


def score_maps(maps: Mapping[str, Maps], clip: LabelledArrays, num_classes: int) -> dict[str, dict[str, float]]:
    """All scores of label maps of a clip, without seams."""
    result = {}
    for name, labels in maps.items():
        meter = Meter(num_classes)
        for n, frame in enumerate(labels):
            meter.add(frame, clip.labels.get(n), clip.scored(n), False, *clip.motion(n))
        result[name] = meter.finish().scores()
    return result


def run_methods(backbone: Backbone, datasets: Sequence[Dataset], names: Sequence[str]) -> dict[str, dict[str, Judged]]:
    """Set -> method -> result, under the first-frame protocol. What uses the model's features shares them."""
    settings = Settings().resolve(backbone.model)
    extract = remembering(model_features(backbone, settings))
    shared = {
        "vidseg": FullMethod(backbone, settings, extract), "bilinear": ContextMethod(backbone, settings, extract),
        "frames": FrameMethod(extract, settings, backbone.device),
        "propagation": PropagationMethod(extract, settings, backbone.device),
    }  # fmt: skip
    made = {name: shared.get(name) or make_method(name, backbone, settings) for name in names}
    return {d.name: {name: judge(method, d, settings) for name, method in made.items()} for d in datasets}


def score_lines(of: Mapping[str, Judged]) -> dict[str, dict[str, float]]:
    """The scores of each method's last stage, and of VidSeg's other stages before it."""
    return {
        method if stage == list(judged.tallies)[-1] else f"{method}, {stage}": tally.scores()
        for method, judged in of.items()
        for stage, tally in judged.tallies.items()
        if method == "vidseg" or stage == list(judged.tallies)[-1]
    }


def show_scores(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> Figure:
    """Scores in percent, a column of horizontal bars for each measure, its values written right of them; NaN is a dash."""
    figure = Drawing(figsize=(9, 0.9 + 0.32 * len(rows)), layout="constrained")
    grid, at = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], np.arange(len(rows))[::-1]
    for axes, column in zip(grid, columns, strict=True):
        values = 100 * np.array([row[column] for row in rows.values()])
        axes.barh(at, np.nan_to_num(values), color="0.75", height=0.8)
        for y, value in zip(at, values, strict=True):
            axes.text(np.nan_to_num(value) + 3, y, "–" if np.isnan(value) else f"{value:.1f}", va="center", fontsize=9)
        axes.set_title(f"{column}, %", fontsize=10)
        axes.set_xlim(0, 150)  # room for the number behind a full bar
        axes.set_xticks([])
        axes.set_yticks(at, list(rows), fontsize=9)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def class_scores(of: Mapping[str, Judged]) -> dict[str, Float[np.ndarray, " classes"]]:
    """IoU of each class, for each method."""
    return {method: class_iou(judged.tally.counts) for method, judged in of.items()}


def show_class_bars(
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]], classes: Mapping[str, Sequence[str]]
) -> Figure:
    """IoU of each class in percent: a panel for each set, a group of bars for each method, a colour for each class."""
    figure = Drawing(figsize=(9, 2.5 * len(scores)), layout="constrained")
    for axes, (name, of) in zip(figure.subplots(len(scores), 1, squeeze=False)[:, 0], scores.items(), strict=True):
        count = len(classes[name])
        for k, title in enumerate(classes[name]):
            x = np.arange(len(of)) + (k - (count - 1) / 2) * 0.8 / count
            bars = axes.bar(x, [100 * iou[k] for iou in of.values()], 0.8 / count, color=PALETTE[k] / 255, label=title)
            axes.bar_label(bars, fmt="%.0f", fontsize=8)
        axes.set_xticks(range(len(of)), list(of), fontsize=9)
        axes.set_ylabel("IoU, %", fontsize=9)
        axes.set_ylim(0, 112)
        axes.set_title(name, fontsize=10)
        axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
    return figure
