"""What a training leaves on disk: checkpoint, weights, log, curve, samples. Each appears whole or not at all."""

import csv
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from tiny_training.families import FAMILIES
from tiny_training.settings import TrainSettings
from tiny_training.trainer import Run, mean_with
from vidseg_core.common import InputError
from vidseg_core.io.files import replacing
from vidseg_core.models.fingerprint import fingerprint

TERMS = ("denoising", "align", "relation", "border", "concept", "correspondence")
COLUMNS = ("step", "images", "minutes", *TERMS, "learning_rate", "images_per_second")
PARTS = ("network", "average", "head", "optimizer")


def save(run: Run, settings: TrainSettings, origin: Mapping[str, object], out: Path, mix: Path | None = None) -> None:
    """Checkpoint, weights, log and curve; `origin` is what the run began with besides its settings. With `mix`, the weights for
    inference are the mean of the averaged ones and of those in that folder; the checkpoint knows nothing of it.

    Raises InputError if the disk refuses; what was there before is then untouched.
    """
    state = {name: getattr(run, name).state_dict() for name in PARTS} | {
        "rng": run.rng.bit_generator.state, "noise": run.noise.get_state(), "step": run.step, "seconds": run.seconds,
        "rows": run.rows, "settings": asdict(settings), "origin": dict(origin),
    }  # fmt: skip
    try:
        _write(out / "checkpoint.pt", lambda path: torch.save(state, path))
        replace_folder(out / "model", lambda folder: save_model(run, settings, origin, folder, mix))
        _write(out / "log.csv", lambda path: write_log(run.rows, path))
        _write(out / "curve.png", lambda path: draw_curve(run.rows, path))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        free = shutil.disk_usage(out).free / 1e9
        remedy = "Make room, and give the same command: it goes on from the checkpoint before"
        raise InputError(f"{out} cannot be written ({error}; {free:.1f} GB are free there). {remedy}") from error


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with replacing(path) as partial:
        write(partial)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `path`, then put it in its place; if that fails, or a process was killed amid it, the
    one before comes back."""
    aside, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    _tidy(path, aside, old)
    try:
        write(aside)
        if path.is_dir():
            os.replace(path, old)
        os.replace(aside, path)
    finally:
        _tidy(path, aside, old)


def _tidy(path: Path, aside: Path, old: Path) -> None:
    if old.exists() and not path.exists():
        os.replace(old, path)
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)


def save_model(run: Run, settings: TrainSettings, origin: Mapping[str, object], folder: Path, mix: Path | None) -> None:
    """A diffusers folder in half precision, of the averaged weights, or of their mean with those in `mix`."""
    family = FAMILIES[settings.model]()
    other = family.load(mix) if mix else None
    family.save(mean_with(run.average, other), folder)
    mixed = fingerprint(family.unet(other)) if mix else None
    about = asdict(settings) | {"steps_done": run.step} | dict(origin) | {"mean_with": mixed}
    (folder / "training.json").write_text(json.dumps(about, indent=1) + "\n")


def read_checkpoint(path: Path) -> dict:
    """What `save` wrote. Raises InputError if it cannot be read."""
    try:
        state = torch.load(path, weights_only=True)
        return {name: state[name] for name in (*PARTS, "rng", "noise", "step", "seconds", "rows", "settings", "origin")}
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} is no checkpoint of this version ({error}). Remove it to begin anew, or choose another OUT"
        ) from error


def restore(run: Run, settings: TrainSettings, origin: Mapping[str, object], path: Path) -> None:
    """Continue where the checkpoint ended. Raises InputError if it began with other settings, images or weights."""
    state = read_checkpoint(path)
    settings.check_resumed(state["settings"])
    for name, value in origin.items():
        if name != "threads" and state["origin"].get(name) != value:
            raise InputError(f"{path} began with other {name}: give the same command, or choose another OUT")
    for name in PARTS:
        getattr(run, name).load_state_dict(state[name])
    run.rng.bit_generator.state = state["rng"]
    run.noise.set_state(state["noise"])
    run.step, run.seconds, run.rows = state["step"], state["seconds"], state["rows"]
    print(f"resumed at step {run.step}", flush=True)


def write_log(rows: list[list[float]], path: Path) -> None:
    """One line per logged interval."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([f"{value:.6g}" for value in row] for row in rows)


def draw_curve(rows: list[list[float]], path: Path) -> None:
    """Loss terms against images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in TERMS:
        axes.plot([r[1] for r in rows], [r[COLUMNS.index(name)] for r in rows], label=name)
    axes.set(xlabel="images seen", ylabel="loss term (unweighted)", yscale="log")
    axes.legend()
    figure.savefig(path, format="png", dpi=80)


def draw_samples(network: nn.Module, path: Path, settings: TrainSettings, count: int = 16, steps: int = 50) -> None:
    """A sheet of what the model makes, not picked; see `Family.samples`."""
    made = FAMILIES[settings.model]().samples(network, settings, steps, count)
    pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 3, 1, 4, 2)  # rows, height, columns, width, RGB
    sheet = pixels.flatten(2, 3).flatten(0, 1)
    _write(path, lambda partial: Image.fromarray(sheet.numpy()).save(partial, format="png", optimize=True))
