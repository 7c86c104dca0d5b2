"""The command line: `python -m vidseg_core segment CLIP`. A command imports what it needs when it runs."""

import argparse
import sys
from pathlib import Path

from vidseg_core.common import InputError
from vidseg_core.io.console import patient_console
from vidseg_core.io.options import Version, add_export, add_segment, add_settings, export, num_threads, read_settings
from vidseg_core.io.paths import expand_paths
from vidseg_core.io.segment import segment


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 if some of many clips failed, 2 for a wrong input (one sentence on
    stderr), 130 for Ctrl-C."""
    with patient_console():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        expand_paths(options)
        return options.run(options) or 0
    except (InputError, OSError) as error:  # a full disk is nobody's mistake, but needs no traceback either
        kept = f" ({_notes(error)})" if _notes(error) else ""
        print(f"vidseg: {error}{kept}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, RuntimeError) as stop:
        # Python 3.11 wraps what is raised while a class is made, as imports do
        if not (isinstance(stop, KeyboardInterrupt) or isinstance(stop.__cause__, KeyboardInterrupt)):
            raise
        exec("")  # else CPython ends by SIGINT, not by our status, if the interrupt passed an exec(), as imports have them
        kept = _notes(stop) or "nothing was written, and what was there is unchanged"
        print(f"\nvidseg: stopped; {kept}", file=sys.stderr)
        return 130


def _notes(error: BaseException) -> str:
    """What is kept of the work that an exception ended: whoever knows it adds a note."""
    return "; ".join(getattr(error, "__notes__", ()))


def evaluate(options: argparse.Namespace) -> None:
    """Score a method on a labelled set: results.csv, results.json and results.md. You may stop it: the same command resumes."""
    from vidseg_core.cluster.door import Workers
    from vidseg_core.evaluation.datasets import open_dataset
    from vidseg_core.evaluation.evaluate import Evaluation

    settings = read_settings(options, masked=False)
    dataset = open_dataset(options.dataset, options.root, options.split)
    dataset = dataset if options.clips is None else dataset.select(options.clips.split(","))
    root = str(Path(options.root).resolve()) if options.root else ""
    run = Evaluation(dataset, root, options.method, options.model, settings, options.protocol, options.restart,
                     options.dtype)  # fmt: skip
    if options.protocol == "matched" and settings.context.num_segments is None:
        print("every cluster is a segment, and most match no class; --segments N merges them first", file=sys.stderr)
    out = Path(options.out or Path("outputs", f"evaluate-{options.dataset}-{options.method}"))
    threads, workers = num_threads(options), Workers(options.workers, options.scheduler)
    table = run.run(out, workers, options.device, threads, lambda line: print(line, flush=True))
    print(f"\n{table}\nIn {out}: results.csv, results.json, results.md")


def models(options: argparse.Namespace) -> None:
    """List the models, what they need, and which are on this machine."""
    from vidseg_core.models.weights import model_table

    print(model_table())
    print("--model also takes a folder that diffusers saved or a hub id OWNER/NAME of these families.")


def _parser() -> argparse.ArgumentParser:
    from vidseg_core.evaluation.options import add_options

    parser = argparse.ArgumentParser("vidseg", description="Training-free video segmentation with diffusion models (VidSeg).")
    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("segment", help="segment a clip, or many", description=segment.__doc__)
    run.set_defaults(run=segment)
    add_segment(run.add_argument)
    run = commands.add_parser("evaluate", help="score a method on a labelled set", description=evaluate.__doc__)
    run.set_defaults(run=evaluate, size=None, strategy=None, window=None, prompt=None)
    add_settings(run.add_argument)
    add_options(run.add_argument)
    add_export(commands.add_parser("export", help="write a run for other tools", description=export.__doc__))
    commands.add_parser("models", help="list the models", description=models.__doc__).set_defaults(run=models)
    return parser
