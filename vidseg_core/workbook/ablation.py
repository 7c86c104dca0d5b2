"""The measured tables: what each stage and hyperparameter is worth on CamVid and DAVIS, beside the published scores."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidseg_core.common import InputError
from vidseg_core.io.overlay import Drawing
from vidseg_core.models.registry import data_folder

Line = dict[str, str | float]
COMMAND = "python benchmarks/ablation.py --camvid DIR --davis DIR"
GROUPS = ("stages", "clusters", "neighbours", "strength", "passes", "position", "normalise", "blocks", "timestep")
"""Groups of the ablation's rows, in the order of the figure."""
PUBLISHED = (
    ("VidSeg with SVD, the paper's (second-hand)", "VSPW val", "frame 0", 53.2, 89.3),
    ("VidSeg, the paper's best (second-hand)", "VSPW val", "frame 0", 60.6, None),
    ("EmerDiff, SD 2.1, frame by frame (second-hand)", "VSPW val", "not checked", 43.4, 68.9),
    ("DVIS++, supervised (second-hand)", "VSPW val", "training on labels", 63.8, None),
)  # fmt: skip
"""(method, set, where names come from, mIoU, mVC8) in percent. Second-hand: not checked in the paper itself."""


def read_ablations(folder: str | Path | None = None) -> dict[str, list[Line]]:
    """The rows of ablation_camvid.csv and ablation_davis.csv, those that are there, in `folder` (default: the checkout's
    benchmarks/results): numbers as shares, NaN where empty. Raises InputError for a file without the expected columns."""
    folder, tables = Path(folder or data_folder().parent / "benchmarks" / "results"), {}
    for name in ("camvid", "davis"):
        path = folder / f"ablation_{name}.csv"
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        if not rows or not {"group", "row", "scored", "against", "mIoU gain", "mIoU gain error"} <= set(rows[0]):
            raise InputError(f"{path} is no table of the ablation: make it anew with {COMMAND}")
        words = ("group", "row", "scored", "against")
        tables[name] = [{k: v if k in words else float(v or "nan") for k, v in row.items()} for row in rows]
    return tables


def find_row(table: Sequence[Line], name: str, group: str = "stages") -> Line:
    """The row of this name. Raises InputError if there is none."""
    for line in table:
        if (line["group"], line["row"]) == (group, name):
            return line
    raise InputError(f"the ablation has no row {name!r} in group {group!r}: make it anew with {COMMAND}")


def availability(tables: Mapping[str, object]) -> str:
    """A sentence that says which tables are there and how to get those that are not."""
    missing = [name for name in ("camvid", "davis") if name not in tables]
    if not missing:
        return "The ablation has been measured on camvid and davis."
    return f"benchmarks/results has no ablation of {' and '.join(missing)}: `{COMMAND}` makes it (docs/evaluation.md)."


def show_gains(
    tables: Mapping[str, Sequence[Mapping[str, str | float]]], metric: str, otherwise: str, groups: Sequence[str] = GROUPS
) -> Figure:
    """What each row of the ablation (of these `groups`) gains over the row it is compared with, clip by clip, in percent
    points: mean and standard error over clips, a column for each set. Without tables, the sentence `otherwise`."""
    if not tables:
        figure = Drawing(figsize=(9, 0.8), layout="constrained")
        figure.text(0.5, 0.5, otherwise.replace(": ", ":\n", 1), ha="center", va="center", fontsize=10)
        return figure
    first = next(iter(tables.values()))
    keys = [(g, line["row"]) for g in groups for line in first if line["group"] == g and line["row"] != "coarse cells"]
    figure = Drawing(figsize=(9, 1.2 + 0.23 * len(keys)), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, len(tables), sharey=True, squeeze=False)[0], tables.items(), strict=True):
        _gains(axes, {(line["group"], line["row"]): line for line in table}, keys, metric)
        axes.set_title(name, fontsize=10)
    figure.supxlabel(f"gain in {metric}, percent points ± standard error", fontsize=9)  # once: two do not fit side by side
    return figure


def _gains(axes: Axes, lines: Mapping, keys: Sequence[tuple[str, str]], metric: str) -> None:
    at = np.arange(len(keys))[::-1]
    for y, key in zip(at, keys, strict=True):
        line = lines.get(key, {})
        gain, error = (100 * float(line.get(f"{metric} gain{end}", np.nan)) for end in ("", " error"))
        if np.isnan(gain):
            axes.plot(0, y, "o", color="0.2", markersize=5, markerfacecolor="white")  # a row that is compared with itself
        else:
            axes.errorbar(gain, y, xerr=np.nan_to_num(error), fmt="o", color="0.2", markersize=4, capsize=2, linewidth=1.2)
    starts = [i for i in range(1, len(keys)) if keys[i][0] != keys[i - 1][0]]
    for i in starts:
        axes.axhline(at[i] + 0.5, color="0.8", linewidth=0.8)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_yticks(at, [_short(group, row) for group, row in keys], fontsize=9)
    axes.set_ylim(-0.7, len(keys) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))  # the last label of a panel does not touch the next one's first
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _short(group: str, row: str) -> str:
    row = "default: both of the last" if row.startswith("default: ") and "," in row else row
    row = row.replace("clusters named, K", "K").replace("lambda", "λ") if group in ("clusters", "strength") else row
    return re.sub("_blocks?|entions", "", row)


def beside_published(tables: Mapping[str, Sequence[Line]]) -> str:
    """A markdown table: the published scores, and ours from the ablation ("all stages, pixels", mean over clips)."""
    rows = [(*row[:3], *("–" if v is None else f"{v:.1f}" for v in row[3:])) for row in PUBLISHED]
    about = {"camvid": "CamVid, 11 classes, windows of 14", "davis": "DAVIS 2016, object and ground"}
    for name, table in tables.items():
        line = find_row(table, "all stages, pixels")
        cells = ["–" if np.isnan(line[c]) else f"{100 * line[c]:.1f}" for c in ("mIoU", "mVC8")]
        rows.append(("this code, embedded model", about[name], "frame 0", *cells))
    head = "| method | set | names come from | mIoU | mVC8 |\n|---|---|---|---|---|\n"
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)
