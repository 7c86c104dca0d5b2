"""One clip over a cluster of processes: the same bytes, whoever is killed and when, and what a full disk leaves."""

import errno
import json
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import distributed
import pytest
from light import LIGHT, LightBackbone, LightVidSeg, moment, numbered_frames
from PIL import Image
from processes import FORKSERVER

import vidseg_core.pipeline
from vidseg_core import Settings
from vidseg_core.cli import main
from vidseg_core.cluster.door import Workers
from vidseg_core.io import run
from vidseg_core.io.files import UnfinishedFolder
from vidseg_core.io.job import Job
from vidseg_core.io.run import run_job
from vidseg_core.io.video import open_clip
from vidseg_core.models.registry import data_folder

FRAMES = 26
"""Nine windows."""
MOMENTS = ("features-12", "between-12", "upsample-12")
"""Where the window of frame 12 is: in a worker, with the client between stages 1 and 4, in a worker."""


class LightJob(Job):
    """Loads the light pipeline."""

    def load(self, threads):
        """As `Job.load`."""
        return LightVidSeg(LightBackbone(), self.settings)


def job(folder, workers):
    return LightJob(open_clip(folder), LIGHT, workers=workers, threads=1)


def segment(clip, out, workers, resume=False):
    return run_job(job(clip, workers), UnfinishedFolder(out, False), resume, lambda *_: nullcontext(lambda *_: None))


def client(clip, out, address, said):
    """A run in a process of its own."""
    sys.stdout = sys.stderr = open(said, "w", buffering=1)  # noqa: SIM115
    held_between_stages()
    segment(clip, out, Workers(scheduler=address))


def held_between_stages(replace=setattr):
    """Have stage 3 say which window it does; the frame's number is in none of its arguments, so it counts."""
    count, refine = iter(range(0, FRAMES, LIGHT.window)), vidseg_core.pipeline.refine

    def refining(*arguments):
        moment(f"between-{next(count)}")
        return refine(*arguments)

    replace(vidseg_core.pipeline, "refine", refining)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for n, frame in enumerate(numbered_frames(FRAMES)):
        Image.fromarray(frame).save(folder / f"{n:03}.png")
    return folder


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """The folder where processes say where they are."""
    folder = tmp_path_factory.mktemp("moments")
    os.environ["MOMENTS"] = str(folder)  # the workers inherit it
    yield folder
    del os.environ["MOMENTS"]


@pytest.fixture(scope="module")
def address(moments):
    """A cluster of two processes."""
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "localhost:0"}
    with distributed.LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def forgotten(moments):
    """Of what was said before."""
    for path in moments.iterdir():
        path.unlink()
    return moments


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    """What one process makes of the clip."""
    out = tmp_path_factory.mktemp("whole") / "out"
    segment(clip, out, Workers())
    return result(out)


def result(out):
    """All that must be the same: masks, tables and the overlay to the byte, and the record but for the time it took."""
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    record.pop("seconds")
    files = [*sorted((out / "masks").iterdir()), *(out / name for name in ("frames.csv", "segments.csv", "overlay.mp4"))]
    return {path.name: path.read_bytes() for path in files}, record


def wait_for(folder, name):
    """The process that said it is there."""
    until = time.monotonic() + 120
    while not (there := list(folder.glob(f"{name}.*"))):
        assert time.monotonic() < until, f"nobody came to {name}"
        time.sleep(0.005)
    return int(there[0].suffix[1:])


def frames_kept(out):
    path = UnfinishedFolder(out, False).state
    return run.RunState.read(path).frames if path.exists() else 0


def test_a_scheduler_that_is_there_gives_the_same_bytes(clip, whole, address, tmp_path):
    segment(clip, tmp_path / "out", Workers(scheduler=address))
    assert result(tmp_path / "out") == whole


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_workers_gives_the_same_bytes(clip, whole, tmp_path, count):
    """Workers that are threads of this process."""
    how = {"n_workers": count, "threads_per_worker": 1, "processes": False, "dashboard_address": "localhost:0"}
    with distributed.LocalCluster(**how) as cluster:
        segment(clip, tmp_path / "out", Workers(scheduler=cluster.scheduler_address))
    assert result(tmp_path / "out") == whole


def test_the_executor_of_a_dask_client_will_do(clip, address):
    expected = [w.labels for w in LightVidSeg(LightBackbone(), LIGHT).stream(open_clip(clip))]
    with distributed.Client(address) as client, client.get_executor() as executor:
        found = [w.labels for w in LightVidSeg(LightBackbone(), LIGHT, executor=executor).stream(open_clip(clip))]
    assert [labels.tobytes() for labels in found] == [labels.tobytes() for labels in expected]


@pytest.mark.parametrize("where", MOMENTS)
def test_a_worker_is_killed(clip, whole, address, forgotten, tmp_path, monkeypatch, where):
    """In the middle of a stage; or with the features of a window done, and the rest of it to come."""
    held_between_stages(monkeypatch.setattr)
    (forgotten / f"hold-{where}").touch()
    killed = []

    def kill():
        here = wait_for(forgotten, where)
        killed.append(here if here != os.getpid() else wait_for(forgotten, "features-12"))
        os.kill(killed[0], signal.SIGKILL)
        (forgotten / f"hold-{where}").unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    segment(clip, tmp_path / "out", Workers(scheduler=address))
    killer.join()
    assert killed and killed[0] != os.getpid()
    assert result(tmp_path / "out") == whole
    if where != "between-12":
        assert len({path.suffix for path in forgotten.glob(f"{where}.*")}) == 2, "another process did it again"


@pytest.mark.parametrize("where", MOMENTS)
def test_the_client_is_killed(clip, whole, address, forgotten, tmp_path, where):
    out, said = tmp_path / "out", tmp_path / "said"
    (forgotten / f"hold-{where}").touch()
    process = FORKSERVER.Process(target=client, args=(clip, out, address, str(said)))
    process.start()
    try:
        wait_for(forgotten, where)
    finally:
        process.kill()
        process.join()
        (forgotten / f"hold-{where}").unlink()
    kept = frames_kept(out)
    assert kept <= 12 and not out.exists(), said.read_text()
    segment(clip, out, Workers(scheduler=address), resume=True)
    assert result(out) == whole and sorted(os.listdir(tmp_path)) == ["out", "said"]


def test_a_disk_that_is_full_ends_with_what_is_kept(clip, whole, address, tmp_path, monkeypatch):
    write, written = run.write_masks, []

    def full(*arguments):
        if len(written) == 4:  # the first was the rehearsal
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return write(*arguments)

    monkeypatch.setattr(run, "write_masks", full)
    with pytest.raises(OSError, match="No space left") as stop:
        segment(clip, tmp_path / "out", Workers(scheduler=address))
    assert stop.value.__notes__ == ["9 of 26 frames are done and kept: the same command with --resume continues"]
    monkeypatch.setattr(run, "write_masks", write)
    segment(clip, tmp_path / "out", Workers(), resume=True)
    assert result(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("words", "workers", "threads"),
    [
        ([], Workers(), None),
        (["--workers", "2"], Workers(2), 1),
        (["--scheduler", "tcp://here:1", "--threads", "3"], Workers(scheduler="tcp://here:1"), 3),
    ],
)
def test_the_command_says_who_computes(clip, tmp_path, monkeypatch, words, workers, threads):
    jobs = []
    monkeypatch.setattr(run, "run_job", lambda job, *_: jobs.append(job))
    assert main(["segment", str(clip), "--out", str(tmp_path / "out"), *words]) == 0
    assert jobs[0].workers == workers and jobs[0].threads == threads


@pytest.mark.slow
def test_the_embedded_model_over_two_processes(tmp_path):
    """The command's own cluster, a sample clip, three windows."""
    small = replace(Settings(), working_size=(96, 128), window=2)
    found = []
    for workers in (Workers(), Workers(2)):
        job = Job(open_clip(data_folder() / "clips" / "cup.mp4", 0, 6), small, workers=workers, threads=1)
        run_job(job, UnfinishedFolder(tmp_path / "out", True), False, lambda *_: nullcontext(lambda *_: None))
        found.append(result(tmp_path / "out"))
    assert found[0] == found[1] and len(found[0][0]) == 9
