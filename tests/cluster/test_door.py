"""The door to a Dask cluster: who may work, what a lost worker or cluster is called, and that nobody is left behind."""

import gc
import logging
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import dask
import distributed
import psutil
import pytest
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from vidseg_core import InputError
from vidseg_core.cluster import door, versions
from vidseg_core.cluster.door import ClusterExecutor, Workers, _interrupts_later, open_executor, pick_device


@pytest.fixture(scope="module")
def address():
    """A cluster of two workers in this process."""
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


def test_tasks_are_done_by_all_workers(address):
    with open_executor(Workers(scheduler=address)) as executor:
        assert executor.workers == 2
        names = {executor.submit(worker_name, n).result() for n in range(8)}
    assert names == {0, 1}


def worker_name(_):
    return distributed.get_worker().name


def test_nobody_but_this_process():
    assert not Workers() and Workers(1) and Workers(scheduler="tcp://here:1")
    with pytest.raises(InputError, match="-1 workers"):
        Workers(-1)
    with pytest.raises(InputError, match="100000 workers are too many"):
        Workers(100_000)
    with pytest.raises(InputError, match="give one of them"):
        Workers(2, "tcp://here:1")
    with pytest.raises(InputError, match="--scheduler is empty"):
        Workers(scheduler=" ")


def test_a_cluster_that_does_not_answer(monkeypatch):
    def refuse(*_):
        raise OSError("timed out")

    monkeypatch.setattr(door, "_connect", refuse)
    with pytest.raises(InputError, match="no Dask scheduler answers at tcp://here:1: start one"), opened("tcp://here:1"):
        pass


def test_a_word_that_is_no_address():
    with pytest.raises(InputError, match="no Dask scheduler answers at here"), opened("here"):
        pass
    left = [client.status for client in gc.get_objects() if type(client) is distributed.Client]
    assert set(left) <= {"closed"}, "a client closed by the garbage collector may wait for a lock of its own"


def opened(address):
    return open_executor(Workers(scheduler=address))


def test_ctrl_c_is_answered_before_the_workers_end(address, capsys, monkeypatch):
    said = []
    monkeypatch.setattr(ClusterExecutor, "shutdown", lambda *_: said.append(capsys.readouterr().err))
    with pytest.raises(KeyboardInterrupt), opened(address):
        raise KeyboardInterrupt
    assert said[0].endswith("\nstopping: the workers end what they do, which takes seconds\n")


def test_another_version_is_refused_at_the_start(address, monkeypatch):
    other = {**versions.versions_here(), "torch": "1.0"}
    monkeypatch.setattr(distributed.Client, "run", lambda *_: {"tcp://there:1": other})
    with pytest.raises(InputError, match=r"the worker tcp://there:1 has torch 1.0, but this process \d"), opened(address):
        pytest.fail("it was opened")


def test_another_version_of_the_scheduler_is_refused_at_the_start(address, monkeypatch):
    monkeypatch.setattr(distributed.Client, "run_on_scheduler", lambda *_: {"vidseg_core": "of code 0"})
    with pytest.raises(InputError, match=r"the scheduler has vidseg_core of code 0, but this process of code"), opened(address):
        pytest.fail("it was opened")


@pytest.mark.parametrize("who", ["run", "run_on_scheduler"])
def test_a_machine_without_the_package_is_refused_at_the_start(address, monkeypatch, who):
    def lacking(*_):
        raise ModuleNotFoundError(name="vidseg_core")

    monkeypatch.setattr(distributed.Client, who, lacking)
    with pytest.raises(InputError, match="the scheduler or a worker has no vidseg_core"), opened(address):
        pytest.fail("it was opened")


def test_a_worker_that_comes_later_is_checked_by_its_task(address):
    with pytest.raises(InputError, match=r"has numpy \S+, but this process 1.0"), opened(address) as executor:
        executor._versions = {"numpy": "1.0"}
        executor.submit(abs, -1).result()


def test_the_version_of_the_code_is_its_bytes(tmp_path, monkeypatch):
    here = versions.versions_here.__wrapped__()
    assert here == versions.versions_here() and {"vidseg_core", "python", "torch", "diffusers", "numpy"} <= set(here)
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    one = versions.versions_here.__wrapped__()["vidseg_core"]
    (tmp_path / "a.py").write_text("x = 2")
    assert versions.versions_here.__wrapped__()["vidseg_core"] != one != here["vidseg_core"]


LOST = [(KilledWorker("a", None, 3), "killed again and again"), (None, "was lost"), (CommClosedError(), "was lost")]


@pytest.mark.parametrize(("error", "words"), LOST)
def test_workers_that_keep_dying_and_a_cluster_that_is_lost(address, monkeypatch, error, words):
    future = Future()
    future.set_exception(error) if error else future.cancel()
    monkeypatch.setattr(ClusterExecutor, "submit", lambda *_: future)
    with pytest.raises(InputError, match=words), opened(address) as executor:
        assert not logging.getLogger("distributed.client").isEnabledFor(logging.ERROR)  # it would print a traceback
        executor.submit(abs, 1).result()


def test_a_worker_ends_with_the_process_that_it_works_for():
    script = "import os, time; from vidseg_core.cluster.door import Workers, open_executor\n"
    script += "with open_executor(Workers(1)) as pool:\n"
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


def test_local_workers_do_nothing_but_their_tasks():
    """Dask's profile of what they compute costs more than it tells."""
    with open_executor(Workers(1)) as executor:
        assert executor.submit(dask.config.get, "distributed.worker.profile.enabled").result() is False
    assert dask.config.get("distributed.worker.profile.enabled"), "others' clusters are left alone"


def test_one_worker_a_gpu():
    assert [pick_device(n, 2) for n in range(3)] == [0, 1, 0]
    assert pick_device(1, 0) is None and pick_device("tcp://10.0.0.1:4", 2) is None


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows")
def test_an_interrupt_waits_until_the_cluster_is_there_and_spares_its_processes():
    begun, blocked = [], "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with pytest.raises(KeyboardInterrupt), _interrupts_later():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        begun.append(subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=True).stdout)
    assert begun == ["True\n"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
