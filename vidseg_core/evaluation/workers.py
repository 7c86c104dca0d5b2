"""Clips of an evaluation spread over processes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from typing import Any

from vidseg_core.cluster.door import Workers, open_executor
from vidseg_core.common import InputError
from vidseg_core.evaluation.clips import Plan, evaluate_clip
from vidseg_core.evaluation.labelled import AnyClip

Outcome = tuple[AnyClip, dict[str, Any] | InputError]


def spread_clips(plan: Plan, clips: Sequence[AnyClip], workers: Workers) -> Iterator[Outcome]:
    """(clip, its result or why there is none), as they are finished.

    A worker that dies is replaced, and its clip goes on behind the last whole window. Raises InputError as `open_executor`.
    """
    if not workers:
        yield from ((clip, attempt(plan, clip)) for clip in clips)
        return
    with open_executor(workers) as executor:
        futures = {executor.submit(attempt, plan, clip): clip for clip in clips}
        for future in as_completed(futures):
            yield futures[future], future.result()


def attempt(plan: Plan, clip: AnyClip) -> dict[str, Any] | InputError:
    """A clip's result, or why it has none: one bad clip does not end an evaluation."""
    try:
        return evaluate_clip(plan, clip)
    except InputError as error:
        return error
