"""What each stage and each hyperparameter is worth, under the first-frame protocol, with error bars over clips.

    python benchmarks/ablation.py --camvid DIR --davis DIR

CamVid's frames are a second apart, so each window of 14 is a clip of its own with its own first mask (K = 20); DAVIS' clips run
through (K = 8), so that the context moves along. Rows differ from the default in one thing. Features and cells are computed
once for all rows that share them, and pixels (stage 4) only where a row is about them. What is finished is kept in --out: the
same command goes on there. Writes benchmarks/results/ablation_SET.csv and .md; of a part of the data, only into --out.
"""

import argparse
import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from vidseg_core import ContextSettings, FeatureSettings, Settings, UpsampleSettings, VidSeg, load_backbone
from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.evaluation.baselines import FrameMethod, bilinear_votes
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.evaluate import claim_folder
from vidseg_core.evaluation.extractors import Extractor
from vidseg_core.evaluation.labelled import AnyClip, Dataset
from vidseg_core.evaluation.report import clip_scores, percent, total_scores
from vidseg_core.evaluation.scoring import given_mask
from vidseg_core.evaluation.tally import Meter, Tally
from vidseg_core.features import Features, frame_features
from vidseg_core.io.files import replacing
from vidseg_core.io.results import write_json
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.fingerprint import fingerprint
from vidseg_core.pipeline import windows
from vidseg_core.workbook.ablation import GROUPS

SCORES = ("mIoU", "accuracy", "F", "stability", "seam stability", "mVC8")
SHOWN = ("mIoU", "F", "stability", "mVC8")
"""Of them, those that a page has room for; the CSV has all."""
TITLES = {"camvid": "CamVid", "davis": "DAVIS"}
CLUSTERS = {"camvid": 20, "davis": 8}
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the table: `stage` is what is scored (coarse, bilinear, full); `against` the row it is compared with."""

    group: str
    name: str
    settings: Settings
    stage: str
    against: str
    frame_by_frame: bool = False

    @property
    def key(self) -> str:
        """The name of its files: rows that are the same measurement share them."""
        measured = self.settings if self.stage == "full" else replace(self.settings, upsample=UpsampleSettings())
        return hashlib.sha256(f"{measured} {self.stage} {self.frame_by_frame}".encode()).hexdigest()[:16]


def rows(base: Settings, backbone: Backbone) -> Iterator[Row]:
    """All rows, those with the same features behind each other."""
    off = replace(base, refine=replace(base.refine, method="none"))
    bare, native = replace(base, upsample=replace(base.upsample, edges=0.0)), replace(base.features, scales=(1.0,))
    both = replace(base, upsample=replace(base.upsample, difference="two-sided"))
    yield Row("stages", "all stages, pixels", base, "full", "edges off")
    yield Row("stages", "edges off", bare, "full", "modulation off: bilinear")
    yield Row("stages", "modulation off: bilinear", base, "bilinear", "modulation and refinement off")
    yield Row("stages", "modulation and refinement off", off, "bilinear", "modulation, refinement and context off")
    yield Row("stages", "modulation, refinement and context off", off, "bilinear", "", True)
    yield Row("stages", "two-sided differences", both, "full", "all stages, pixels")
    yield Row("stages", "cells at the working size", replace(base, features=native), "full", "all stages, pixels")
    tracks = replace(base, refine=replace(base.refine, method="tracks"))
    yield Row("stages", "refinement by tracks: bilinear", tracks, "bilinear", "modulation off: bilinear")
    coarse = "coarse cells"
    yield Row("stages", coarse, off, "coarse", coarse)
    for name, changed in {"clusters named": {"naming": "clusters"}, "last window alone": {"memory": "window"}}.items():
        yield Row("stages", name, replace(off, context=replace(base.context, **changed)), "coarse", coarse)
    for count in (5, 10, 20, 40):  # K plays no part where the mask names cells
        context = replace(base.context, num_clusters=count, naming="clusters")
        yield Row("clusters", f"clusters named, K = {count}", replace(off, context=context), "coarse", coarse)
    for count in (1, 2, 4, 8, 16):
        context = replace(base.context, neighbours=count)
        yield Row("neighbours", f"k = {count}", replace(off, context=context), "coarse", coarse)
    context = replace(base.context, weights="uniform")
    yield Row("neighbours", f"k = {context.neighbours}, equal votes", replace(off, context=context), "coarse", coarse)
    for factor in (0.3, 1.0, 3.0):
        changed = replace(base.upsample, strength=base.upsample.strength * factor)
        name = f"lambda = {changed.strength:g}"
        yield Row("strength", name, replace(base, upsample=changed), "full", "all stages, pixels")
    for name, separation in {"each mask alone": None, "masks 1 cell apart share a pass": 1, "all share one": 0}.items():
        changed = replace(base.upsample, separation=separation)
        yield Row("passes", name, replace(base, upsample=changed), "full", "all stages, pixels")
    for weight in (0.0, 0.075, 0.15, 0.3):
        features = replace(base.features, position=weight)
        yield Row("position", f"weight of (y, x) = {weight:g}", replace(off, features=features), "coarse", coarse)
    for weight in (0.0, 0.15):
        name, changed = f"clusters named, weight {weight:g}", replace(off, features=replace(base.features, position=weight))
        context = replace(base.context, naming="clusters")
        yield Row("position", name, replace(changed, context=context), "coarse", coarse)
    for name, how, length in (("length", "l2", 1.0), ("largest entry", "max", 4.4)):  # of tiny's tokens, so divided
        for weight in (0.0, 0.15):  # of (y, x) over the tokens' length: divided either way, place counts the same
            features = replace(base.features, normalise=how, position=length * weight)
            where = "" if weight else ", no (y, x)"
            yield Row("normalise", f"by {name}{where}", replace(off, features=features), "coarse", coarse)
        changed = replace(off, features=features, context=replace(base.context, naming="clusters"))
        yield Row("normalise", f"clusters named, by {name}", changed, "coarse", coarse)
    for name, blocks in single_blocks(base, backbone).items():
        features = replace(base.features, blocks=blocks)
        yield Row("blocks", name, replace(off, features=features), "coarse", coarse)
    for timestep in (5, 20, 50, 100, 200):
        features = replace(base.features, timestep=timestep)
        yield Row("timestep", f"t = {timestep}", replace(off, features=features), "coarse", coarse)


def single_blocks(base: Settings, backbone: Backbone) -> dict[str, tuple[str, ...]]:
    """Each attention block of the decoder alone, and those of the default together."""
    ending = ".transformer_blocks.0.attn1.to_q"
    paths = [p.removesuffix(ending) for p, _ in backbone.unet.named_modules() if p.startswith("up_") and p.endswith(ending)]
    return {path: (path,) for path in paths} | {"default: " + ", ".join(base.features.blocks): base.features.blocks}


class Shared:
    """What the rows of one clip have in common: the features of the last settings asked for, and the cells of all."""

    def __init__(self, clip: AnyClip, backbone: Backbone):
        self.clip, self.backbone = clip, backbone
        self.extractor = lru_cache(maxsize=1)(self._extractor)
        self.cells = lru_cache(maxsize=None)(self._cells)

    def _extractor(self, features: FeatureSettings, size: tuple[int, int] | None) -> Extractor:
        known: dict[bytes, Features] = {}
        settings = Settings(features=features, working_size=size)  # the seed of the noise stays

        def extract(frames: np.ndarray) -> Features:
            name = hashlib.sha256(frames.tobytes()).digest()
            if name not in known:
                known[name] = frame_features(self.backbone, frames, settings)
            return known[name]

        return extract

    def _cells(self, settings: Settings, frame_by_frame: bool) -> list["Cells"]:
        extract = self.extractor(settings.features, settings.working_size)
        mask = given_mask(self.clip, settings.context.num_clusters)
        if frame_by_frame:
            found = FrameMethod(extract, settings, self.backbone.device).stream(self.clip.read(0), mask)
            maps = ((p.start, torch.from_numpy(p.maps["coarse"]).long()) for p in found)
            return [Cells(start, coarse.numpy(), Votes.certain(coarse)) for start, coarse in maps]
        found = VidSeg(self.backbone, settings, extract).cells(self.clip.read(0), mask)
        return [Cells(r.start, r.coarse, r.scene.named(torch.from_numpy(r.votes[1]))) for r in found]


@dataclass(frozen=True)
class Cells:
    """A window's cells: its first frame's number, coarse labels, and the votes after refinement."""

    start: int
    coarse: np.ndarray
    refined: Votes


def measure(row: Row, clip: AnyClip, dataset: Dataset, shared: Shared, seed: int) -> Tally:
    """The tally of one row on one clip; `seed` is that of the clustering."""
    settings, meter = replace(row.settings, seed=seed), Meter(len(dataset.classes), dataset.official_vc, dataset.objects)
    predicted = shared.cells(replace(settings, upsample=UpsampleSettings()), row.frame_by_frame)
    for frames, window in zip(windows(clip.read(0), settings.window), predicted, strict=True):
        for i, labels in enumerate(pixels(row.stage, frames, window, shared.backbone, row.settings)):
            n = window.start + i
            truth = clip.read_labels(n)[0] if n in clip.labels else None
            meter.add(labels, truth, clip.scored(n), i == 0 and n > 0)
    return meter.finish()


def pixels(stage: str, frames: np.ndarray, cells: Cells, backbone: Backbone, settings: Settings) -> np.ndarray:
    """Labels at the frames' size: each pixel that of its cell (coarse), of votes enlarged bilinearly, or by modulation."""
    size = frames.shape[1:3]
    if stage == "coarse":
        return np.stack([enlarge(frame, size) for frame in cells.coarse])
    if stage == "bilinear":
        return bilinear_votes(cells.refined, size)
    votes = Votes(cells.refined.shares.to(backbone.device), cells.refined.numbers.to(backbone.device))
    return VidSeg(backbone, settings).enlarge(frames, votes)


def run(dataset: Dataset, base: Settings, backbone: Backbone, options: argparse.Namespace, out: Path) -> dict:
    """Row -> clip -> one tally a seed; what is in `out` is not measured again."""
    chosen = [row for row in rows(base, backbone) if row.group in options.groups]
    seeds = range(options.seeds)
    claim_folder(out, {"dataset": dataset.name, "clips": [c.name for c in dataset.clips], "settings": base.to_dict(),
                       "weights": fingerprint(backbone.unet)})  # fmt: skip
    results: dict[Row, dict[str, list[Tally]]] = {row: {} for row in chosen}
    for clip in dataset.clips:
        shared = Shared(clip, backbone)
        for row in chosen:
            # the seed moves K-means alone: rows without it have one
            for seed in seeds if row.frame_by_frame or row.settings.context.naming == "clusters" else [0]:
                path, started = out / clip.name / f"{row.key}-{seed}.json", time.perf_counter()
                if not path.is_file():
                    tally = measure(row, clip, dataset, shared, seed)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, {"row": f"{row.group}: {row.name}", **tally.to_dict()})
                    took = time.perf_counter() - started
                    print(f"{clip.name:16} {row.group:10} {row.name:44} {took:6.1f} s", flush=True)
                data = json.loads(path.read_text())
                data.pop("row")
                results[row].setdefault(clip.name, []).append(Tally.from_dict(data))
    return results


def table(results: dict[Row, dict[str, list[Tally]]], objects: bool) -> list[dict[str, str | float]]:
    """A dict a row. Scores are means over clips (and seeds), the errors standard errors over clips; differences are taken
    clip by clip, so that easy and hard clips cancel."""
    lines = []
    for row, of in results.items():
        pooled = total_scores([tallies[0] for tallies in of.values()], objects)
        line = {"group": row.group, "row": row.name, "scored": row.stage, "mIoU of all": pooled["mIoU"]}
        base = next((other for r, other in results.items() if r.name == row.against != row.name), None)
        for name in SCORES:
            ours = {clip: _seed_scores(tallies, name, objects) for clip, tallies in of.items()}
            line[name], line[f"{name} error"] = _mean([np.mean(values) for values in ours.values()])
            if base:
                theirs = {clip: _seed_scores(tallies, name, objects) for clip, tallies in base.items()}
                shared = [min(len(ours[c]), len(theirs[c])) for c in ours]
                pairs = [np.mean(ours[c][:n]) - np.mean(theirs[c][:n]) for c, n in zip(ours, shared, strict=True)]
                line[f"{name} gain"], line[f"{name} gain error"] = _mean(pairs)
        lines.append(line | {"against": row.against if base else ""})
    return lines


def _seed_scores(tallies: list[Tally], name: str, objects: bool) -> list[float]:
    return [clip_scores(tally, objects)[name] for tally in tallies]


def _mean(values: list[float]) -> tuple[float, float]:
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return math.nan, math.nan
    return float(known.mean()), float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan


def write(folder: Path, name: str, lines: list[dict], command: str, about: str) -> None:
    """The tables of a set; the command that made them is the first line of both."""
    folder.mkdir(exist_ok=True)
    header = list(dict.fromkeys(key for line in lines for key in line))
    with replacing(folder / f"ablation_{name}.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {command}\n")
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
    with replacing(folder / f"ablation_{name}.md") as partial:
        more = f"All scores and errors: [ablation_{name}.csv](ablation_{name}.csv)."
        head = f"# What each part is worth: {TITLES[name]}\n\n`{command}`\n\n{about} {more}"
        partial.write_text(f"{head}\n\n{markdown(lines)}", encoding="utf-8")


def markdown(lines: list[dict]) -> str:
    """A table for each group: scores in percent ± standard error over clips; in brackets the gain over the row that it is
    compared with, clip by clip."""
    text = []
    for group in dict.fromkeys(line["group"] for line in lines):
        text += [f"\n## {group.capitalize()}\n", f"| row | scored | {' | '.join(SHOWN)} |", f"|---|---|{'---|' * len(SHOWN)}"]
        for line in (line for line in lines if line["group"] == group):
            text.append(f"| {line['row']} | {line['scored']} | {' | '.join(_cell(line, name) for name in SHOWN)} |")
    return "\n".join(text).lstrip("\n") + "\n"


def _cell(line: dict, name: str) -> str:
    """A score with what is known of its error and its gain."""
    gain, cell = line.get(f"{name} gain", math.nan), percent(line[name])
    cell += "" if math.isnan(line[f"{name} error"]) else f" ± {percent(line[f'{name} error'])}"
    if math.isnan(gain):
        return cell
    error = line[f"{name} gain error"]
    signed = f"{100 * gain:+.1f}" if round(100 * gain, 1) else "0.0"
    return f"{cell} ({signed}" + ("" if math.isnan(error) else f" ± {percent(error)}") + ")"


def main() -> None:
    """Measure, then print and write a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CLUSTERS:
        parser.add_argument(f"--{name}", metavar="DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--seeds", type=int, default=1, help="of K-means, for the groups stages and clusters (default: 1)")
    parser.add_argument("--clips", type=int, metavar="N", help="only the first N clips (of CamVid: windows)")
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames of each clip")
    parser.add_argument("--out", type=Path, default=Path("outputs/ablation"), metavar="DIR", help="keeps what is finished")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.model)
    for name, clusters in CLUSTERS.items():
        if root := getattr(options, name):
            base = Settings(context=ContextSettings(num_clusters=clusters)).resolve(backbone.model)
            dataset = open_dataset(name, root)
            dataset = dataset.restart(base.window) if name == "camvid" else dataset
            clips = tuple(c.part(0, options.frames) if options.frames else c for c in dataset.clips[: options.clips])
            dataset = replace(dataset, clips=clips)
            part = [f"{n}-{value}" for n in ("clips", "frames") if (value := getattr(options, n))]
            out = options.out / "-".join([name, options.model.replace("/", "_"), *part])
            lines = table(run(dataset, base, backbone, options, out), dataset.objects)
            about = describe(dataset, base)
            print(f"\n{about}\n\n{markdown(lines)}", flush=True)
            write(out if part else RESULTS, name, lines, command(options), about)


def command(options: argparse.Namespace) -> str:
    """What to type to get the same, without the folders of this machine."""
    parts = ["python benchmarks/ablation.py", *(f"--{name} DIR" for name in CLUSTERS if getattr(options, name))]
    parts += [f"--model {options.model}"] if options.model != "tiny" else []
    parts += [f"--groups {' '.join(options.groups)}"] if tuple(options.groups) != GROUPS else []
    parts += [f"--seeds {options.seeds}"] if options.seeds != 1 else []
    parts += [f"--{name} {value}" for name in ("clips", "frames") if (value := getattr(options, name))]
    return " ".join(parts)


def describe(dataset: Dataset, base: Settings) -> str:
    """The sentence above a table."""
    frames = sum(clip.num_frames for clip in dataset.clips)
    return (
        f"{dataset.name}, {len(dataset.clips)} clips with {frames} frames in all, K = {base.context.num_clusters}. In percent, "
        "mean over clips ± standard error; in brackets the difference, clip by clip, from 'modulation off: bilinear' (stages), "
        "'all stages, pixels' (strength, passes) or 'coarse cells' (the other groups)."
    )


if __name__ == "__main__":
    main()
