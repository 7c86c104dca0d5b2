"""What is seen of a run from outside: how long each stage takes, how far it is, and whether memory suffices."""

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
        self.backbone.synchronize()
        started = time.perf_counter()
        with memory_checked():
            result = function(*arguments)
        self.backbone.synchronize()
        if self.progress and stage not in self.seconds:
            self.progress(stage, self.frames)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        return result
