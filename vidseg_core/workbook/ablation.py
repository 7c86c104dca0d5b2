"""The measured tables: what each stage and hyperparameter is worth on CamVid and DAVIS, beside the published scores."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vidseg_core.common import InputError
from vidseg_core.models.registry import data_folder

Line = dict[str, str | float]
COMMAND = "python benchmarks/ablation.py --camvid DIR --davis DIR"
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
    return f"benchmarks/results has no ablation of {' and '.join(missing)}: `{COMMAND}` makes it (README, 'Evaluate')."


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
