"""Evaluation by hand: protocols, measures and methods on the clips that come along."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float, Int64, Integer

from vidseg_core.evaluation.baselines import ContextMethod, FrameMethod, FullMethod, Method, PropagationMethod, make_method
from vidseg_core.evaluation.extractors import Extractor, model_features
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.evaluation.metrics import boundary_f, class_iou, confusion, mean_iou, pixel_accuracy
from vidseg_core.evaluation.scoring import Plan, Store, given_mask, load_window, score_windows, segment_names
from vidseg_core.evaluation.tally import Meter, Tally
from vidseg_core.features import Features
from vidseg_core.io.samples import generated_clip
from vidseg_core.models.backbone import Backbone
from vidseg_core.settings import Settings
from vidseg_core.workbook.figures import enlarge
from vidseg_core.workbook.pictures.evaluation import show_failure
from vidseg_core.workbook.widgets import Drawn, Explorer, choice, slider

Maps = Integer[np.ndarray, "f H W"]
METRICS = ("accuracy", "mIoU", "F")


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


def thin(dataset: Dataset, step: int) -> Dataset:
    """Every `step`-th frame of a set's one clip in memory, and all that have labels unless every frame has; the true motion,
    where it was known, is left out."""
    clip = dataset.clips[0]
    kept = set(range(0, clip.num_frames, step))
    if len(clip.labels) < clip.num_frames:
        kept |= set(clip.labels)
    numbers = sorted(kept)
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
    with TemporaryDirectory() as folder:
        plan = Plan(Path(folder), len(dataset.classes), dataset.official_vc, "", "", settings, protocol)
        store = Store(plan.out, clip.name)
        for window in method.stream(clip.read(0), given_mask(plan, clip) if protocol == "first" else None):
            store.write(window.start, {name: maps.astype(np.uint8) for name, maps in window.maps.items()}, {}, "")
        paths = store.windows()
        names = segment_names(plan, clip, paths)
        tallies, last = score_windows(plan, clip, paths, names, Counter()), method.stages[-1]
        cells = [frame for path in paths for frame in load_window(path).maps[last]]
    labels = np.stack([names[last][enlarge(frame, clip.size)] for frame in cells])
    return Judged(clip, dataset.classes, labels, {stage: tallies[stage] for stage in method.stages})


def name_in_ways(backbone: Backbone, dataset: Dataset) -> dict[str, Judged]:
    """The same features and stages, named in four ways; without a mask all K clusters stay apart until they are named."""
    base = Settings().resolve(backbone.model)
    extract = remembering(model_features(backbone, base))
    ways = {
        "cells, by frame 0": ({"naming": "cells"}, "first"), "clusters, by frame 0": ({"naming": "clusters"}, "first"),
        "no mask, named by frame 0": ({}, "named"),
        "no mask, Hungarian": ({}, "matched"),
    }  # fmt: skip
    result = {}
    for name, (changed, protocol) in ways.items():
        settings = replace(base, context=replace(base.context, **changed))
        result[name] = judge(ContextMethod(extract, settings, backbone.device), dataset, settings, protocol)
    return result


def run_methods(backbone: Backbone, datasets: Sequence[Dataset], names: Sequence[str]) -> dict[str, dict[str, Judged]]:
    """Set -> method -> result, under the first-frame protocol. What uses the model's features shares them."""
    settings = Settings().resolve(backbone.model)
    extract = remembering(model_features(backbone, settings))
    shared = {"bilinear": ContextMethod, "frames": FrameMethod, "propagation": PropagationMethod}
    made = {
        name: shared[name](extract, settings, backbone.device) if name in shared else make_method(name, backbone, settings)
        for name in names
    }
    assert "vidseg" not in made or isinstance(made["vidseg"], FullMethod)
    return {d.name: {name: judge(method, d, settings) for name, method in made.items()} for d in datasets}


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


def frame_scores(judged: Judged, frame: int) -> dict[str, float]:
    """Accuracy, mIoU and boundary F of one labelled frame, as shares."""
    labels, truth, count = judged.labels[frame], judged.clip.labels[frame], len(judged.classes)
    counts = confusion(labels, truth, count)
    return {
        "accuracy": pixel_accuracy(counts), "mIoU": mean_iou(counts), "F": float(np.nanmean(boundary_f(labels, truth, count))),
    }  # fmt: skip


def worst_frames(results: Mapping[str, Mapping[str, Judged]], count: int) -> list[tuple[str, str, int, float]]:
    """(set, method, frame, accuracy) of the scored frames with the lowest accuracy, of each set and method the worst only."""
    found = []
    for name, of in results.items():
        for method, judged in of.items():
            shares = {n: frame_scores(judged, n)["accuracy"] for n in judged.scored}
            frame = min(shares, key=shares.get)
            found.append((name, method, frame, shares[frame]))
    return sorted(found, key=lambda entry: entry[-1])[:count]


def score_lines(of: Mapping[str, Judged]) -> dict[str, dict[str, float]]:
    """The scores of each method's last stage, and of VidSeg's other stages before it."""
    return {
        method if stage == list(judged.tallies)[-1] else f"{method}, {stage}": tally.scores()
        for method, judged in of.items()
        for stage, tally in judged.tallies.items()
        if method == "vidseg" or stage == list(judged.tallies)[-1]
    }


def gallery(results: Mapping[str, Mapping[str, Judged]], count: int) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """`worst_frames` as `show_gallery` takes them."""
    entries = []
    for name, method, frame, share in worst_frames(results, count):
        judged = results[name][method]
        labels, truth = judged.labels[frame], judged.clip.labels[frame]
        entries.append((f"{name}, {method}: {share:.1%}", judged.clip.images[frame], labels, truth))
    return entries


def class_scores(of: Mapping[str, Judged]) -> dict[str, Float[np.ndarray, " classes"]]:
    """IoU of each class, for each method."""
    return {method: class_iou(judged.tally.counts) for method, judged in of.items()}


def explore_failures(results: Mapping[str, Mapping[str, Judged]]) -> Explorer:
    """Clip, method, measure and frame: where the labels are wrong, and how all methods fare from frame to frame. A click on
    the curve chooses a frame. `shown` has "wrong" [H, W], "frame" and "curves", the measure of each method on scored frames."""

    def draw(clip: str, method: str, metric: str, place: int) -> Drawn:
        judged = results[clip][method]
        place = min(place, len(judged.scored) - 1)
        frame = judged.scored[place]
        curves = {name: [frame_scores(j, n)[metric] for n in j.scored] for name, j in results[clip].items()}
        truth, names = judged.clip.labels[frame], dict(enumerate(judged.classes))
        wrong = (judged.labels[frame] != truth) & (truth != 255)
        figure = show_failure(judged.clip.images[frame], judged.labels[frame], truth, curves, method, metric, place, names)
        return figure, {"wrong": wrong, "frame": frame, "curves": curves}

    first = next(iter(results.values()))
    length = max(len(j.scored) for of in results.values() for j in of.values())
    return Explorer(
        draw, lambda panel, x, y: {"place": int(np.clip(round(x), 0, length - 1))},
        clip=choice("clip", next(iter(results)), list(results)), method=choice("method", next(iter(first)), list(first)),
        metric=choice("measure", METRICS[0], METRICS), place=slider("frame shown", length - 1, 0, length - 1, live=True),
    )  # fmt: skip
