"""Windows over many workers: what needs nothing of other windows is done anywhere, the rest here, one after the other.

A window is a generator. It yields a `Task` for each stage that any worker can do, and is sent what came of it. It goes past
its first task when the windows before it have: so the state of a clip moves on in order, while all workers are busy.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from vidseg_core.models.elsewhere import Errand, placed
from vidseg_core.models.watch import Watch


@dataclass(frozen=True)
class Task:
    """A stage of a window, whose `watch` learns how long it took."""

    watch: Watch
    stage: str
    arguments: tuple[Any, ...]

    def result(self, future: Future) -> Any:
        """What came of it, on the device of this process. Raises what was raised there."""
        value, seconds = future.result()
        self.watch.passed(self.stage, seconds)
        return placed(value, self.watch.backbone.device)


Window = Generator[Task, Any, Any]


def relay(windows: Iterator[Window], crew: "Crew") -> Iterator[Any]:
    """What the windows return, in order; `crew.most` of them are under way at a time. If one fails, those before it are given
    first. However it ends, tasks that nobody waits for any more are cancelled."""
    begun, passed, failure = deque(), deque(), None  # before and behind the part that is done in order
    try:
        while True:
            try:
                while failure is None and len(begun) + len(passed) < crew.most and (window := next(windows, None)):
                    begun.append(_Runner(window, crew))
            except Exception as error:
                failure = error
            try:
                if begun and begun[0].future.done():
                    begun[0].go_on()
                    passed.append(begun.popleft())
            except Exception as error:  # no window behind this one can go on
                failure = error
                _cancel(begun)
            if passed and passed[0].future.done():
                yield passed.popleft().result()
            elif begun or passed:
                wait([runners[0].future for runners in (begun, passed) if runners], return_when=FIRST_COMPLETED)
            elif failure:
                raise failure
            else:
                return
    finally:
        _cancel(begun)
        _cancel(passed)


class _Runner:
    """A window under way, and the `future` of its task or, at its end, of what it returns."""

    def __init__(self, window: Window, crew: "Crew"):
        self.window, self.crew, self.task = window, crew, None
        self.go_on()

    def go_on(self) -> None:
        """From the task that is done to the next one."""
        value = self.task and self.task.result(self.future)
        try:
            self.task = self.window.send(value)
            self.future = self.crew.submit(self.task)
        except StopIteration as end:
            self.task, self.future = None, Future()
            self.future.set_result(end.value)

    def result(self) -> Any:
        """What the window returns."""
        while self.task:
            self.go_on()
        return self.future.result()


def _cancel(runners: deque[_Runner]) -> None:
    while runners:
        runners.pop().future.cancel()


class Crew:
    """Who does the tasks: this process (no `executor`), threads that share its model, or processes that make it again."""

    def __init__(self, executor: Executor | None, compute: Callable, errand: Callable[[], Errand]):
        """`compute(stage, *arguments)` is how this process does a task."""
        self.executor, self.compute, self.turn = executor, compute, Lock()
        self.errand = None if executor is None or isinstance(executor, ThreadPoolExecutor) else errand()

    @property
    def most(self) -> int:
        """How many windows may be under way: two a worker, of which one is computed and one lies ready."""
        dask = getattr(self.executor, "_client", None)
        workers = sum(dask.nthreads().values()) if dask else getattr(self.executor, "_max_workers", 1)
        return 1 if self.executor is None else 2 * max(1, workers)

    def submit(self, task: Task) -> Future:
        """Have a task done."""
        if self.executor is None:
            return _done(self.compute, task.stage, *task.arguments)
        if self.errand is None:
            return self.executor.submit(self._in_turn, task.stage, *task.arguments)
        return self.executor.submit(replace(self.errand, stage=task.stage), *task.arguments)

    def _in_turn(self, *arguments: Any) -> Any:
        with self.turn:  # a network that is looked into holds what one pass computes
            return self.compute(*arguments)


def _done(function: Callable, *arguments: Any) -> Future:
    """The future of what is computed at once."""
    future = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:  # told when it is asked for, as by every future
        future.set_exception(error)
    return future
