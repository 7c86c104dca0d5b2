"""What more workers are worth: one clip and eight short ones measured with one and two workers, and far more predicted.

    python benchmarks/scaling.py [--frames 200] [--out benchmarks/results/scaling.csv] [--plot docs/scaling.png]
    python benchmarks/scaling.py --again benchmarks/results/scaling.csv       the predictions and the plot alone

The clip is cup, to and fro, without a mask; the short ones have an eighth of its frames. Workers have one thread. They have
computed before, so that neither their imports nor their model are counted; all else of the command is, reading and writing
included. The prediction goes through the same graph event by event: a client, which reads, does stages 2 and 3 and
writes, one thing at a time; workers, which take the oldest task; and at most two windows a worker under way. It knows the
seconds of each part, measured with one worker, and the bytes that a window sends, over a link of LINK bytes a second. It has a
core for the client and for each worker, which a machine of two cores has not.
"""

import argparse
import csv
import pickle
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from heapq import heapify, heapreplace
from pathlib import Path

import numpy as np
from PIL import Image

from vidseg_core import Settings, VidSeg, load_backbone, open_clip, sample_clip
from vidseg_core.cluster.door import HERE, Workers, local_cluster, open_executor
from vidseg_core.io.files import UnfinishedFolder
from vidseg_core.io.job import Job
from vidseg_core.io.masks import MaskFolder, write_masks
from vidseg_core.io.run import run_job

LINK = 1e9
"""Bytes a second between client and workers: ten-gigabit Ethernet, less what protocols take."""

TASK = 0.001
"""Seconds that the scheduler takes for a task (Dask's documentation: 200 microseconds to a millisecond)."""

MEASURED, PREDICTED, CLIPS = (1, 2), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), 8
LONG, MANY = 100, 1000
"""How many times as long a clip, and how many short clips are predicted beside what is measured."""


@dataclass(frozen=True)
class Costs:
    """Of a window: seconds of the stages in a worker (`features`, `upsample`), in the client (`between` them, `read`, `write`),
    and bytes to and from the workers. Of a clip: seconds at its end (`rest`) and, as a whole in one worker, `alone`."""

    features: float
    upsample: float
    between: float
    read: float
    write: float
    sent: float
    received: float
    rest: float
    alone: float


# ---- what is predicted


def one_clip(costs: Costs, windows: int, workers: int) -> float:
    """Seconds of one clip whose windows are spread: the events of `vidseg_core.models.relay`, in its order."""
    free, clock, left = [0.0] * workers, 0.0, windows
    begun, passed = deque(), deque()  # when the tasks of windows are done, before and behind the part in order

    def task(seconds: float) -> float:
        end = max(clock + TASK, free[0]) + seconds
        heapreplace(free, end)  # tasks are taken in the order in which they are handed out, by who is free first
        return end

    while left or begun or passed:
        while left and len(begun) + len(passed) < 2 * workers:
            clock += costs.read + costs.sent / 2 / LINK
            begun.append(task(costs.features))
            left -= 1
        if begun and begun[0] <= clock:
            clock += costs.between + (costs.sent + costs.received) / 2 / LINK
            begun.popleft()
            passed.append(task(costs.upsample))
        if passed and passed[0] <= clock:
            passed.popleft()
            clock += costs.write + costs.received / 2 / LINK
        elif begun or passed:
            clock = max(clock, min(queue[0] for queue in (begun, passed) if queue))
    return clock + costs.rest


def many_clips(costs: Costs, clips: int, workers: int) -> float:
    """Seconds of clips that are spread, each of them one task."""
    free = [0.0] * workers
    heapify(free)
    for n in range(clips):
        heapreplace(free, max(free[0], n * TASK) + costs.alone)
    return max(free)


# ---- what is measured


def frames_to_and_fro(count: int) -> Iterator[np.ndarray]:
    """Frames of cup, forwards and backwards until there are enough."""
    frames = sample_clip("cup").frames
    there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    return (frames[there_and_back[n % len(there_and_back)]] for n in range(count))


def write_clip(folder: Path, count: int) -> Path:
    """A clip as a folder of images."""
    folder.mkdir()
    for n, frame in enumerate(frames_to_and_fro(count)):
        Image.fromarray(frame).save(folder / f"{n:05}.png")
    return folder


def segment(clip: Path, out: Path, settings: Settings, workers: Workers = HERE) -> dict[str, float]:
    """The command, with one thread; seconds of its stages, and from the last window to the end ("rest")."""
    last = time.perf_counter()

    @contextmanager
    def bars(total: int, finished: int):
        def tick(stage: str, frames: float) -> None:
            nonlocal last
            last = time.perf_counter() if stage == "upsample" else last

        yield tick

    job = Job(open_clip(clip), settings, workers=workers, threads=1, tell=lambda line: None)
    done = run_job(job, UnfinishedFolder(out, True), False, bars)
    return {**done.seconds, "rest": time.perf_counter() - last}


def probe(clip: Path, settings: Settings, folder: Path) -> dict[str, float]:
    """Of one window: seconds that the client reads and writes it, and bytes that go to the workers and come back."""
    started = time.perf_counter()
    frames = np.stack([frame for frame, _ in zip(open_clip(clip), range(settings.window), strict=False)])
    read = time.perf_counter() - started
    vidseg = VidSeg(load_backbone("tiny", device="cpu"), settings)
    window = next(vidseg.stream(frames))
    votes = window.scene.named(window.features.context.new_tensor(window.votes[1]))
    started = time.perf_counter()
    write_masks(MaskFolder(folder / "probe"), 0, window.labels)
    written = time.perf_counter() - started
    sent = len(pickle.dumps(frames)) + len(pickle.dumps((frames, votes)))
    received = len(pickle.dumps(window.features)) + len(pickle.dumps(window.labels))
    return {"read": read, "write": written, "sent": sent, "received": received}


def measure(frames: int, settings: Settings) -> tuple[Costs, dict[tuple[str, int], float]]:
    """The costs, and seconds of one clip and of the short ones by ("one clip" or "short clips", workers)."""
    found, costs = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, short = write_clip(folder / "clip", frames), write_clip(folder / "short", max(1, frames // CLIPS))
        parts = probe(clip, settings, folder)
        for count in MEASURED:
            with local_cluster(count) as cluster, open_executor(Workers(scheduler=cluster.scheduler_address)) as executor:
                workers = Workers(scheduler=cluster.scheduler_address)
                spread(executor, short, folder, settings, 2 * count)  # each worker has imported and loaded all
                segment(short, folder / "out", settings, workers)
                started = time.perf_counter()
                stages = segment(clip, folder / "out", settings, workers)
                found["one clip", count] = time.perf_counter() - started
                found["short clips", count], each = spread(executor, short, folder, settings, CLIPS)
            print(f"{count} workers:", {name: round(seconds, 2) for name, seconds in stages.items()}, flush=True)
            costs.append(Costs(**parts, **by_window(stages, -(-frames // settings.window)), alone=each))
    return costs[0], found


def by_window(stages: dict[str, float], windows: int) -> dict[str, float]:
    """Seconds of the parts of a window, from those of a clip."""
    between = stages["context"] + stages["refine"]
    each = {"features": stages["features"], "upsample": stages["upsample"], "between": between}
    return {name: seconds / windows for name, seconds in each.items()} | {"rest": stages["rest"]}


def spread(executor, clip: Path, folder: Path, settings: Settings, count: int) -> tuple[float, float]:
    """Seconds of so many copies of a clip, each of them one task, and of one alone."""
    started = time.perf_counter()
    futures = [executor.submit(alone, clip, folder / f"out{n}", settings) for n in range(count)]
    each = [future.result() for future in futures]
    return time.perf_counter() - started, sum(each) / count


def alone(clip: Path, out: Path, settings: Settings) -> float:
    """Seconds of a clip, in a worker."""
    started = time.perf_counter()
    segment(clip, out, settings)
    return time.perf_counter() - started


# ---- what is written


def rows(costs: Costs, found: dict[tuple[str, int], float], frames: int, window: int) -> Iterator[dict[str, object]]:
    """Lines of the table: the costs, what was measured beside what is predicted for it, and predictions."""
    for name, value in {"frames": frames, "window": window, **asdict(costs)}.items():
        yield {"what": f"cost: {name}", "measured": value}
    windows, short = -(-frames // window), f"{max(1, frames // CLIPS)} frames"
    for workers in PREDICTED:
        for what, seconds in (
            (f"one clip of {frames} frames", one_clip(costs, windows, workers)),
            (f"one clip of {LONG * frames} frames", one_clip(costs, LONG * windows, workers)),
            (f"{CLIPS} clips of {short}", many_clips(costs, CLIPS, workers)),
            (f"{MANY} clips of {short}", many_clips(costs, MANY, workers)),
        ):
            kind = {f"one clip of {frames} frames": "one clip", f"{CLIPS} clips of {short}": "short clips"}.get(what)
            yield {"what": what, "workers": workers, "measured": found.get((kind, workers), ""), "predicted": seconds}


def read_table(path: Path) -> tuple[Costs, dict[tuple[str, int], float], int, int]:
    """What `rows` had."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    known = {line["what"].removeprefix("cost: "): float(line["measured"]) for line in lines if line["what"].startswith("cost")}
    frames, window = int(known.pop("frames")), int(known.pop("window"))
    kinds = {True: "one clip", False: "short clips"}
    found = {(kinds[line["what"].startswith("one")], int(line["workers"])): float(line["measured"])
             for line in lines if line["workers"] and line["measured"]}  # fmt: skip
    return Costs(**known), found, frames, window


def write_table(path: Path, table: list[dict[str, object]]) -> None:
    """As CSV; seconds to the millisecond."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("what", "workers", "measured", "predicted"), restval="")
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in table)


def plot(path: Path, table: list[dict[str, object]]) -> None:
    """How many times as fast as one worker, by the number of workers; crosses are measured."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(PREDICTED, PREDICTED, ":", color="grey", label="as many times as workers")
    for n, what in enumerate(dict.fromkeys(row["what"] for row in table if row.get("workers"))):
        line = [row for row in table if row["what"] == what]
        axes.plot([r["workers"] for r in line], [line[0]["predicted"] / r["predicted"] for r in line], f"C{n}", label=what)
        seen = [r for r in line if r["measured"]]
        axes.plot([r["workers"] for r in seen], [seen[0]["measured"] / r["measured"] for r in seen], f"C{n}x")
    axes.plot([], [], "kx", label="measured")
    axes.plot([], [], "k", label="predicted")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="times as fast as one")
    ticks = PREDICTED[::3]
    axes.set_xticks(ticks, ticks)
    axes.set_yticks(ticks, ticks)
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Measure or read, write the table and the plot, and say how far the prediction is from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--window", type=int, default=Settings().window)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.csv"))
    parser.add_argument("--plot", type=Path, default=Path("docs/scaling.png"))
    parser.add_argument("--again", type=Path, metavar="CSV", help="measure nothing: take the costs of this table")
    options = parser.parse_args()
    if options.again:
        costs, found, frames, window = read_table(options.again)
    else:
        frames, window = options.frames, options.window
        costs, found = measure(frames, Settings(window=window))
    table = list(rows(costs, found, frames, window))
    write_table(options.out, table)
    plot(options.plot, table)
    for row in table:
        if row.get("workers") and row["measured"]:
            off = f"predicted {row['predicted']:.1f} ({row['predicted'] / row['measured'] - 1:+.0%})"
            print(f"{row['what']}, {row['workers']} workers: {row['measured']:.1f} s, {off}")
    for what in ("one clip", "short clips"):
        first, second = (found[what, count] for count in MEASURED)
        print(f"{what}: {first / second:.2f} times as fast with two workers")


if __name__ == "__main__":
    main()
