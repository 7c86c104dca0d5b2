"""The door to many processes: those of a local Dask cluster, or of one that is there, as one `concurrent.futures.Executor`."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vidseg_core.cluster.versions import Versions, check_versions, versions_here
from vidseg_core.common import InputError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster


@dataclass(frozen=True)
class Workers:
    """Who computes: this process (neither is given; then it is false), so many (`count`) of a local Dask cluster, or those of
    the cluster whose `scheduler` has this address; they must see the same folders. Raises InputError for what can't be."""

    count: int = 0
    scheduler: str | None = None

    def __post_init__(self):
        if self.count < 0:
            raise InputError(f"{self.count} workers cannot be had: give 1 or more, or 0 for this process alone")
        if self.count > (most := max(32, 4 * (os.cpu_count() or 1))):  # each takes a gigabyte, and Ctrl-C waits for all of them
            raise InputError(f"{self.count} workers are too many for this machine: give about one a core, at most {most}")
        if self.scheduler is not None and not self.scheduler.strip():  # a shell's variable that is not set
            raise InputError("--scheduler is empty: give an address, such as tcp://host:8786, or leave it out")
        if self.count and self.scheduler:
            raise InputError("--workers and --scheduler both say who computes: give one of them")

    def __bool__(self) -> bool:
        return bool(self.count or self.scheduler)


HERE = Workers()
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What a local worker does first: Ctrl-C reaches it too, but is for the process that ends it."""
CALM = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}
"""Dask looks at its stacks and its event loop up to a hundred times a second, which costs a twentieth of each core."""


class ClusterExecutor(Executor):
    """A Dask client's executor. A task finds its worker checked (`check_versions`) and on a GPU of its own (`pick_device`)."""

    def __init__(self, client: "Client"):
        self._client, self._dask, self._versions = client, client.get_executor(pure=False), versions_here()

    @property
    def workers(self) -> int:
        """How many tasks run at a time: at the moment, for workers come and go."""
        return max(1, sum(self._client.nthreads().values()))

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        """As every executor. The dashboard shows the task by the function's name."""
        name = getattr(function, "__name__", "task")
        return self._dask.submit(_at_worker, self._versions, function, *arguments, key=f"{name}-{uuid4().hex}")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As every executor; without `wait`, what is not done is cancelled."""
        self._dask.shutdown(wait and not cancel_futures)


@contextmanager
def open_executor(workers: Workers) -> Iterator[ClusterExecutor]:
    """The executor of `workers`. A worker that dies is replaced, and its task done again; a local cluster ends with this
    process, also if that is killed: its workers watch a pipe. The address of the dashboard is told on stderr.

    Raises InputError if the cluster can't be reached or computes with other versions and, out of the block, if a task's workers
    keep dying or the cluster is lost.
    """
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    logging.getLogger("distributed").setLevel(logging.ERROR)
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost cluster is told by a sentence, below
    warnings.filterwarnings("ignore", "Sending large graph")  # frames travel with their task; clips on disk do not
    with nullcontext() if workers.scheduler else _interrupts_later():
        cluster = workers.scheduler or local_cluster(workers.count)
    try:
        client = _connect(cluster)
    except (OSError, ValueError) as error:  # nobody is there, or it is no address
        raise InputError(
            f"no Dask scheduler answers at {workers.scheduler}: start one (dask scheduler), or use --workers"
        ) from error
    executor = ClusterExecutor(client)
    try:
        _greet(client, workers)
        yield executor
    except KilledWorker as error:
        raise InputError("a task's workers were killed again and again (out of memory?): use fewer workers") from error
    except (CancelledError, CommClosedError) as error:
        raise InputError("the cluster was lost: start it again") from error
    except KeyboardInterrupt:
        print("\nstopping: the workers end what they do, which takes seconds", file=sys.stderr, flush=True)
        raise
    finally:
        _quietly(executor.shutdown, False)
        _quietly(client.close)
        if not workers.scheduler:
            _quietly(cluster.close)


def _connect(cluster: "LocalCluster | str") -> "Client":
    """A client that is closed if it gets no further: one that is left to the garbage collector closes whenever that comes, and
    waits for ever if Dask happens to be starting the next."""
    from distributed import Client

    client = Client.__new__(Client)
    try:
        client.__init__(cluster, timeout="30s")
    except BaseException:
        _quietly(client.close)
        raise
    return client


def local_cluster(count: int) -> "LocalCluster":
    """So many workers of one thread each on this machine."""
    import dask
    from distributed import LocalCluster

    how = {"threads_per_worker": 1, "dashboard_address": "localhost:0", "preload": [DEAF]}
    how["silence_logs"] = logging.CRITICAL  # what a worker says when its cluster ends is nothing to the user
    with dask.config.set(CALM):
        return LocalCluster(n_workers=count, **how)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C comes at the end of this block, and never to the processes begun in it: what they print before they do `DEAF`, and
    Dask of a cluster that is half there, is pages long. Then the cluster ends with this process."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else it allows signals again, amid the start of a process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pick_device(worker: Any, count: int) -> int | None:
    """One worker a GPU: worker n of a machine with `count` CUDA devices takes number n mod count. None if there is none, or if
    the worker has no number: CUDA_VISIBLE_DEVICES is then for whoever started it to set."""
    return worker % count if count and isinstance(worker, int) else None


def _greet(client: "Client", workers: Workers) -> None:
    """Say where the dashboard is, and refuse other versions there; workers that come later are checked by their tasks."""
    services = client.scheduler_info().get("services", {})
    if services.get("dashboard") and (workers.scheduler or find_spec("bokeh")):  # without bokeh the page is empty
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
    if not client.nthreads():
        print(f"{workers.scheduler} has no worker yet: waiting for the first (dask worker ADDRESS)", file=sys.stderr)
    try:  # the scheduler reads what workers are sent, so it needs the same
        there = {"scheduler": client.run_on_scheduler(versions_here)}
        there |= {f"worker {address}": versions for address, versions in client.run(versions_here).items()}
    except ModuleNotFoundError as error:
        raise InputError(f"the scheduler or a worker has no {error.name}: install there what is installed here") from error
    for who, versions in there.items():
        check_versions(versions_here(), versions, who)


def _at_worker(versions: Versions, function: Callable, *arguments: Any) -> Any:
    """A task, in the worker."""
    import torch
    from distributed import get_worker

    worker = get_worker()
    check_versions(versions, versions_here(), f"worker {worker.address}")
    device = pick_device(worker.name, torch.cuda.device_count())
    if device is not None:
        torch.cuda.set_device(device)  # what "cuda" means to this thread
    return function(*arguments)


def _quietly(action: Callable, *arguments: Any) -> None:
    try:
        action(*arguments)
    except Exception:  # the cluster may be gone already: what was finished is on disk
        logging.getLogger(__name__).debug("closing the cluster", exc_info=True)
