"""Clips spread over workers; `test_evaluate_real` has real ones, of which one is killed."""

import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import distributed
import psutil
import pytest
import stubs
from distributed.scheduler import KilledWorker

from vidseg_core import InputError, Settings, generated_clip
from vidseg_core.evaluation import workers
from vidseg_core.evaluation.evaluate import Evaluation
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.evaluation.workers import Workers, pick_device

TABLES = ("results.csv", "results.json", "results.md")


@pytest.fixture
def evaluation(monkeypatch):
    stubs.install(monkeypatch.setattr)
    made = [generated_clip(num_frames=4, size=(48, 64), seed=n) for n in range(3)]
    clips = tuple(LabelledArrays(f"clip{n}", c.frames, dict(enumerate(c.labels))) for n, c in enumerate(made))
    return Evaluation(Dataset("set", ("ground", "one", "two"), clips), method="stub", settings=Settings(window=3))


def test_a_cluster_that_is_there_gives_the_table_of_one_process(evaluation, tmp_path):
    evaluation.run(tmp_path / "whole", threads=1)
    told = []
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:
        evaluation.run(tmp_path / "out", Workers(scheduler=cluster.scheduler_address), threads=1, tell=told.append)
        assert len(cluster.workers) == 2, "a cluster of somebody else is not closed"
    assert sorted(line.split()[0] for line in told) == ["clip0", "clip1", "clip2"]
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cluster_that_does_not_answer(evaluation, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(InputError, match="no Dask scheduler answers at tcp://here:1: start one"):
        evaluation.run(tmp_path / "out", Workers(scheduler="tcp://here:1"))


def test_workers_that_keep_dying(evaluation, tmp_path, monkeypatch):
    @contextmanager
    def deadly(_):
        future = Future()
        future.set_exception(KilledWorker("clip0", None, 3))
        yield SimpleNamespace(submit=lambda *_: future)

    monkeypatch.setattr(workers, "_dask", deadly)
    with pytest.raises(InputError, match="killed again and again"):
        evaluation.run(tmp_path / "out", Workers(2))


def test_a_worker_ends_with_the_process_that_it_works_for():
    script = "import os, time; from vidseg_core.evaluation import workers\n"
    script += "with workers._dask(workers.Workers(1)) as pool:\n"
    script += "    print(pool.submit(os.getpid).result(), flush=True); pool.submit(time.sleep, 60).result()"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.2)  # it is at work
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.1)
    gone = not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    if not gone:
        worker.kill()
    assert gone


def test_one_worker_a_gpu():
    assert [pick_device(None, n, 2) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert pick_device(None, 1, 0) is None and pick_device("cpu", 1, 2) == "cpu" and pick_device("cuda", 1, 2) == "cuda:1"
