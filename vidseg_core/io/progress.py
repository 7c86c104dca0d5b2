"""How far a run is, or a command about many clips, on a terminal or in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

STAGES = ("features", "context", "refine", "upsample", "write")


@contextmanager
def show_progress(total: int, finished: int) -> Iterator[Callable[[str, float], None]]:
    """A progress bar for each stage on a terminal; a line when a tenth more of the clip is done elsewhere."""
    begun = dict.fromkeys(STAGES, finished) | {"write": 0}  # the overlay is not written in parts
    bars = [
        tqdm(total=total, initial=begun[stage], desc=f"{stage:9}", unit="frame", position=n, disable=None, file=sys.stderr,
             bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total} frames, {remaining} left")
        for n, stage in enumerate(STAGES)
    ]  # fmt: skip
    done, said = begun.copy(), finished * 10 // total

    def tick(stage: str, frames: float) -> None:
        nonlocal said
        done[stage] += frames
        bars[STAGES.index(stage)].update(frames)
        tenths = round(done["upsample"]) * 10 // total
        if bars[0].disable and tenths > said:
            said = tenths
            print(f"segmented {round(done['upsample'])} of {total} frames", file=sys.stderr, flush=True)

    try:
        yield tick
    finally:
        for bar in bars:
            bar.close()


class ClipProgress:
    """A bar over all clips on a terminal, a line a clip elsewhere; both say how much time is left."""

    def __init__(self, total: int):
        self.total, self.done, self.skipped, self.begun = total, 0, 0, time.perf_counter()
        self.bar = tqdm(total=total, desc=self._count(), disable=None, smoothing=0, file=sys.stderr,
                        bar_format="{desc} {percentage:3.0f}% |{bar}| {remaining} left")  # fmt: skip

    def __enter__(self) -> "ClipProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tell(self, line: str) -> None:
        """A line above the bar."""
        tqdm.write(line, file=sys.stderr)

    @contextmanager
    def part(self, total: int, finished: int) -> Iterator[Callable[[str, float], None]]:
        """The bar moves while one clip of `total` frames is segmented, of which are `finished`; as `show_progress`."""
        self.bar.update(finished / total)
        yield lambda stage, frames: self.bar.update(frames / total if stage == "upsample" else 0)

    def clip(self, line: str, worked: bool) -> None:
        """A clip is through; `worked`: it took a clip's time, by which that of the others is guessed."""
        self.done, self.skipped = self.done + 1, self.skipped + (not worked)
        if self.bar.disable:
            self.tell(f"{self._count()}{self._left()}: {line}")
            return
        self.bar.initial, self.bar.n = self.skipped, self.done
        self.bar.set_description_str(self._count())

    def _count(self) -> str:
        return f"{self.done} of {self.total} clips"

    def _left(self) -> str:
        worked, rest = self.done - self.skipped, self.total - self.done
        pace = (time.perf_counter() - self.begun) / max(worked, 1)
        return f", {tqdm.format_interval(rest * pace)} left" if rest and worked else ""
