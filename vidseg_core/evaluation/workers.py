"""Clips spread over processes or a Dask cluster."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from vidseg_core.common import InputError
from vidseg_core.evaluation.labelled import AnyClip
from vidseg_core.evaluation.scoring import Plan, evaluate_clip

Outcome = tuple[AnyClip, dict[str, Any] | InputError]


def spread_clips(plan: Plan, clips: Sequence[AnyClip], workers: int = 0, scheduler: str | None = None) -> Iterator[Outcome]:
    """(clip, its result or why there is none), as they are finished.

    `workers` 0: here, one after the other. Else on a local Dask cluster of so many processes or, where Dask is not installed,
    on processes of our own; `scheduler`: the address of a Dask cluster that is there, whose workers see the same folders.
    A Dask worker that dies is replaced, and its clip goes on behind the last whole window. Raises InputError if the
    cluster can't be reached and if workers keep dying.
    """
    if scheduler or workers:
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            if scheduler:
                raise InputError('--scheduler needs Dask: pip install "vidseg-workbook[dask]"') from error
            return _processes(plan, clips, workers)
        return _dask(plan, clips, workers, scheduler)
    return ((clip, attempt(plan, clip)) for clip in clips)


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

    return attempt(replace(plan, device=pick_device(plan.device, _worker_number(), torch.cuda.device_count())), clip)


def _worker_number() -> int:
    try:
        from distributed import get_worker

        name = get_worker().name  # a number in a local cluster; elsewhere CUDA_VISIBLE_DEVICES is for the cluster to set
        return name if isinstance(name, int) else 0
    except (ImportError, ValueError):
        identity = multiprocessing.current_process()._identity
        return identity[0] - 1 if identity else 0


def own_pool(workers: int) -> ProcessPoolExecutor:
    """So many processes, which end within a second of this one, however it ends (not on Windows)."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    return ProcessPoolExecutor(workers, context, _end_with, (os.getpid(),) if os.name == "posix" else (None,))


def _end_with(parent: int | None) -> None:
    """Let this process end when its parent is gone: a killed evaluation must not go on writing beside the next one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _processes(plan: Plan, clips: Sequence[AnyClip], workers: int) -> Iterator[Outcome]:
    pool = own_pool(workers)
    try:
        open_ = {pool.submit(_work, plan, clip): clip for clip in clips}
        while open_:
            for future in wait(open_, return_when=FIRST_COMPLETED).done:
                yield open_.pop(future), future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise InputError("a worker was killed (out of memory?): the same command goes on behind its last window") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _dask(plan: Plan, clips: Sequence[AnyClip], workers: int, scheduler: str | None) -> Iterator[Outcome]:
    from distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    logging.getLogger("distributed").setLevel(logging.ERROR)
    cluster = scheduler or LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
    )
    try:
        client = Client(cluster, timeout="30s")
    except OSError as error:
        raise InputError(f"no Dask scheduler answers at {scheduler}: start one (dask scheduler), or use --workers") from error
    futures = {}
    try:
        futures = {client.submit(_work, plan, clip, pure=False): clip for clip in clips}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except KilledWorker as error:
        raise InputError("a clip's workers were killed again and again (out of memory?): use fewer --workers") from error
    finally:
        _quietly(client.cancel, list(futures))
        _quietly(client.close)
        if not scheduler:
            _quietly(cluster.close)


def _quietly(action: Callable, *arguments: Any) -> None:
    try:
        action(*arguments)
    except Exception:  # the cluster may be gone already: what was finished is on disk
        logging.getLogger(__name__).debug("closing the cluster", exc_info=True)
