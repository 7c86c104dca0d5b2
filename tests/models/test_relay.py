"""Windows over many workers: their order, how many are under way, and what an error leaves."""

import random
import tracemalloc
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from light import LIGHT, SIZE, LightBackbone, LightVidSeg, numbered_frames

from vidseg_core import InputError
from vidseg_core.models.relay import Crew, Task, relay
from vidseg_core.models.watch import Watch

FRAMES = 23
"""Eight windows, of which the last is shorter."""


class Shuffling(Executor):
    """Computes when somebody waits, one of what lies there, by lot; counts what lies there and what was cancelled."""

    def __init__(self, seed, workers):
        self.lot, self._max_workers, self.open, self.most, self.cancelled = random.Random(seed), workers, [], 0, 0

    def submit(self, function, /, *arguments):
        future = Future()
        self.open.append((future, partial(function, *arguments)))
        self.most = max(self.most, len(self.open))
        return future

    def wait(self, futures, return_when):
        """In the place of `concurrent.futures.wait`."""
        while not any(future.done() for future in futures):
            future, function = self.open.pop(self.lot.randrange(len(self.open)))
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)


@pytest.fixture
def shuffling(monkeypatch):
    """Makes an executor for which the relay waits."""

    def make(seed, workers=2):
        executor = Shuffling(seed, workers)
        monkeypatch.setattr("vidseg_core.models.relay.wait", executor.wait)
        return executor

    return make


def clip(count=FRAMES):
    return np.stack([*numbered_frames(count)])


def run(executor=None, count=FRAMES, **how):
    """What a clip's windows give, and what was told of the progress."""
    told = []
    vidseg = LightVidSeg(LightBackbone(), LIGHT, executor=executor)
    return list(vidseg.stream(clip(count), progress=lambda *seen: told.append(seen), **how)), told


def content(windows):
    """All that has to be the same: labels, votes, features and the state behind each window, to the bit."""
    arrays = [
        (w.labels, w.coarse, w.confidence, *w.votes, w.features.match.numpy(), *w.scene.state().values()) for w in windows
    ]
    return [[array.tobytes() for array in window] for window in arrays]


@pytest.fixture(scope="module")
def serial():
    return run()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_windows_are_the_same_and_in_order_whatever_is_done_first(shuffling, serial, workers, seed):
    executor = shuffling(seed, workers)
    windows, told = run(executor)
    assert [w.start for w in windows] == [*range(0, FRAMES, 3)] and content(windows) == content(serial[0])
    assert all([t for t in told if t[0] == stage] == [t for t in serial[1] if t[0] == stage] for stage, _ in told)
    assert len(told) == len(serial[1])
    assert 1 < executor.most <= 2 * workers and not executor.open


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_share_the_model(serial, workers):
    with ThreadPoolExecutor(workers) as executor:
        assert content(run(executor)[0]) == content(serial[0])


def test_cells_of_a_clip_need_no_last_stage(shuffling):
    vidseg = LightVidSeg(LightBackbone(), LIGHT, executor=shuffling(0))
    windows = list(vidseg.cells(clip(9)))
    assert [w.start for w in windows] == [0, 3, 6] and all(w.labels is None for w in windows)


def test_a_stream_goes_on_from_any_window(shuffling, serial):
    """The executor is as good for the rest of a clip."""
    for known in serial[0][:3]:
        vidseg = LightVidSeg(LightBackbone(), LIGHT, executor=shuffling(1))
        done = known.scene.frames
        rest = list(vidseg.stream(clip()[done:], scene=known.scene))
        assert content(rest) == content(serial[0])[done // 3 :]


def test_so_many_windows_are_under_way(shuffling, serial):
    """Between the first frame that is read and the last result that is given: two windows a worker."""
    read, given, most = 0, 0, 0

    def frames():
        nonlocal read, most
        for frame in numbered_frames(60):
            read += 1
            most = max(most, read - given)
            yield frame

    for window in LightVidSeg(LightBackbone(), LIGHT, executor=shuffling(2, workers=3)).stream(frames()):
        given += len(window.labels)
    assert given == 60 and 6 * 3 - 3 <= most <= 6 * 3 + 3  # the consumer counts a window late


class Breaking(LightVidSeg):
    """A stage that fails with the window of frame 9."""

    stage = "features"

    def compute(self, stage, *arguments):
        if stage == self.stage and arguments[0][0, 0, 0, 0] == 9:
            raise InputError("the window of frame 9 is bad")
        return super().compute(stage, *arguments)


@pytest.mark.parametrize("stage", ["features", "upsample"])
@pytest.mark.parametrize("seed", range(3))
def test_windows_before_one_that_fails_are_given(shuffling, monkeypatch, stage, seed):
    monkeypatch.setattr(Breaking, "stage", stage)
    executor, given = shuffling(seed, workers=3), []
    with pytest.raises(InputError, match="frame 9"):
        for window in Breaking(LightBackbone(), LIGHT, executor=executor).stream(clip()):
            given.append(window.start)
    assert given == [0, 3, 6]
    assert all(future.cancelled() for future, _ in executor.open)


@pytest.mark.parametrize("seed", range(3))
def test_windows_before_a_frame_that_cannot_be_read_are_given(shuffling, seed):
    def frames():
        yield from numbered_frames(10)
        raise InputError("frame 10 is damaged")

    given = []
    with pytest.raises(InputError, match="frame 10"):
        for window in LightVidSeg(LightBackbone(), LIGHT, executor=shuffling(seed, 4)).stream(frames()):
            given.append(window.start)
    assert given == [0, 3, 6]


def test_a_mask_beyond_the_clip_is_seen_at_its_end(shuffling):
    vidseg = LightVidSeg(LightBackbone(), LIGHT, executor=shuffling(0))
    stream, given = vidseg.stream(numbered_frames(6), masks={7: np.zeros(SIZE, int)}), []
    with pytest.raises(InputError, match="mask of frame 7, but the clip has 6 frames"):
        given.extend(iter(stream))
    assert len(given) == 0 or len(given) == 2


def test_who_stops_leaves_no_tasks(shuffling):
    executor = shuffling(0, workers=4)
    stream = LightVidSeg(LightBackbone(), LIGHT, executor=executor).stream(clip())
    next(stream)
    stream.close()
    assert executor.open and all(future.cancelled() for future, _ in executor.open)


def test_ctrl_c_leaves_no_tasks(shuffling, monkeypatch):
    executor = shuffling(0, workers=4)
    stream = LightVidSeg(LightBackbone(), LIGHT, executor=executor).stream(clip())
    next(stream)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vidseg_core.models.relay.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert executor.open and all(future.cancelled() for future, _ in executor.open)


def test_a_window_may_have_any_number_of_tasks():
    watch = Watch(LightBackbone(), None, 1)

    def window(number):
        total = 0
        for part in range(number):
            total += yield Task(watch, "part", (part,))
        return total

    crew = Crew(None, lambda stage, value: (value, 0.0), lambda: pytest.fail("this process needs no errand"))
    assert list(relay(map(window, range(1, 5)), crew)) == [0, 1, 3, 6]


def test_a_backbone_that_nobody_can_make_again_is_refused():
    backbone = LightBackbone()
    backbone.recipe = None
    with pytest.raises(InputError, match=r"workers cannot make this backbone \(tiny\) again"):
        next(LightVidSeg(backbone, LIGHT, executor=Shuffling(0, 1)).stream(clip()))


def test_workers_refuse_other_weights(shuffling):
    """As if the files were others than here."""
    backbone = LightBackbone()
    torch.nn.init.constant_(backbone.unet.weight, 0.25)
    with pytest.raises(InputError, match="a worker finds other weights for tiny"):
        next(LightVidSeg(backbone, LIGHT, executor=shuffling(0)).stream(clip()))


def test_memory_does_not_grow_with_the_clip():
    """The peak of all that Python and numpy hold, for 2,000 frames and for 200."""
    peaks = []
    with ThreadPoolExecutor(2) as executor:
        for count in (40, 200, 2000):  # the first fills what is kept between runs
            vidseg = LightVidSeg(LightBackbone(), replace(LIGHT, window=20), executor=executor)
            tracemalloc.start()
            assert sum(len(window.labels) for window in vidseg.stream(numbered_frames(count))) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1], peaks
