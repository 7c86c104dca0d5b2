"""Evaluations: that a run that dies loses nothing, what the tables say, and what is refused."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import stubs
import torch
from PIL import Image
from processes import ended, started, wait_for

from vidseg_core import ContextSettings, InputError, Settings, generated_clip
from vidseg_core.cli import main
from vidseg_core.evaluation import clips
from vidseg_core.evaluation.baselines import Predicted
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.evaluate import Evaluation, digest_of
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.evaluation.metrics import mean_iou
from vidseg_core.evaluation.scoring import PROTOCOLS, Rules
from vidseg_core.evaluation.tally import Meter
from vidseg_core.models import weights
from vidseg_core.models.registry import TINY

SMALL = (48, 64)
QUICK = Settings(context=ContextSettings(num_clusters=6, restarts=1), working_size=SMALL, window=3)
TABLES = ("results.csv", "results.json", "results.md")


@pytest.fixture(scope="module", autouse=True)
def stub():
    """These tests are about files and tables: their method computes next to nothing."""
    with pytest.MonkeyPatch.context() as patch:
        stubs.install(patch.setattr)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three clips of 8, 7 and 6 frames: windows of 3, 3, 2 and so on. One frame has no labels."""
    root = tmp_path_factory.mktemp("set")
    for n, name in enumerate("abc"):
        clip = generated_clip(num_frames=8 - n, size=SMALL, seed=n)
        for part, arrays in (("frames", clip.frames), ("labels", clip.labels.astype(np.uint8))):
            (root / name / part).mkdir(parents=True)
            for i, array in enumerate(arrays):
                if (part, name, i) != ("labels", "a", 4):
                    Image.fromarray(array).save(root / name / part / f"{i:03}.png")
    (root / "settings.json").write_text(json.dumps(QUICK.to_dict()))
    return root


def run(root, out, method="stub", **how):
    return Evaluation(open_dataset("folder", root), str(root), method, settings=QUICK).run(out, threads=1, **how)


def tables(out):
    return [(out / name).read_bytes() for name in TABLES]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The tables of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("out") / "whole"
    run(root, out)
    return tables(out)


def start(root, out):
    """In a process of its own, slowed down."""
    command = ["evaluate", "--dataset", "folder", "--root", root, "--out", out, "--method", "stub", "--threads", 1]
    return started([*command, "--settings", root / "settings.json"], out.parent, pause=0.02)


def windows_done(out):
    return list(out.glob("windows/*/0*.npz"))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "out"


# ---- a run that dies


def test_killed_at_random_moments_it_gives_the_same_table(root, whole, out):
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for least in (1, 4):
        process = start(root, out)
        least += moments.randrange(2)
        wait_for(process, lambda least=least: len(windows_done(out)) >= least)
        process.join(0.04 * moments.random())
        process.kill()
        process.join()
        assert not (out / "results.csv").exists(), f"seed {seed}: it was through before it was killed"
    kept = {path: path.stat().st_mtime_ns for path in windows_done(out)}
    run(root, out)
    assert tables(out) == whole, f"seed {seed}"
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items()), "whole windows are not made again"
    assert not list(out.rglob("*.partial*")) and not list(out.rglob("state-*"))


def test_interrupted_it_says_so_and_goes_on(root, whole, out):
    process = start(root, out)
    wait_for(process, lambda: len(windows_done(out)) >= 2)
    os.kill(process.pid, signal.SIGINT)
    said = ended(process, out.parent, 130)
    assert "keeps every complete window" in said and "nothing was written" not in said and "Traceback" not in said
    run(root, out)
    assert tables(out) == whole


def test_a_full_disk_is_said_with_what_is_kept(root, whole, tmp_path, monkeypatch, capsys):
    write, out = clips.Store.write, tmp_path / "out"

    def full(self, start, *more):
        if start:
            raise OSError(28, "No space left on device")
        write(self, start, *more)

    monkeypatch.setattr(clips.Store, "write", full)
    options = ["--dataset", "folder", "--root", root, "--method", "stub", "--settings", root / "settings.json", "--threads", 1]
    assert main(["evaluate", *map(str, options), "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in said and "keeps every complete window: the same command resumes" in said
    monkeypatch.setattr(clips.Store, "write", write)
    run(root, out)
    assert tables(out) == whole


class Stop(BaseException):
    """What no handler of errors catches, as if the process were gone."""


def test_stopped_at_any_write_it_gives_the_same_table(root, whole, tmp_path, monkeypatch):
    """Every renaming of a finished file is a moment to die before: run.json, then a state and a window in turn, the scores of
    the first clip as the eighth."""
    rename = os.replace
    for moment in range(2, 14):
        left, out = moment, tmp_path / str(moment)

        def fail(*paths):
            nonlocal left
            left -= 1
            if not left:
                raise Stop
            rename(*paths)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(Stop):
            run(root, out)
        monkeypatch.setattr(os, "replace", rename)
        (out / "windows" / "a").mkdir(parents=True, exist_ok=True)
        (out / "windows" / "a" / ".000003.0123.partial.npz").write_bytes(b"half")  # what SIGKILL leaves behind
        kept = {path: path.stat().st_mtime_ns for path in out.glob("windows/*/0*.npz")}
        assert len(kept) == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5][moment - 1]
        run(root, out)
        assert tables(out) == whole
        assert all(path.stat().st_mtime_ns == at for path, at in kept.items()), "whole windows are not made again"
        assert not list(out.rglob("*.partial*")) and not list(out.rglob("state-*"))


def test_what_is_left_of_the_very_first_write_is_no_obstacle(root, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".run.0123abcd.partial.json").write_text("{")
    run(root, out)
    assert tables(out) == whole and not list(out.rglob("*.partial*"))


def test_states_of_windows_that_another_process_has_made_stay(tmp_path):
    store, maps = clips.Store(tmp_path, "a"), {"full": np.zeros((3, 2, 2), np.uint8)}
    for start in (0, 3, 0):  # the last by a process that is behind
        store.write(start, maps, {}, "{}")
    assert [path.name for path in sorted(store.folder.glob("state-*"))] == ["state-000000.npz", "state-000003.npz"]
    store.write(6, maps, {}, "{}")
    assert [path.name for path in store.folder.glob("state-*")] == ["state-000006.npz"]


def test_it_goes_on_behind_the_newest_window_that_has_a_state(root, whole, tmp_path, monkeypatch):
    """Of clip a with windows at 0, 3 and 6 the last state is gone: 6 is made again, not all of it."""
    out, write, clean = tmp_path / "out", clips.Store.write, clips.Store.clean
    monkeypatch.setattr(clips.Store, "clean", lambda *_: None)
    run(root, out)
    (out / "clips" / "a.json").unlink()
    (out / "windows" / "a" / "state-000006.npz").unlink()
    written = []
    monkeypatch.setattr(clips.Store, "clean", clean)
    monkeypatch.setattr(clips.Store, "write", lambda self, start, *more: (written.append(start), write(self, start, *more)))
    run(root, out)
    assert written == [6] and tables(out) == whole


def test_a_finished_evaluation_is_read_back(root, tmp_path, monkeypatch):
    run(root, tmp_path / "out")
    before, told = tables(tmp_path / "out"), []
    monkeypatch.setattr(clips, "run_clip", None)
    run(root, tmp_path / "out", tell=told.append)
    assert tables(tmp_path / "out") == before and told == [f"3 of 3 clips are in {tmp_path / 'out'} already"]


# ---- tables


def test_tables_are_what_the_tallies_say(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    rows = list(csv.DictReader((out / "results.csv").open()))
    expected = [(c, s) for c in ("a", "b", "c", "(all)") for s in ("coarse", "full")]
    assert [(r["clip"], r["stage"]) for r in rows] == expected
    dataset, total = open_dataset("folder", root), 0
    for clip in dataset.clips:
        meter, labels = Meter(3), [np.load(p)["full"] for p in sorted((out / "windows" / clip.name).glob("0*.npz"))]
        for n, frame in enumerate(np.concatenate(labels)):
            meter.add(frame, clip.truth(n), seam=n > 0 and n % 3 == 0)
        scores = meter.finish().scores()
        row = next(r for r in rows if r["clip"] == clip.name and r["stage"] == "full")
        assert all(row[k] == ("" if np.isnan(v) else str(round(v, 6))) for k, v in scores.items())
        total = total + meter.tally.counts
    data = json.loads((out / "results.json").read_text())
    assert data["stages"]["full"]["scores"]["mIoU"] == pytest.approx(mean_iou(total))
    assert set(data["stages"]["full"]["IoU"]) == {"class 0", "class 1", "class 2"}
    assert data["clips"]["a"]["labelled"] == 7 and data["run"]["settings"]["window"] == 3
    line = next(line for line in (out / "results.md").read_text().splitlines() if line.startswith("| full"))
    assert line.startswith(f"| full | {100 * mean_iou(total):.1f} |") and "±" in line


class MadeUp:
    """A method that says what it is told to, in windows of 3."""

    stages = ("full",)

    def __init__(self, labels):
        self.labels, self.given = labels, []

    def stream(self, frames, first_mask=None, start=0, state=None):
        self.given.append(first_mask)
        for n in range(start, len(self.labels), 3):
            yield Predicted(n, {"full": self.labels[n : n + 3]}, {"nothing": np.zeros(1)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_the_first_protocol_gives_the_truth_away(tmp_path, monkeypatch, protocol):
    labels = np.random.default_rng(0).integers(0, 8, (8, 12, 16))
    made, clip = MadeUp(labels), LabelledArrays("clip", np.zeros((8, 12, 16, 3), np.uint8), dict(enumerate(labels)))
    monkeypatch.setattr(clips, "_method", lambda *_: (made, {"weights": "abc"}))
    Evaluation(Dataset("made up", tuple("abcdefgh"), (clip,), protocol=protocol), settings=QUICK).run(tmp_path / "out")
    (given,) = made.given
    assert (given is None) == (protocol != "first")
    assert given is None or len(set(np.unique(given)) - {255}) == QUICK.context.num_clusters


def test_lines_and_results_say_what_was_never_found(tmp_path, monkeypatch):
    said, labels = [], np.random.default_rng(0).integers(0, 3, (8, 12, 16))
    truth = labels.copy()
    truth[0, 0, :2], truth[4] = 255, 1
    made, clip = (
        MadeUp(np.where(labels == 2, 0, labels)),
        LabelledArrays("clip", np.zeros((8, 12, 16, 3), np.uint8), dict(enumerate(truth))),
    )
    monkeypatch.setattr(clips, "_method", lambda *_: (made, {"weights": "abc"}))
    Evaluation(Dataset("made up", tuple("abcd"), (clip,)), settings=QUICK).run(tmp_path / "out", tell=said.append)
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert data["clips"]["clip"]["never found"] == ["c"], "class d is not in the truth either"
    assert len(said) == 1 and said[0].startswith("clip ") and "8 frames" in said[0] and "never found: c" in said[0]


def test_values_taken_for_void_are_reported(root, tmp_path):
    for part in ("frames", "labels"):
        (tmp_path / "set" / part).mkdir(parents=True)
        for path in sorted((root / "c" / part).iterdir())[:3]:
            array = np.array(Image.open(path))
            if part == "labels" and path.stem != "000":
                array[0, 0] = 77
            Image.fromarray(array).save(tmp_path / "set" / part / path.name)
    (tmp_path / "set" / "names.json").write_text('{"0": "rest", "1": "leaf", "2": "blossom"}')
    said = []
    run(tmp_path / "set", tmp_path / "out", tell=said.append)
    assert "values taken for void: 77 in 2 frames" in said[0]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["clips"]["set"]["strays"] == {"77": 2}


def test_restart_makes_every_window_a_clip(root, tmp_path):
    Evaluation(open_dataset("folder", root), method="stub", settings=QUICK, restart=True).run(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [r["clip"] for r in rows[::2]] == ["a@0", "a@3", "a@6", "b@0", "b@3", "b@6", "c@0", "c@3", "(all)"]
    assert "each window of 3 frames" in (tmp_path / "out" / "results.md").read_text()


# ---- refusals


def test_another_evaluation_is_not_gone_on_with(root, tmp_path, monkeypatch):
    out, dataset = tmp_path / "out", open_dataset("folder", root)
    run(root, out)
    other = dataclasses.replace(QUICK, context=dataclasses.replace(QUICK.context, neighbours=5))
    for match, how in (
        (r"context\.neighbours = 4, not 5: choose another --out", {"settings": other, "method": "stub"}),
        (r"method = \"stub\", not \"colour\"", {"settings": QUICK, "method": "colour"}),
        (r"protocol = \"first\", not \"matched\"", {"settings": QUICK, "method": "stub", "protocol": "matched"}),
        (r"restart = 0, not 3", {"settings": QUICK, "method": "stub", "restart": True}),
    ):
        with pytest.raises(InputError, match=match):
            Evaluation(dataset, str(root), **how).run(out)
    fewer = dataclasses.replace(dataset, clips=dataset.clips[:2])
    with pytest.raises(InputError, match=r"clips\.c = {\"frames\": 6, \"labels\": 6, \"files\": .*, not null"):
        Evaluation(fewer, str(root), "stub", settings=QUICK).run(out)
    (out / "clips" / "b.json").unlink()
    method = clips._method
    for key, other, match in (
        ("weights", "other weights", "other weights"), ("device", "cuda", 'device = "cpu", not "cuda"'),
        ("dtype", "float16", 'dtype = "float32", not "float16"'),
    ):  # fmt: skip
        monkeypatch.setattr(clips, "_method", lambda *args, new={key: other}: (method(*args)[0], method(*args)[1] | new))
        with pytest.raises(InputError, match=f"started with {match}: choose another --out"):
            run(root, out)


def test_a_finished_run_is_not_taken_for_one_with_new_weights(root, tmp_path, monkeypatch):
    out, method = tmp_path / "out", clips._method
    run(root, out)
    before = (out / "results.md").read_bytes()
    run(root, out)
    made = method("stub", "tiny", None, None, QUICK)[1]
    with monkeypatch.context() as patch:
        patch.setattr(clips, "_method", lambda *args: (None, made | {"weights": "other"}))
        with pytest.raises(InputError, match="started with other weights: choose another --out"):
            run(root, out)
        patch.setattr(clips, "_method", lambda *args: (None, made | {"weights": "other", "dtype": "float16"}))
        run(root, out)  # in another precision the numbers of the same weights are others
        patch.setattr(weights, "on_disk", lambda model: None)
        patch.setattr(clips, "_method", lambda *args: pytest.fail("a model was asked for that is not here"))
        run(root, out)
    assert (out / "results.md").read_bytes() == before


def test_with_other_threads_it_does_not_go_on(root, tmp_path, monkeypatch):
    """Neither behind clips that are finished nor within the first one."""
    out = tmp_path / "out"
    run(root, out)
    (out / "clips" / "b.json").unlink()
    dataset = open_dataset("folder", root)
    try:
        with pytest.raises(InputError, match="started with threads = 1, not 2: choose another --out"):
            Evaluation(dataset, str(root), "stub", settings=QUICK).run(out, threads=2)
        shutil.rmtree(out)
        monkeypatch.setattr(clips, "score", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            run(root, out)
        with pytest.raises(InputError, match="started with threads = 1, not 2: choose another --out"):
            Evaluation(dataset, str(root), "stub", settings=QUICK).run(out, threads=2)
    finally:
        torch.set_num_threads(1)


def test_the_precision_can_be_chosen_and_stays(root, tmp_path, capsys):
    words = ["evaluate", "--dataset", "folder", "--root", str(root), "--method", "stub", "--out", str(tmp_path / "out")]
    assert main([*words, "--clips", "a,b", "--dtype", "bfloat16"]) == 0
    made = {json.loads((tmp_path / "out" / "clips" / f"{name}.json").read_text())["made"]["dtype"] for name in "ab"}
    assert made == {"bfloat16"}
    (tmp_path / "out" / "clips" / "b.json").unlink()
    capsys.readouterr()
    assert main([*words, "--clips", "a,b"]) == 2
    assert "'bfloat16', not 'float32'" in capsys.readouterr().err.replace('"', "'")


def test_a_clip_that_another_kind_of_worker_began_is_not_gone_on_with(root, tmp_path):
    """A cluster may be of machines with and without a GPU, and no clip was finished when it was asked to begin."""
    clip, store = open_dataset("folder", root).clips[0], clips.Store(tmp_path, "a")
    plan = clips.Plan(tmp_path, Rules(3), "stub", "tiny", QUICK.resolve(TINY), threads=1)
    begun = {"weights": "0123456789abcdef", "device": "cuda", "dtype": "float16", "threads": 1}
    store.write(0, {"full": np.zeros((3, *SMALL), np.uint8)}, {}, json.dumps(begun))
    with pytest.raises(InputError, match='started with device = "cuda", not "cpu"; dtype = "float16", not "float32": choose'):
        clips.run_clip(plan, clip, store)


def test_with_files_that_have_changed_it_does_not_go_on(root, tmp_path):
    copy, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(root, copy)
    run(copy, out)
    for path in (copy / "b" / "labels" / "003.png", copy / "c" / "frames" / "002.png"):
        before = path.stat()
        Image.fromarray(np.flipud(Image.open(path))).save(path)
        with pytest.raises(InputError, match=rf"clips\.{path.parts[-3]}\.files = .*: choose another --out"):
            run(copy, out)
        shutil.copy2(root / path.relative_to(copy), path)
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    run(copy, out)
    path = copy / "a" / "frames" / "001.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    with pytest.raises(InputError, match=r"clips\.a\.files"):
        run(copy, out)
    changed = generated_clip(num_frames=3, size=SMALL)
    clips = [LabelledArrays("x", changed.frames, dict(enumerate(changed.labels + n))) for n in (0, 1)]
    assert digest_of(clips[0]) != digest_of(clips[1]) and digest_of(clips[0]) == digest_of(clips[0])


def test_a_bad_clip_does_not_end_the_others(root, tmp_path):
    bad = tmp_path / "set"
    for name in "ab":
        (bad / name).mkdir(parents=True)
        (bad / name / "frames").symlink_to(root / name / "frames")
        (bad / name / "labels").mkdir()
        for path in (root / name / "labels").iterdir():
            if (name, path.stem) != ("a", "000"):
                (bad / name / "labels" / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"1 of 2 clips.*frame 0 of a has no labels.*--protocol named"):
        run(bad, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["clip"], r["stage"]) for r in rows] == [
        ("b", "coarse"), ("b", "full"), ("a", "(failed)"), ("(all)", "coarse"), ("(all)", "full"),
    ]  # fmt: skip
    assert rows[0]["mIoU"] == rows[3]["mIoU"] and not rows[2]["mIoU"]
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(data["clips"]) == ["b"] and "frame 0 of a has no labels" in data["failed"]["a"]
    written = (tmp_path / "out" / "results.md").read_text()
    assert "1 of 2 clips" in written and "not in the table: a. frame 0 of a has no labels" in written
    options = ["--dataset", "folder", "--root", bad, "--method", "stub", "--settings", root / "settings.json", "--threads", 1]
    assert main(["evaluate", *map(str, options), "--out", str(tmp_path / "out")]) == 2
    shutil.copy(root / "a" / "labels" / "000.png", bad / "a" / "labels")
    run(bad, tmp_path / "fresh")
    assert json.loads((tmp_path / "fresh" / "results.json").read_text())["failed"] == {}


def test_a_folder_that_cannot_be_made_is_said(root, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    for out in ("file", "file/below", "file/far/below"):
        said = main(["evaluate", "--dataset", "folder", "--root", str(root), "--method", "stub", "--out", str(tmp_path / out)])
        text = capsys.readouterr().err
        assert said == 2 and str(tmp_path / out) in text and "choose another --out" in text and text.count("\n") == 1
    assert (tmp_path / "file").read_text() == "precious"


def test_options_that_cannot_be(root, tmp_path, capsys):
    def refused(*options):
        assert main(["evaluate", "--out", str(tmp_path / "out"), *map(str, options)]) == 2
        return capsys.readouterr().err

    assert "where is camvid?" in refused("--dataset", "camvid")
    assert "no clip 'z'; there are a, b, c" in refused("--dataset", "folder", "--root", root, "--clips", "a,z")
    assert "no method 'sam'" in refused("--dataset", "folder", "--root", root, "--method", "sam")
    assert "no model 'sam'" in refused("--dataset", "folder", "--root", root, "--model", "sam")
    assert "give one of them" in refused("--dataset", "generated", "--settings", "x", "--reference")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert "is not empty and holds no evaluation" in refused("--dataset", "folder", "--root", root)


@pytest.mark.parametrize(("values", "names"), [((0, 255), None), ((0, 255), '{"0": "rest", "1": "cup"}'), ((3, 3), None)])
def test_one_class_alone_is_told(tmp_path, out, capsys, values, names):
    """A white object is void, and what is left is right everywhere: 100.0."""
    for n, frame in enumerate(generated_clip(num_frames=3, size=SMALL).frames):
        mask = np.full(SMALL, values[0], np.uint8)
        mask[10:30, 10:30] = values[1]
        for part, array in (("frames", frame), ("labels", mask)):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "set" / part / f"{n}.png")
    if names:
        (tmp_path / "set" / "names.json").write_text(names)
    command = ["evaluate", "--dataset", "folder", "--root", str(tmp_path / "set"), "--out", str(out), "--method", "stub"]
    assert main([*command, "--threads", "1"]) == 0
    told = f"The labels show one class, {'rest' if names else f'class {values[0]}'}"
    said = capsys.readouterr().out
    assert told in said and "255 is void" in said and told in (out / "results.md").read_text(encoding="utf-8")


def test_links_to_folders_of_one_name_are_two_clips(tmp_path, root, out):
    """A set put together of links to the same folder of several recordings."""
    (tmp_path / "set").mkdir()
    for name in "ab":
        (tmp_path / name).mkdir()
        shutil.copytree(root / name, tmp_path / name / "take")
        (tmp_path / "set" / name).symlink_to(tmp_path / name / "take")
    assert "folder, 2 clips, 14 labelled frames" in run(tmp_path / "set", out)
    with (out / "results.csv").open(encoding="utf-8") as file:
        assert {row["clip"] for row in csv.DictReader(file)} == {"a", "b", "(all)"}
    assert "folder, 1 clip, 7 labelled frames" in run(tmp_path / "set" / "a", out.with_name("one"))


def test_several_classes_are_no_news(whole):
    assert b"one class" not in whole[2]
