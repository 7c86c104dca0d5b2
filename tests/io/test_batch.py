"""Many clips in one command: a folder each, a table, what fails alone and what ends all, and going on."""

import csv
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
import stubs
from distributed.scheduler import KilledWorker
from PIL import Image
from processes import ended, started, wait_for

from vidseg_core import InputError, Settings, generated_clip
from vidseg_core.cli import main
from vidseg_core.io import clip_task, run
from vidseg_core.io.batch import Batch, result_folders
from vidseg_core.io.clip_list import Entry, named_entries
from vidseg_core.io.clip_task import Plan
from vidseg_core.io.locks import sole_writer
from vidseg_core.io.masks import write_mask
from vidseg_core.io.overlay import encode_video
from vidseg_core.io.progress import ClipProgress

SIZE = (48, 64)
QUICK = ("--size", "64x64", "--clusters", "5", "--window", "3", "--threads", "1")
FRAMES = {"a": 6, "b": 9, "images": 3}


class Stop(BaseException):
    """What no handler of errors catches."""


@pytest.fixture(autouse=True)
def stub(request, monkeypatch):
    if "real" not in request.node.name:
        stubs.install(monkeypatch.setattr)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos, a folder of images, and between them a video that is cut off."""
    folder = tmp_path_factory.mktemp("batch") / "clips"
    (folder / "images").mkdir(parents=True)
    frames = generated_clip(num_frames=18, size=SIZE).frames
    encode_video(frames[:6], 10, folder / "a.mp4")
    encode_video(frames[6:15], 10, folder / "b.mp4")
    for n, frame in enumerate(frames[15:]):
        Image.fromarray(frame).save(folder / "images" / f"{n}.png")
    content = (folder / "b.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(content[: len(content) // 2])
    return folder


def segment(clips, out, *more):
    return main(["segment", str(clips), "--out", str(out), *QUICK, *map(str, more)])


def table(out):
    with (out / "index.csv").open(encoding="utf-8", newline="") as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def contents(out):
    """All that must be the same, whoever computes: everything but times, and videos, whose encoder is free in its choices."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "run.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.name == "index.csv":
            found[name] = {folder: {**row, "seconds": ""} for folder, row in table(out).items()}
        elif path.is_file() and path.suffix != ".mp4":
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """What a command leaves that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        stubs.install(patch.setattr)
        assert segment(clips, out) == 1
    return contents(out)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "out"


def plan(**changes):
    settings = Settings(window=3, working_size=(64, 64))
    return Plan((settings, settings), threads=1, words={"frames": "0:", "stride": 1}, **changes)


# ---- what there is in the end


def test_a_folder_a_clip_and_a_table_of_all(clips, out, capsys):
    assert segment(clips, out) == 1
    assert sorted(os.listdir(out)) == ["a", "b", "images", "index.csv", "index.png"]
    rows = table(out)
    assert list(rows) == ["a", "b", "broken", "images"], "in natural order"
    for name, frames in FRAMES.items():
        row = rows[name]
        assert (row["frames"], row["size"], row["segments"], row["status"]) == (str(frames), "64x48", "5", "done")
        assert float(row["seconds"]) > 0 and os.path.isabs(row["clip"]) and not row["error"]
        assert len(os.listdir(out / name / "masks")) == frames
    assert rows["broken"]["status"] == "failed" and "cut off" in rows["broken"]["error"] and not rows["broken"]["frames"]
    assert Image.open(out / "index.png").size == (2 * 320, 2 * 258)
    said = capsys.readouterr()
    assert said.out == f"3 of 4 clips are in {out}: look at index.png, read index.csv\n"
    assert said.err.splitlines()[-1] == f"vidseg: broken failed. {rows['broken']['error']}"
    assert [line.split(" clips")[0] for line in said.err.splitlines()[:4]] == [f"{n} of 4" for n in (1, 2, 3, 4)]


def test_each_result_is_that_of_the_clip_alone(clips, out, whole, tmp_path):
    for name, source in {"a": clips / "a.mp4", "images": clips / "images"}.items():
        assert segment(source, tmp_path / name) == 0
        alone = contents(tmp_path / name)
        assert alone == {path: whole[f"{name}/{path}"] for path in alone}


def test_two_words_are_two_clips_and_need_a_folder(clips, out, capsys, monkeypatch):
    monkeypatch.chdir(clips.parent)
    words = ["clips/a.mp4", "clips/images"]
    assert main(["segment", *words, *QUICK]) == 2 and "2 clips need a folder" in capsys.readouterr().err
    assert main(["segment", "--out", str(out), *QUICK, *words]) == 0
    assert list(table(out)) == ["a", "images"]
    assert json.loads((out / "a" / "run.json").read_text())["input"]["clip"] == "clips/a.mp4", "as it was said"


def test_masks_and_names_come_from_the_list(clips, out, tmp_path, capsys):
    write_mask(tmp_path / "mask.png", np.arange(64)[None].repeat(48, 0) // 32)
    (tmp_path / "sides.txt").write_text("left\nright")
    (tmp_path / "all.txt").write_text("one\ntwo\nthree\nfour\nfive")
    rows = ["clip,first_mask,names", f"{clips / 'a.mp4'},mask.png,sides.txt", f"{clips / 'b.mp4'}", f"{clips / 'broken.mp4'}"]
    (tmp_path / "list.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    words = ["segment", "--list", str(tmp_path / "list.csv"), "--out", str(out), *QUICK]
    assert main([*words, "--names", str(tmp_path / "all.txt")]) == 1
    names = {name: json.loads((out / name / "run.json").read_text())["names"] for name in "ab"}
    assert list(names["a"].values()) == ["left", "right"] and names["b"]["0"] == "one" and len(names["b"]) == 5
    assert "list.csv, line 4: " in table(out)["broken"]["error"]
    capsys.readouterr()
    assert main([*words, "--first-mask", str(tmp_path / "mask.png")]) == 2 and "--list" in capsys.readouterr().err


# ---- names of folders


def folders(*clips, known=()):
    return result_folders([Entry(clip) for clip in clips], {os.path.abspath(clip): name for clip, name in dict(known).items()})


def test_names_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders("x/a.mp4", "x/b.mp4", "x/c") == ["a", "b", "c"]
    for pair in (("x/a.mp4", "y/a.mp4"), ("a.mp4", "a.mov"), ("a.mp4", "A.mp4"), ("caf\u00e9.mp4", "cafe\u0301.mp4")):
        first, second = folders(*pair)
        assert first[:-9].lower() != first.lower() != second.lower() and len({first[-8:], second[-8:]}) == 2
    assert folders("index.csv.mp4", "INDEX.png")[0] != "index.csv" and folders("INDEX.png.mp4") != ["INDEX.png"]


def test_a_clip_keeps_its_name_when_others_come(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = folders("x/a.mp4", "y/a.mp4")
    assert folders("y/a.mp4", "x/a.mp4", known={"x/a.mp4": "a"}) == [own[1], "a"]
    assert folders("y/a.mp4", known={"x/a.mp4": own[0], "y/a.mp4": own[1]}) == [own[1]]
    assert folders("x/a.mp4", known={"x/a.mp4": "../../elsewhere"}) == [own[0]], "a table is no order to write anywhere"


# ---- what fails alone, and what ends all


def failing(monkeypatch, error, clip="b.mp4"):
    segmented = run._segment

    def segment_or_fail(job, *arguments):
        if job.clip.source.name == clip:
            raise error
        return segmented(job, *arguments)

    monkeypatch.setattr(run, "_segment", segment_or_fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("wrong"), "wrong"),
        (PermissionError(errno.EACCES, "Permission denied", "b.mp4"), "Permission denied"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero (a fault of the program; segment this clip alone"),
    ],
)
def test_one_bad_clip_does_not_end_the_others(clips, out, monkeypatch, error, said):
    failing(monkeypatch, error)
    assert segment(clips, out) == 1
    assert {name: row["status"] for name, row in table(out).items()} == {
        "a": "done", "b": "failed", "broken": "failed", "images": "done"
    }  # fmt: skip
    assert said in table(out)["b"]["error"]


def test_a_full_disk_ends_all_and_says_what_is_kept(clips, out, whole, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, OSError(errno.ENOSPC, "No space left on device"))
        assert segment(clips, out) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left" in said and f"1 of 4 clips are finished in {out}" in said and said.endswith("--resume goes on)")
    assert [row["status"] for row in table(out).values()] == ["done", "open", "open", "open"]
    assert segment(clips, out, "--resume") == 1 and contents(out) == whole


def test_a_model_that_cannot_be_had_is_said_once_and_leaves_nothing(clips, out, capsys, monkeypatch):
    def refuse(*_):
        raise InputError("no device 'abacus'")

    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", refuse)
    assert segment(clips, out) == 2
    assert capsys.readouterr().err == "vidseg: no device 'abacus'\n" and not any(out.iterdir())


def test_an_interrupt_that_python_wraps_is_an_interrupt(clips, out, capsys, monkeypatch):
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = KeyboardInterrupt()
    failing(monkeypatch, error)
    assert segment(clips, out) == 130
    assert f"1 of 4 clips are finished in {out}" in capsys.readouterr().err


def test_a_result_that_is_damaged_is_a_clip_that_failed(clips, out):
    assert segment(clips, out) == 1
    (out / "a" / "segments.csv").unlink()
    assert segment(clips, out, "--resume") == 1
    assert table(out)["a"]["status"] == "failed" and "--overwrite" in table(out)["a"]["error"]


# ---- going on


@pytest.fixture
def stopped(clips, out, monkeypatch):
    """A command that was stopped in the second window of the second clip, with one of four finished."""
    write = run.write_masks

    def stop(masks, start, labels):
        write(masks, start, labels)
        if start and masks.folder.parent.name == ".b.unfinished":
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_masks", stop)
        with pytest.raises(Stop):
            segment(clips, out)
    assert [row["status"] for row in table(out).values()] == ["done", "open", "open", "open"]
    return out


def test_resume_makes_what_is_missing(clips, stopped, whole, capsys, monkeypatch):
    kept = {path: path.stat().st_mtime_ns for path in (stopped / "a").rglob("*")}
    begun, stream = [], stubs.StubVidSeg.stream
    monkeypatch.setattr(stubs.StubVidSeg, "stream", lambda self, *args: begun.append(args[0].indices[0]) or stream(self, *args))
    assert segment(clips, stopped, "--resume") == 1
    assert begun == [3, 0], "the second goes on, the last begins"
    assert contents(stopped) == whole and kept == {path: path.stat().st_mtime_ns for path in (stopped / "a").rglob("*")}
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0].endswith("a, 6 frames, 5 segments, there already") and said[1] == "b: 3 frames are done: continuing from there"
    )


def test_finished_clips_are_skipped_unseen(clips, out, whole, monkeypatch):
    assert segment(clips, out) == 1
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*")}
    opened, opening = [], clip_task.open_clip
    monkeypatch.setattr(clip_task, "open_clip", lambda path, *taken: opened.append(path) or opening(path, *taken))
    assert segment(clips, out, "--resume") == 1
    assert opened == [str(clips / "broken.mp4")], "the one that failed is tried again"
    assert kept == {path: path.stat().st_mtime_ns for path in out.glob("*/**/*")}
    assert contents(out) == whole


OTHERWISE = {
    "settings.context.num_clusters = 5, not 4": ("--clusters", 4),
    'model = "tiny", not "sd15"': ("--model", "sd15"),
    'frames = "0:", not "0:2"': ("--frames", "0:2"),
    "stride = 1, not 2": ("--stride", 2),
}


@pytest.mark.parametrize("words", OTHERWISE)
def test_other_settings_do_not_go_on_but_replace(clips, out, capsys, words):
    more = OTHERWISE[words]
    assert segment(clips / "*.mp4", out) == 1
    before = contents(out)
    capsys.readouterr()
    assert segment(clips / "*.mp4", out, "--resume", *more) == 2, "before any work"
    assert f"{out / 'a'} was made with {words}" in capsys.readouterr().err
    assert contents(out) == before
    assert segment(clips / "*.mp4", out, *more) == 2 and "holds the results of 3 clips" in capsys.readouterr().err
    assert segment(clips / "*.mp4", out, "--overwrite", *more) == 1
    assert all(table(out)[name]["status"] == "done" for name in "ab")


def test_the_same_frames_in_other_words_go_on(clips, out):
    both = (clips / "a.mp4", clips / "images", "--out", out, *QUICK)
    assert main(["segment", *map(str, both)]) == 0
    before = contents(out)
    assert main(["segment", *map(str, both), "--frames", "0:99", "--resume"]) == 0
    assert contents(out) == before


def test_an_unfinished_clip_of_other_settings_is_not_gone_on_with(clips, stopped, capsys):
    shutil.rmtree(stopped / "a")
    state = stopped / ".b.unfinished" / ".state.npz"
    before = state.read_bytes()
    assert segment(clips, stopped, "--resume", "--clusters", 4) == 2
    assert "b was made with settings.context.num_clusters = 5, not 4" in capsys.readouterr().err
    assert state.read_bytes() == before


def test_from_elsewhere_and_with_more_clips_it_goes_on(clips, out, tmp_path, monkeypatch):
    monkeypatch.chdir(clips)
    assert main(["segment", "a.mp4", "images", "--out", str(out), *QUICK]) == 0
    monkeypatch.chdir(tmp_path)
    (other := tmp_path / "other").mkdir()
    shutil.copy(clips / "b.mp4", other / "a.mp4")
    kept = (out / "a" / "run.json").stat().st_mtime_ns
    assert main(["segment", str(clips / "a.mp4"), str(other / "a.mp4"), "--out", str(out), "--resume", *QUICK]) == 0
    rows = table(out)
    assert kept == (out / "a" / "run.json").stat().st_mtime_ns and len(rows) == 3
    assert [row["status"] for row in rows.values()] == ["done"] * 3, "those of before stay in the table"
    assert {row["frames"] for row in rows.values()} == {"6", "9", "3"}


def test_killed_at_three_random_moments(clips, out, whole):
    seed = random.randrange(10**6)
    for third, moment in enumerate(random.Random(seed).random() for _ in range(3)):
        again = out.parent / f"{third}" / "out"
        again.parent.mkdir()
        process = started(["segment", clips, "--out", again, *QUICK], again.parent, pause=0.01)
        masks = int((third + moment) / 3 * 18)
        wait_for(process, lambda again=again, masks=masks: len(list(again.glob("*/masks/[0-9]*"))) >= masks)
        process.kill()
        process.join()
        assert segment(clips, again, "--resume") == 1, f"seed {seed}"
        assert contents(again) == whole, f"seed {seed}"


def test_ctrl_c_says_how_to_go_on(clips, out, whole):
    process = started(["segment", clips, "--out", out, *QUICK], out.parent, pause=0.02)
    wait_for(process, (out / ".b.unfinished" / ".state.npz").exists)
    os.kill(process.pid, signal.SIGINT)
    said = ended(process, out.parent, 130).strip().splitlines()[-1]
    kept = "and whole windows of others are kept: the same command with --resume goes on"
    assert said == f"vidseg: stopped; 1 of 4 clips are finished in {out}, {kept}"
    assert segment(clips, out, "--resume") == 1 and contents(out) == whole


def test_two_processes_do_not_write_one_folder(clips, out, capsys):
    pytest.importorskip("fcntl")
    with sole_writer(out):
        assert segment(clips, out) == 2
    assert "Another process is writing" in capsys.readouterr().err


@pytest.mark.parametrize("patience", [30, 0])
def test_a_worker_that_outlives_its_command_is_waited_for(clips, out, monkeypatch, patience):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(clip_task, "PATIENCE", patience)
    batch, worker = Batch(plan(), [Entry(str(clips / "a.mp4"))], out), ExitStack()
    worker.enter_context(sole_writer(out / ".a.unfinished"))
    monkeypatch.setattr(time, "sleep", lambda seconds: worker.close())
    failed = dict(batch.run(nullcontext))
    assert (not failed) if patience else ("Another process is writing" in failed["a"])
    worker.close()


# ---- workers


def test_an_executor_gives_the_same(clips, out, whole, capsys):
    """One thread, as the stubs' remarks and torch's threads belong to the process."""
    done = Batch(plan(), named_entries([str(clips)]), out).run(lambda: ThreadPoolExecutor(1))
    assert [name for name, _ in done] == ["broken"]
    here = Batch(plan(), named_entries([str(clips)]), out.with_name("serial"))
    here.run(nullcontext)
    assert contents(out) == contents(out.with_name("serial"))


def test_a_task_that_is_made_again_goes_on(clips, out, monkeypatch):
    """As when its worker died."""
    batch = Batch(plan(), [Entry(str(clips / "a.mp4"))], out)

    def die(*_):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run, "_write_rest", die)
        clip_task.segment_clip(batch.plan, batch.tasks[0])
    windows = []
    monkeypatch.setattr(stubs.StubVidSeg, "stream", lambda *_: windows.append(1))
    assert clip_task.segment_clip(batch.plan, batch.tasks[0]).remarks == ("6 frames are done: continuing from there",)
    assert not windows and len(os.listdir(out / "a" / "masks")) == 6


def test_a_worker_may_be_at_work_elsewhere(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(clips.parent)
    write_mask(clips.parent / "mask.png", np.arange(64)[None].repeat(48, 0) // 32)
    (clips.parent / "sides.txt").write_text("left\nright")
    batch = Batch(plan(), [Entry("clips/a.mp4", "mask.png", "sides.txt"), Entry("clips/images")], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert batch.run(nullcontext) == []
    given = json.loads((tmp_path / "out" / "a" / "run.json").read_text())["input"]
    assert given["clip"] == "clips/a.mp4" and given["first_mask"] == "mask.png" and given["names"] == "sides.txt"


def test_a_clip_whose_workers_keep_dying_fails_alone(clips, out):
    class Deadly(Executor):
        def submit(self, function, plan, task):
            future = Future()
            fatal = task.folder.name == "b"
            future.set_exception(KilledWorker("b", None, 3)) if fatal else future.set_result(function(plan, task))
            return future

    failed = dict(Batch(plan(), named_entries([str(clips)]), out).run(Deadly))
    assert set(failed) == {"b", "broken"} and "killed again and again" in failed["b"]
    assert (out / "images" / "run.json").exists()


def test_a_process_loads_the_model_once(clips, out, monkeypatch):
    loads = []

    def load(*how):
        loads.append(how)
        return stubs.StubBackbone(*how)

    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", load)
    assert segment(clips, out) == 1
    assert len(loads) == 1


def test_the_threads_of_one_clip_are_not_those_of_the_next(clips, stopped):
    import torch

    path = stopped / ".b.unfinished" / ".state.npz"
    state = run.RunState.read(path)
    run.RunState(state.frames, {**state.record, "threads": 2}, state.seconds, state.scene).write(path)
    words = [word for word in QUICK if word not in ("--threads", "1")]
    assert main(["segment", str(clips), "--out", str(stopped), *words, "--resume"]) == 1
    threads = {name: json.loads((stopped / name / "run.json").read_text())["threads"] for name in FRAMES}
    assert threads == {"a": 1, "b": 2, "images": 1} and torch.get_num_threads() == 1


@pytest.mark.slow
def test_two_real_workers_give_the_bytes_of_one_process(tmp_path, capsys):
    for n in range(2):
        encode_video(generated_clip(num_frames=4, size=SIZE, seed=n).frames, 10, tmp_path / f"clip{n}.mp4")
    (tmp_path / "clip2.mp4").write_bytes((tmp_path / "clip0.mp4").read_bytes()[:900])
    words = ["segment", str(tmp_path / "*.mp4"), "--size", "64x64", "--clusters", "5", "--window", "2", "--threads", "1"]
    assert main([*words, "--out", str(tmp_path / "serial")]) == 1
    assert main([*words, "--out", str(tmp_path / "workers"), "--workers", "2"]) == 1
    assert contents(tmp_path / "workers") == contents(tmp_path / "serial")
    assert "vidseg: clip2 failed. " in capsys.readouterr().err


# ---- how far it is


def test_time_left_is_guessed_from_clips_that_took_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    with ClipProgress(10) as shown:
        for name, seconds in (("skipped", 0), ("first", 30), ("second", 30)):
            now[0] += seconds
            shown.clip(name, bool(seconds))
    assert said.getvalue().splitlines() == [
        "1 of 10 clips: skipped", "2 of 10 clips, 04:00 left: first", "3 of 10 clips, 03:30 left: second"
    ]  # fmt: skip


def test_a_terminal_has_a_bar_that_moves_within_a_clip(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    with ClipProgress(2) as shown:
        with shown.part(4, 1) as tick:
            tick("features", 3)
            assert shown.bar.n == pytest.approx(0.25)
            tick("upsample", 2)
            assert shown.bar.n == pytest.approx(0.75)
        shown.tell("a: a remark")
        shown.clip("a, 4 frames", True)
        assert shown.bar.n == 1
    assert "a: a remark\n" in screen.getvalue() and "1 of 2 clips  50% |" in screen.getvalue()
