"""Watches a run: how long each stage takes, how far it is, and whether memory suffices."""

import time
from collections.abc import Callable
from typing import Any

from vidseg_core.models.backbone import Backbone
from vidseg_core.models.memory import memory_checked

Progress = Callable[[str, float], None]
"""Told (stage, frames) as the stages of a window are done: "features", "context", "refine", "upsample"."""


class Watch:
    """Runs the stages of one window: takes the time, tells the progress, and says what to do if memory runs out."""

    def __init__(self, backbone: Backbone, progress: Progress | None, frames: int):
        self.backbone, self.progress, self.frames, self.seconds = backbone, progress, frames, {}

    def __call__(self, stage: str, function: Callable, *arguments: Any) -> Any:
        """`function(*arguments)`, which is this stage or a part of it."""
        result, seconds = timed(self.backbone, function, *arguments)
        self.passed(stage, seconds)
        return result

    def passed(self, stage: str, seconds: float) -> None:
        """This stage, or a part of it, has taken so long, here or elsewhere."""
        if self.progress and stage not in self.seconds:
            self.progress(stage, self.frames)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def timed(backbone: Backbone, function: Callable, *arguments: Any) -> tuple[Any, float]:
    """`function(*arguments)` and its seconds on the backbone's device; InputError, with what to do, if memory runs out."""
    backbone.synchronize()
    started = time.perf_counter()
    with memory_checked():
        result = function(*arguments)
    backbone.synchronize()
    return result, time.perf_counter() - started
