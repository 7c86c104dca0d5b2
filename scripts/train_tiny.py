"""Train an embedded model: a small latent diffusion UNet, of images or of clips, whose decoder queries are aligned with an
ImageNet CNN.

    python scripts/train_tiny.py OUT --images FOLDER [FOLDER ...] --minutes 90                         # from scratch
    python scripts/train_tiny.py OUT --images FOLDER --init data/models/tiny --minutes 90 --lr 3e-4    # go on from weights
    python scripts/train_tiny.py OUT --model tiny-video --images FOLDER --clips FOLDER --init data/models/tiny --minutes 90
    python scripts/train_tiny.py OUT --init data/models/tiny --steps 0                                 # only draw samples

The loss is that of latent diffusion on latents of the block-DCT codec (`tiny`: epsilon on SD's scaled-linear betas;
`tiny-video`: v with EDM's preconditioning, given the first frame, as SVD) plus representation alignment (REPA, Yu et al. 2025):
a small head maps the self-attention queries that the workbook reads (`up_blocks[1].attentions[0..1]...attn1.to_q`) to features
of a frozen EfficientNet-Lite0, and a relation term asks that two queries be as similar as the two features are. The head is not
part of what is written for inference. Clips are real ones and pseudo-videos made from the images, in which the motion, and with
it what the CNN sees at a point, is known exactly.

OUT receives `model/` (a diffusers folder: unet/ in float16, scheduler/, codec.json), `checkpoint.pt`, `log.csv`, `curve.png`
and `samples.png`. The same command resumes from the checkpoint; Ctrl-C saves first. With `--steps` and a fixed `--threads`
the result depends on the seed alone. `--mean-with` writes the mean of two sets of weights, such as those of the stage before: a
model soup (Wortsman et al. 2022). Needs the CNN (`pip install -e ".[cnn]"`), except with `--align-weight 0
--relation-weight 0`.
"""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script also runs where the package is not installed
from tiny_training.checkpoint import COLUMNS, draw_samples, read_checkpoint, restore, save
from tiny_training.clips import Material, read_material
from tiny_training.families import FAMILIES
from tiny_training.images import digest, read_images
from tiny_training.settings import TrainSettings, spelled
from tiny_training.targets import Targets
from tiny_training.trainer import Run, Trainer, mean_with, progress, start

from vidseg_core.common import InputError
from vidseg_core.models.fingerprint import fingerprint


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


class Stop:
    """`with Stop() as stop`: true once the process was asked to end (Ctrl-C, SIGTERM, a closed terminal), so that a step is
    never left half done. Asked twice, it ends at once."""

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __enter__(self) -> "Stop":
        self.asked = False
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def idle_threads(mine: int) -> int:
    """Threads to use now: the cores that others leave, at least one. Two threads lose to one on a shared core."""
    others = max(0.0, os.getloadavg()[0] - mine)
    return max(1, round(os.cpu_count() - others))


def train(trainer: Trainer, args: argparse.Namespace, origin: Mapping[str, object], stop: Stop) -> None:
    """Step until the budget is used, logging means over `--log-every` steps and saving every `--save-every` minutes."""
    run, settings, seen, last = trainer.run, trainer.settings, [], time.monotonic()
    saved = interval = last
    while progress(run, settings) < 1 and not stop():
        if args.threads == 0 and run.step % 10 == 0:
            torch.set_num_threads(idle_threads(torch.get_num_threads()))
        seen.append(trainer.step())
        now = time.monotonic()
        run.seconds, last = run.seconds + now - last, now
        if run.step % args.log_every == 0:
            means = {name: float(np.mean([s.get(name, math.nan) for s in seen])) for name in COLUMNS[3:-1]}
            speed = len(seen) * settings.batch_images / (now - interval)
            run.rows.append([run.step, run.step * settings.batch_images, run.seconds / 60, *means.values(), speed])
            print("  ".join(f"{n} {v:.4g}" for n, v in zip(COLUMNS, run.rows[-1], strict=True)), flush=True)
            seen, interval = [], now
        if now - saved > args.save_every * 60:
            save(run, settings, origin, args.out, args.mean_with)
            saved = time.monotonic()


def parse() -> tuple[argparse.Namespace, TrainSettings]:
    """The command line; every field of TrainSettings is an option."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=Help)
    parser.add_argument("out", type=Path, help="folder for weights, checkpoint, log, curve")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="images, searched through")
    parser.add_argument(
        "--clips", type=Path, nargs="+", default=[], metavar="FOLDER", help="tiny-video: clips, searched through"
    )
    parser.add_argument(
        "--init", type=Path, metavar="FOLDER", help="diffusers folder to start from; tiny-video starts from tiny as well"
    )
    parser.add_argument("--mean-with", type=Path, metavar="FOLDER", help="write the mean of the trained weights and of these")
    parser.add_argument("--threads", type=int, default=1, help="0: as many as other processes leave idle (not repeatable)")
    parser.add_argument("--targets", type=Path, metavar="FILE", help="keeps the CNN's features (default: OUT/targets.pt)")
    parser.add_argument("--log-every", type=int, default=25, help="steps")
    parser.add_argument("--save-every", type=float, default=4, help="minutes")
    for item in fields(TrainSettings):
        many = isinstance(item.default, tuple)
        kind = type(item.default[0]) if many else {"steps": int, "minutes": float}.get(item.name, type(item.default))
        count = {"nargs": "+"} if many else {}
        about = item.metadata["help"].replace("%", "%%")
        parser.add_argument(spelled(item.name), type=kind, default=item.default, help=about, metavar="N", **count)
    args = parser.parse_args()
    chosen = {f.name: getattr(args, f.name) for f in fields(TrainSettings)}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return args, TrainSettings(**chosen)


def check(args: argparse.Namespace, settings: TrainSettings) -> None:
    """Refuse at the door what would fail later; make OUT."""
    settings.check()
    if args.threads < 0 or args.log_every < 1 or not args.save_every > 0:
        given = f"--threads {args.threads}, --log-every {args.log_every}, --save-every {args.save_every:g}"
        raise InputError(f"{given}: expected at least 0, at least 1 and more than 0")
    for folder in [*args.images, *args.clips, *(folder for folder in (args.init, args.mean_with) if folder)]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    for folder in filter(None, (args.init, args.mean_with)):
        FAMILIES[settings.model]().load(folder)  # for what it refuses: here, and not after minutes
    if settings.steps == 0 and not args.init and not (args.out / "checkpoint.pt").is_file():
        raise InputError(f"--steps 0 draws samples of --init, or of {args.out}/checkpoint.pt; there is neither")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out} cannot be made a folder ({error.strerror}): choose another OUT") from error


def samples(args: argparse.Namespace, settings: TrainSettings) -> None:
    """Draw samples of the weights in --init, else of the checkpoint."""
    if args.init:
        network = FAMILIES[settings.model]().load(args.init).eval()
    else:
        network = start(settings, [], None).average
        network.load_state_dict(read_checkpoint(args.out / "checkpoint.pt")["average"])
    draw_samples(network, args.out / "samples.png", settings)
    print(f"{args.out / 'samples.png'}: samples of {args.init or args.out / 'checkpoint.pt'}")


def read(args: argparse.Namespace, settings: TrainSettings) -> Material:
    """Images, and for a video model clips."""
    if settings.model == "tiny":
        images = read_images(args.images, settings)
        return Material(images, len(images), ())
    return read_material(read_images(args.images, settings) if args.images else [], args.clips, settings)


def run_training(args: argparse.Namespace, settings: TrainSettings) -> Run:
    """From the images, or the checkpoint, to the last save. Raises InputError if it was asked to stop before."""
    with Stop() as stop:
        material = read(args, settings)
        images, cache = material.images, args.targets or args.out / "targets.pt"
        targets = Targets.cached(cache, images, settings, stop) if settings.aligned else None
        run = start(settings, targets.channels if targets else [], args.init)
        unet = FAMILIES[settings.model]().unet(run.average)
        origin = {"images": f"{len(images)} images, {digest(images)}", "init": fingerprint(unet) if args.init else None}
        origin["threads"] = args.threads
        if (args.out / "checkpoint.pt").exists():
            restore(run, settings, origin, args.out / "checkpoint.pt")
        train(Trainer(run, settings, material, targets, args.init is not None), args, origin, stop)
        save(run, settings, origin, args.out, args.mean_with)
    if progress(run, settings) < 1:
        raise InputError(f"stopped at step {run.step}; the same command goes on from there")
    return run


def main() -> None:
    """Train, or with `--steps 0` only draw samples."""
    args, settings = parse()
    try:
        check(args, settings)
        torch.set_num_threads(max(1, args.threads))
        if settings.steps == 0:
            samples(args, settings)
        else:
            average = run_training(args, settings).average
            other = FAMILIES[settings.model]().load(args.mean_with) if args.mean_with else None
            draw_samples(mean_with(average, other), args.out / "samples.png", settings)
    except InputError as error:
        print(f"train_tiny: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # asked twice: what was saved last is there
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
