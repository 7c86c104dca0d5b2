"""Tables of an evaluation: results.csv (a row for each clip and stage), results.json, results.md (a row for each stage)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidseg_core.evaluation.metrics import class_iou
from vidseg_core.evaluation.tally import Tally
from vidseg_core.io.files import UTF8, replacing
from vidseg_core.io.results import write_json, write_table

COLUMNS = ("mIoU", "mIoU later", "accuracy", "mVC8", "mVC16", "J", "F", "stability", "seam stability", "flicker")
ALL = "(all)"
"""Stands for all clips together in the table of clips."""

Tallies = Mapping[str, Mapping[str, Tally]]
"""Clip -> stage -> tally."""


def clip_scores(tally: Tally, objects: bool) -> dict[str, float]:
    """`Tally.scores`; with `objects`, J and F are DAVIS': the mean over frames, then over the objects (classes 1 and on)."""
    scores = tally.scores()
    if objects:
        scores |= {"J": _object_mean(tally.region), "F": _object_mean(tally.boundary)}
    return scores


def never_found(tally: Tally, classes: Sequence[str]) -> list[str]:
    """Classes that the truth shows and the labels nowhere: most often they had no cluster of their own in frame 0."""
    shown, found = tally.counts.sum(1) > 0, tally.counts.sum(0)[: len(classes)] > 0
    return [name for name, missed in zip(classes, shown & ~found, strict=True) if missed]


def single_class(counts: np.ndarray, classes: Sequence[str]) -> str:
    """What to think of scores where the truth shows one class alone or none, by the counts of `confusion`; empty otherwise."""
    shown = [name for name, row in zip(classes, counts, strict=True) if row.any()]
    if len(shown) > 1:
        return ""
    found = f"one class, {shown[0]}" if shown else "no class"
    return (f"The labels show {found}, so these scores say nothing: 255 is void and is not scored. Should it be an object, "
            "save its pixels as 1.")  # fmt: skip


def _object_mean(sums: np.ndarray) -> float:
    seen = sums[1:][sums[1:, 1] > 0]
    return float((seen[:, 0] / seen[:, 1]).mean()) if len(seen) else math.nan


def total_scores(tallies: Sequence[Tally], objects: bool) -> dict[str, float]:
    """Scores of a set: from the sums over all clips; with `objects`, J and F are means over all objects of all clips."""
    total = sum(tallies[1:], tallies[0])
    scores = total.scores()
    if objects:
        rows = {name: np.concatenate([getattr(t, name)[1:] for t in tallies]) for name in ("region", "boundary")}
        ground = np.zeros((1, 2))
        scores |= {k: _object_mean(np.concatenate([ground, rows[n]])) for k, n in (("J", "region"), ("F", "boundary"))}
    return scores


def spread(tallies: Sequence[Tally], objects: bool) -> dict[str, tuple[float, float]]:
    """(mean over clips, its standard error) of each score; the error is NaN for one clip."""
    table = [clip_scores(t, objects) for t in tallies]
    result = {}
    for name in COLUMNS:
        values = np.array([row[name] for row in table])
        values = values[~np.isnan(values)]
        mean = float(values.mean()) if len(values) else math.nan
        result[name] = mean, float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return result


def csv_rows(tallies: Tallies, objects: bool, failed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """A row for each clip and stage, an empty one for each that failed, then one for each stage of all that did not; shares
    with six decimals, empty where unknown."""
    stages = list(next(iter(tallies.values())))
    rows = [
        {"clip": clip, "stage": stage, **_rounded(clip_scores(of[stage], objects))}
        for clip, of in tallies.items()
        for stage in stages
    ]
    totals = [{"clip": ALL, "stage": stage, **_rounded(_total(tallies, stage, objects))} for stage in stages]
    return [*rows, *({"clip": clip, "stage": "(failed)"} for clip in failed), *totals]


def _total(tallies: Tallies, stage: str, objects: bool) -> dict[str, float]:
    return total_scores([of[stage] for of in tallies.values()], objects)


def _rounded(scores: dict[str, float]) -> dict[str, Any]:
    return {name: "" if math.isnan(scores[name]) else round(scores[name], 6) for name in COLUMNS}


def markdown(tallies: Tallies, objects: bool, title: str) -> str:
    """A row for each stage, in percent; the error after ± is the standard error over clips, of the mean over clips."""
    stages = list(next(iter(tallies.values())))
    totals = {stage: _total(tallies, stage, objects) for stage in stages}
    shown = [c for c in COLUMNS if any(not math.isnan(totals[s][c]) for s in stages)]
    lines = [title, "", f"| stage | {' | '.join(shown)} | mIoU over clips |", f"|---|{'---|' * len(shown)}---|"]
    for stage in stages:
        cells = [percent(totals[stage][c]) for c in shown]
        mean, error = spread([of[stage] for of in tallies.values()], objects)["mIoU"]
        bar = "" if math.isnan(error) else f" ± {percent(error)}"
        lines.append(f"| {stage} | {' | '.join(cells)} | {percent(mean)}{bar} |")
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    """A share with one decimal, or a dash."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def write_report(
    folder: Path, plan: dict[str, Any], results: Mapping[str, dict[str, Any]], classes: Sequence[str], objects: bool,
    failed: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Write the three tables into `folder` and return the markdown. `plan` is what was run, `results` what `evaluate_clip`
    gave for each clip (at least one), `failed` why it gave nothing for others: they are named, and count for nothing."""
    failed = failed or {}
    tallies = {clip: {s: Tally.from_dict(t) for s, t in r["stages"].items()} for clip, r in results.items()}
    stages = list(next(iter(tallies.values())))
    write_table(folder / "results.csv", csv_rows(tallies, objects, failed))
    data = {"run": plan, "classes": list(classes), "stages": {}}
    for stage in stages:
        counts = sum(of[stage].counts for of in tallies.values())
        over = spread([of[stage] for of in tallies.values()], objects)
        data["stages"][stage] = {
            "scores": _null(_total(tallies, stage, objects)),
            "over clips": {n: _null({"mean": mean, "standard error": error}) for n, (mean, error) in over.items()},
            "IoU": _null(dict(zip(classes, class_iou(counts).tolist(), strict=True))),
        }
    data["clips"] = {
        clip: {
            "frames": r["frames"], "labelled": r["labelled"], "strays": r["strays"],
            "never found": never_found(tallies[clip][stages[-1]], classes),
            "stages": {stage: _null(clip_scores(tallies[clip][stage], objects)) for stage in stages},
        }
        for clip, r in results.items()
    }  # fmt: skip
    data["failed"] = dict(failed)
    write_json(folder / "results.json", data)
    title = _title(plan, sum(r["labelled"] for r in results.values()), len(results), len(failed))
    table = markdown(tallies, objects, title + ". In percent.")
    if single := single_class(counts, classes):
        table += f"\n{single}\n"
    table += "".join(f"\nNo result, so not in the table: {clip}. {reason}\n" for clip, reason in failed.items())
    with replacing(folder / "results.md") as partial:
        partial.write_text(table, **UTF8)
    return table


def _null(scores: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def _title(plan: dict[str, Any], labelled: int, done: int, failed: int) -> str:
    """What was evaluated and how, on so many labelled frames of the clips that are done."""
    naming = {"first": "classes named by the true mask of frame 0", "named": "segments named by the first labelled frame",
              "matched": "segments matched to classes over each clip"}  # fmt: skip
    total = done + failed
    clips = f"{done}{f' of {total}' if failed else ''} clip{'s' if total > 1 else ''}"
    return (
        f"{plan['dataset']}, {clips}, {labelled} labelled frames; "
        f"method {plan['method']}, model {plan['model']}; {naming[plan['protocol']]}"
        + (f", each window of {plan['restart']} frames a clip of its own" if plan["restart"] else "")
    )
