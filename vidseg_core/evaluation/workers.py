"""Clips spread over processes: those of a local Dask cluster, or of one that is there."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.evaluation.clips import Plan, evaluate_clip
from vidseg_core.evaluation.labelled import AnyClip

Outcome = tuple[AnyClip, dict[str, Any] | InputError]


@dataclass(frozen=True)
class Workers:
    """Who evaluates: this process (`count` 0), so many of a local Dask cluster, or those of the cluster whose `scheduler` has
    this address; they must see the same folders."""

    count: int = 0
    scheduler: str | None = None


def spread_clips(plan: Plan, clips: Sequence[AnyClip], workers: Workers) -> Iterator[Outcome]:
    """(clip, its result or why there is none), as they are finished.

    A worker that dies is replaced, and its clip goes on behind the last whole window. Raises InputError if the cluster can't
    be reached, and if a clip's workers keep dying.
    """
    if not (workers.count or workers.scheduler):
        yield from ((clip, attempt(plan, clip)) for clip in clips)
        return
    from distributed.scheduler import KilledWorker

    with _dask(workers) as executor:
        futures = {executor.submit(_work, plan, clip): clip for clip in clips}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except KilledWorker as error:
            raise InputError("a clip's workers were killed again and again (out of memory?): use fewer --workers") from error


def attempt(plan: Plan, clip: AnyClip) -> dict[str, Any] | InputError:
    """A clip's result, or why it has none: one bad clip does not end an evaluation."""
    try:
        return evaluate_clip(plan, clip)
    except InputError as error:
        return error


def pick_device(device: str | None, worker: int, count: int) -> str | None:
    """One worker a GPU: worker n of a machine with `count` CUDA devices takes number n mod count; without any, `device`."""
    return f"cuda:{worker % count}" if count and device in (None, "cuda") else device


def _work(plan: Plan, clip: AnyClip) -> dict[str, Any] | InputError:
    """`attempt` in a worker."""
    import torch
    from distributed import get_worker

    name = get_worker().name  # a number in a local cluster; elsewhere CUDA_VISIBLE_DEVICES is for the cluster to set
    number = name if isinstance(name, int) else 0
    return attempt(replace(plan, device=pick_device(plan.device, number, torch.cuda.device_count())), clip)


@contextmanager
def _dask(workers: Workers) -> Iterator[Executor]:
    """The cluster's door. A local cluster ends with this process, also if that is killed: its workers watch a pipe."""
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Sending large graph")  # a sample clip travels with its task; those on disk do not
    cluster = workers.scheduler or LocalCluster(
        n_workers=workers.count, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
    )
    try:
        client = Client(cluster, timeout="30s")
    except OSError as error:
        raise InputError(
            f"no Dask scheduler answers at {workers.scheduler}: start one (dask scheduler), or use --workers"
        ) from error
    executor = client.get_executor(pure=False)
    try:
        yield executor
    finally:
        _quietly(executor.shutdown, False)
        _quietly(client.close)
        if not workers.scheduler:
            _quietly(cluster.close)


def _quietly(action: Callable, *arguments: Any) -> None:
    try:
        action(*arguments)
    except Exception:  # the cluster may be gone already: what was finished is on disk
        logging.getLogger(__name__).debug("closing the cluster", exc_info=True)
