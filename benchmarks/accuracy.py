"""The tables of docs/results.md: VidSeg after each stage, and the baselines, on the sample clips, CamVid and DAVIS.

    python benchmarks/accuracy.py                                       the clips that come along
    python benchmarks/accuracy.py --camvid DIR --davis DIR              and real data, one first mask for a whole clip
    python benchmarks/accuracy.py --camvid DIR --davis DIR --restart    the same, each window of 14 frames a clip of its own

All of it is `python -m vidseg_core evaluate` with K = 20 (DAVIS: 8), called once for each set and method. What is finished is
kept in --out: the same command goes on there. Writes benchmarks/results/accuracy.md, with --restart accuracy_restart.md.
"""

import argparse
import json
from pathlib import Path

from vidseg_core import ContextSettings, InputError, Settings
from vidseg_core.cluster.door import Workers
from vidseg_core.evaluation.baselines import METHODS
from vidseg_core.evaluation.datasets import SAMPLES, open_dataset
from vidseg_core.evaluation.evaluate import Evaluation
from vidseg_core.evaluation.report import percent
from vidseg_core.io.files import replacing

CLUSTERS = {"davis": 8}
SHOWN = ("mIoU", "accuracy", "mVC8", "J", "F", "stability", "seam stability")
RESULTS = Path(__file__).parent / "results"


def evaluate(name: str, root: str | None, method: str, options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Scores of each stage of a method on a set."""
    dataset, restart = open_dataset(name, root), options.restart and root is not None
    settings = Settings(context=ContextSettings(num_clusters=CLUSTERS.get(name, 20)))
    out = options.out / "-".join([name, method, options.model.replace("/", "_"), *(["restart"] if restart else [])])
    run = Evaluation(dataset, str(Path(root).resolve()) if root else "", method, options.model, settings, restart=restart)
    run.run(out, Workers(options.workers), threads=options.threads, tell=lambda line: print(f"{method:16} {line}", flush=True))
    stages = json.loads((out / "results.json").read_text())["stages"]
    return {stage: scores["scores"] for stage, scores in stages.items()}


def rows(name: str, root: str | None, options: argparse.Namespace) -> list[str]:
    """Table rows of a set: the stages of VidSeg, then the last stage of each baseline."""
    lines = []
    for method in options.methods:
        try:
            stages = evaluate(name, root, method, options)
        except InputError as error:
            if "not installed" not in str(error):
                raise
            print(f"{method} is left out: {error}")
            continue
        stages = stages if method == "vidseg" else dict([list(stages.items())[-1]])
        for stage, scores in stages.items():
            cells = ["–" if scores[column] is None else percent(scores[column]) for column in SHOWN]
            lines.append(f"| {name} | {method} | {stage} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print one markdown table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", metavar="DIR")
    parser.add_argument("--davis", metavar="DIR")
    parser.add_argument("--restart", action="store_true", help="each window of CamVid and DAVIS is a clip of its own")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("outputs/accuracy"), metavar="DIR", help="keeps what is finished")
    parser.add_argument("--workers", type=int, default=0, help="spread clips over processes")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sets = dict.fromkeys(SAMPLES) | {name: root for name in ("camvid", "davis") if (root := getattr(options, name))}
    lines = [f"| set | method | stage | {' | '.join(SHOWN)} |", f"|---|---|---|{'---|' * len(SHOWN)}"]
    for name, root in sets.items():
        lines += rows(name, root, options)
    given = [f"--{name} DIR" for name in ("camvid", "davis") if name in sets]
    given += ["--restart"] if options.restart else []
    given += [f"--model {options.model}"] if options.model != "tiny" else []
    given += [f"--methods {' '.join(options.methods)}"] if options.methods != list(METHODS) else []
    table = "\n".join([f"`{' '.join(['python benchmarks/accuracy.py', *given])}`, in percent", "", *lines]) + "\n"
    print(f"\n{table}")
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / f"accuracy{'_restart' if options.restart else ''}.md") as partial:
        partial.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
