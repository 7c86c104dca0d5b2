"""How far a run is, on a terminal or in a log."""

import sys
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
