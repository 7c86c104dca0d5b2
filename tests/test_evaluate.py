"""Evaluations: the protocols on labels made up, the tables by hand, and that a run that dies loses nothing."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from families import small
from PIL import Image
from safetensors.torch import load_file, save_file

from vidseg_core import ContextSettings, InputError, Settings, VidSeg, generated_clip, load_backbone
from vidseg_core.cli import main
from vidseg_core.evaluation import scoring
from vidseg_core.evaluation.baselines import Predicted
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.evaluate import Evaluation, digest_of
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.evaluation.metrics import confusion, mean_iou, stable_pixels
from vidseg_core.evaluation.report import clip_scores, spread, total_scores
from vidseg_core.evaluation.tally import Meter, Tally
from vidseg_core.evaluation.workers import pick_device
from vidseg_core.io.masks import write_mask
from vidseg_core.io.provenance import fingerprint, fingerprint_parts
from vidseg_core.models import weights
from vidseg_core.models.registry import data_folder

SMALL = (96, 128)
QUICK = Settings(context=ContextSettings(num_clusters=6, restarts=1), working_size=SMALL, window=3)
TABLES = ("results.csv", "results.json", "results.md")


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


def run(root, out, method="vidseg", **how):
    return Evaluation(open_dataset("folder", root), str(root), method, settings=QUICK).run(out, threads=1, **how)


def tables(out):
    return [(out / name).read_bytes() for name in TABLES]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The tables of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("out") / "whole"
    run(root, out)
    return tables(out)


def start(root, out, *more):
    command = [sys.executable, "-m", "vidseg_core", "evaluate", "--dataset", "folder", "--root", root, "--out", out,
               "--settings", root / "settings.json", "--threads", 1, *more]  # fmt: skip
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_windows(process, out, count):
    until = time.monotonic() + 60
    while len(list(out.glob("windows/*/0*.npz"))) < count and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


# ---- a run that dies


@pytest.mark.slow
def test_killed_at_random_moments_it_gives_the_same_table(root, whole, tmp_path):
    seed = random.randrange(10**6)
    moments, out = random.Random(seed), tmp_path / "out"
    for least in (1, 4):
        process = start(root, out)
        wait_for_windows(process, out, least + moments.randrange(2))
        time.sleep(moments.random() * 0.5)
        process.kill()
        process.communicate()
        assert not (out / "results.csv").exists(), f"seed {seed}: it was through before it was killed"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("windows/*/0*.npz")}
    run(root, out)
    assert tables(out)[0] == whole[0] and tables(out)[2] == whole[2] and tables(out)[1] == whole[1], f"seed {seed}"
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items()), "whole windows are not made again"
    assert not list(out.rglob("*.partial*")) and not list(out.rglob("state-*"))


def test_interrupted_it_says_so_and_goes_on(root, whole, tmp_path):
    out = tmp_path / "out"
    process = start(root, out)
    wait_for_windows(process, out, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "keeps every whole window" in errors and "nothing was written" not in errors
    run(root, out)
    assert tables(out) == whole


class Stop(BaseException):
    """What no handler of errors catches, as if the process were gone."""


@pytest.mark.parametrize(
    ("method", "moments"), [("bilinear", (3, 6)), ("kmeans", (2, 3, 4, 5, 8, 13)), ("propagation", (5, 8)), ("vidseg", (8,))]
)
def test_stopped_at_any_write_it_gives_the_same_table(method, moments, root, whole, tmp_path, monkeypatch):
    """Every renaming of a finished file is a moment to die before: run.json, then a state and a window in turn, the scores of
    the first clip as the eighth."""
    if method != "vidseg":
        run(root, tmp_path / "whole", method)
        whole = tables(tmp_path / "whole")
    rename = os.replace
    for moment in moments:
        left, out = moment, tmp_path / str(moment)

        def fail(*paths):
            nonlocal left
            left -= 1
            if not left:
                raise Stop
            rename(*paths)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(Stop):
            run(root, out, method)
        monkeypatch.setattr(os, "replace", rename)
        (out / "windows" / "a").mkdir(parents=True, exist_ok=True)
        (out / "windows" / "a" / ".000003.0123.partial.npz").write_bytes(b"half")  # what SIGKILL leaves behind
        kept = {path: path.stat().st_mtime_ns for path in out.glob("windows/*/0*.npz")}
        assert len(kept) == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5][moment - 1]
        run(root, out, method)
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
    store, maps = scoring.Store(tmp_path, "a"), {"full": np.zeros((3, 2, 2), np.uint8)}
    for start in (0, 3, 0):  # the last by a process that is behind
        store.write(start, maps, {}, "{}")
    assert [path.name for path in sorted(store.folder.glob("state-*"))] == ["state-000000.npz", "state-000003.npz"]
    store.write(6, maps, {}, "{}")
    assert [path.name for path in store.folder.glob("state-*")] == ["state-000006.npz"]


def test_it_goes_on_behind_the_newest_window_that_has_a_state(root, tmp_path, monkeypatch):
    """Of clip a with windows at 0, 3 and 6 the last state is gone: 6 is made again, not all of it."""
    out, write, clean = tmp_path / "out", scoring.Store.write, scoring.Store.clean
    run(root, tmp_path / "whole", "bilinear")
    monkeypatch.setattr(scoring.Store, "clean", lambda *_: None)
    run(root, out, "bilinear")
    (out / "clips" / "a.json").unlink()
    (out / "windows" / "a" / "state-000006.npz").unlink()
    written = []
    monkeypatch.setattr(scoring.Store, "clean", clean)
    monkeypatch.setattr(scoring.Store, "write", lambda self, start, *more: (written.append(start), write(self, start, *more)))
    run(root, out, "bilinear")
    assert written == [6] and tables(out) == tables(tmp_path / "whole")


def test_a_finished_evaluation_is_read_back(root, tmp_path, monkeypatch):
    run(root, tmp_path / "out", "kmeans")
    before, told = tables(tmp_path / "out"), []
    monkeypatch.setattr(scoring, "run_clip", None)
    run(root, tmp_path / "out", "kmeans", tell=told.append)
    assert tables(tmp_path / "out") == before and told == [f"3 of 3 clips are in {tmp_path / 'out'} already"]


# ---- spread over workers


@pytest.mark.slow
def test_two_dask_workers_give_the_table_of_one_process(root, whole, tmp_path, capsys):
    pytest.importorskip("distributed")
    out = tmp_path / "out"
    options = ["--dataset", "folder", "--root", root, "--settings", root / "settings.json", "--out", out, "--workers", 2]
    assert main(["evaluate", *map(str, options)]) == 0
    assert tables(out) == whole
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines[:3]) == ["a", "b", "c"] and "| full |" in "".join(lines)


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_is_replaced(root, whole, tmp_path):
    """On a cluster that is there; its worker dies in the middle of a clip."""
    distributed = pytest.importorskip("distributed")
    import threading

    out = tmp_path / "out"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            (pid,) = client.run(os.getpid).values()

        def kill():
            while not list(out.glob("windows/*/0*.npz")):
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        run(root, out, scheduler=cluster.scheduler_address)
        killer.join(5)
        with distributed.Client(cluster) as client:
            assert set(client.run(os.getpid).values()) != {pid}, "it was killed"
    assert tables(out) == whole


@pytest.mark.slow
def test_without_dask_there_are_processes(root, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    run(root, tmp_path / "out", workers=2)
    assert tables(tmp_path / "out") == whole
    with pytest.raises(InputError, match=r"--scheduler needs Dask: pip install"):
        run(root, tmp_path / "other", scheduler="tcp://127.0.0.1:1")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a process does not learn that its parent is gone")
def test_a_worker_ends_with_the_process_that_it_works_for(tmp_path):
    script = "import os, time; from vidseg_core.evaluation.workers import own_pool; "
    script += "pool = own_pool(1); pool.submit(time.sleep, 60); "
    script += "print(next(iter(pool._processes)), flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    while worker.num_threads() < 2 and worker.cpu_times().user < 30:  # it is starting
        time.sleep(0.05)
    time.sleep(2)
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


# ---- protocols, on labels made up


class MadeUp:
    """A method that says what it is told to, in windows of 3."""

    stages = ("full",)

    def __init__(self, labels):
        self.labels, self.given = labels, []

    def stream(self, frames, first_mask=None, start=0, state=None):
        self.given.append(first_mask)
        for n in range(start, len(self.labels), 3):
            yield Predicted(n, {"full": self.labels[n : n + 3]}, {"nothing": np.zeros(1)})


def score(monkeypatch, tmp_path, truth, labels, protocol, classes=3, tell=lambda line: None, **clip):
    """The result of a made-up method on one clip of made-up labels (a dict of frames that have some)."""
    truth = truth if isinstance(truth, dict) else dict(enumerate(truth))
    frames = np.zeros((len(labels), *labels.shape[1:], 3), np.uint8)
    made = MadeUp(labels)
    monkeypatch.setattr(scoring, "_method", lambda *_: (made, {"weights": "abc"}))
    objects = clip.pop("objects", False)
    clips = (LabelledArrays("clip", frames, truth, **clip),)
    dataset = Dataset("made up", tuple("abcdefgh"[:classes]), clips, protocol=protocol, objects=objects)
    Evaluation(dataset, settings=QUICK).run(tmp_path / "out", tell=tell)
    result = json.loads((tmp_path / "out" / "clips" / "clip.json").read_text())
    return Tally.from_dict(result["stages"]["full"]), made


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 3, (8, 12, 16))


def test_the_first_mask_is_given_and_counted_apart(monkeypatch, tmp_path, labels):
    truth = labels.copy()
    truth[1:, 0] = (truth[1:, 0] + 1) % 3
    tally, made = score(monkeypatch, tmp_path, truth, labels, "first")
    assert (made.given[0] == truth[0]).all()
    scores = tally.scores()
    assert scores["mIoU"] == pytest.approx(mean_iou(confusion(labels, truth, 3)))
    assert (
        scores["mIoU later"] == pytest.approx(mean_iou(confusion(labels[1:], truth[1:], 3)))
        and scores["mIoU later"] < scores["mIoU"]
    )
    changed = np.mean(labels[1:] != labels[:-1], axis=(1, 2))
    assert scores["seam stability"] == pytest.approx(1 - changed[[2, 5]].mean())
    assert scores["stability"] == pytest.approx(1 - changed[[0, 1, 3, 4, 6]].mean())


def test_no_more_classes_are_given_than_there_are_clusters(monkeypatch, tmp_path):
    truth = np.repeat(np.arange(8), [5, 4, 3, 2, 6, 7, 8, 1])[None, None].repeat(10, 1).repeat(2, 0)
    _, made = score(monkeypatch, tmp_path, truth, truth, "first", classes=8)
    assert sorted(np.unique(made.given[0])) == [0, 1, 2, 4, 5, 6, 255], "K = 6: the two smallest of the eight are left out"


def test_segments_are_matched_one_to_one(monkeypatch, tmp_path, labels):
    segments = np.array([7, 250, 0])[labels]
    segments[5:, :3], segments[6:, :3] = 9, 11  # two segments too many
    tally, made = score(monkeypatch, tmp_path, labels, segments, "matched")
    assert made.given == [None], "no truth is given away"
    expected = np.where(np.isin(segments, [9, 11]), 200, labels)
    assert (tally.counts == confusion(expected, labels, 3)).all()
    assert tally.scores()["flicker"] == pytest.approx(np.mean(segments[1:] != segments[:-1])), (
        "what matches nothing stays apart"
    )


def test_segments_are_named_by_the_first_labelled_frame(monkeypatch, tmp_path, labels):
    segments = labels + 3 * np.random.default_rng(1).integers(0, 2, labels.shape)  # two segments for each class
    segments[7, 0] = 99  # seen too late to be named
    tally, made = score(monkeypatch, tmp_path, {3: labels[3], 7: labels[7]}, segments, "named")
    assert made.given == [None] and np.isnan(tally.scores()["mVC8"])
    expected = labels.copy()
    expected[7, 0] = 200
    assert (tally.counts == confusion(expected[[3, 7]], labels[[3, 7]], 3)).all()


def test_known_motion_is_followed(monkeypatch, tmp_path):
    clip = generated_clip(num_frames=5, size=SMALL)
    moving = {"flow": clip.flow, "visible": clip.visible}
    tally, _ = score(monkeypatch, tmp_path, clip.labels, clip.labels, "first", **moving)
    assert 1 - tally.scores()["flicker"] < tally.scores()["stability"] > 0.99
    pairs = [stable_pixels(*clip.labels[n : n + 2], clip.flow[n], clip.visible[n]) for n in range(4)]
    assert tally.seams.tolist() == list(pairs[2]) and tally.inside.tolist() == np.sum(np.delete(pairs, 2, 0), 0).tolist()


# ---- tables


def test_tables_are_what_the_tallies_say(root, tmp_path):
    out = tmp_path / "out"
    run(root, out, "kmeans")
    rows = list(csv.DictReader((out / "results.csv").open()))
    expected = [(c, s) for c in ("a", "b", "c", "(all)") for s in ("coarse", "bilinear")]
    assert [(r["clip"], r["stage"]) for r in rows] == expected
    dataset, total = open_dataset("folder", root), 0
    for clip in dataset.clips:
        meter, labels = Meter(3), [np.load(p)["bilinear"] for p in sorted((out / "windows" / clip.name).glob("0*.npz"))]
        for n, frame in enumerate(np.concatenate(labels)):
            meter.add(frame, clip.truth(n), seam=n > 0 and n % 3 == 0)
        scores = meter.finish().scores()
        row = next(r for r in rows if r["clip"] == clip.name and r["stage"] == "bilinear")
        assert all(row[k] == ("" if np.isnan(v) else str(round(v, 6))) for k, v in scores.items())
        total = total + meter.tally.counts
    data = json.loads((out / "results.json").read_text())
    assert data["stages"]["bilinear"]["scores"]["mIoU"] == pytest.approx(mean_iou(total))
    assert set(data["stages"]["bilinear"]["IoU"]) == {"class 0", "class 1", "class 2"}
    assert data["clips"]["a"]["labelled"] == 7 and data["run"]["settings"]["window"] == 3
    line = next(line for line in (out / "results.md").read_text().splitlines() if line.startswith("| bilinear"))
    assert line.startswith(f"| bilinear | {100 * mean_iou(total):.1f} |") and "±" in line


def tally_of(truth, predicted):
    meter = Meter(3)
    for t, p in zip(truth, predicted, strict=True):
        meter.add(np.array(p), np.array(t))
    return meter.finish()


def test_lines_and_results_say_what_was_never_found(monkeypatch, tmp_path, labels):
    said, truth = [], labels.copy()
    truth[0, 0, :2], truth[4] = 255, 1
    labels = np.where(labels == 2, 0, labels)
    score(monkeypatch, tmp_path, truth, labels, "first", classes=4, tell=said.append)
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
    run(tmp_path / "set", tmp_path / "out", "kmeans", tell=said.append)
    assert "values taken for void: 77 in 2 frames" in said[0]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["clips"]["set"]["strays"] == {"77": 2}


def test_scores_of_objects_are_davis():
    """J of an object is its mean over frames, that of a set the mean over objects; the ground does not count."""
    first = tally_of([[[0, 1, 1, 2]], [[0, 1, 1, 0]]], [[[0, 1, 0, 2]], [[0, 1, 1, 1]]])
    second = tally_of([[[1, 1, 0, 0]]], [[[1, 0, 0, 0]]])
    assert clip_scores(first, True)["J"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert total_scores([first, second], True)["J"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 + 1 / 2) / 3)
    counts = first.counts + second.counts
    assert total_scores([first, second], True)["mIoU"] == pytest.approx(mean_iou(counts))
    mean, error = spread([first, second], False)["accuracy"]
    assert mean == pytest.approx((6 / 8 + 3 / 4) / 2) and error == pytest.approx(0)
    assert np.isnan(spread([first], False)["mIoU"][1])


def test_an_object_that_leaves_is_scored_in_every_frame(monkeypatch, tmp_path):
    truth = np.zeros((4, 20, 24), int)
    truth[:, 5:12, 5:12], truth[0, 14:18, 14:20] = 1, 2
    labels = truth.copy()
    labels[2, 14:18, 14:20] = 2
    tally, _ = score(monkeypatch, tmp_path, truth, labels, "first", objects=True, given_only=True)
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["stages"]["full"]["scores"]
    assert scores["J"] == scores["F"] == pytest.approx((1 + 2 / 3) / 2) and tally.region[2].tolist() == [2, 3]


def test_restart_makes_every_window_a_clip(root, tmp_path):
    Evaluation(open_dataset("folder", root), method="kmeans", settings=QUICK, restart=True).run(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [r["clip"] for r in rows[::2]] == ["a@0", "a@3", "a@6", "b@0", "b@3", "b@6", "c@0", "c@3", "(all)"]
    assert "each window of 3 frames" in (tmp_path / "out" / "results.md").read_text()


# ---- refusals


def test_another_evaluation_is_not_gone_on_with(root, tmp_path, monkeypatch):
    out, dataset = tmp_path / "out", open_dataset("folder", root)
    run(root, out, "kmeans")
    other = dataclasses.replace(QUICK, context=dataclasses.replace(QUICK.context, neighbours=5))
    for match, how in (
        (r"context\.neighbours = 4, not 5: choose another --out", {"settings": other, "method": "kmeans"}),
        (r"method = \"kmeans\", not \"colour\"", {"settings": QUICK, "method": "colour"}),
        (r"protocol = \"first\", not \"matched\"", {"settings": QUICK, "method": "kmeans", "protocol": "matched"}),
        (r"restart = 0, not 3", {"settings": QUICK, "method": "kmeans", "restart": True}),
    ):
        with pytest.raises(InputError, match=match):
            Evaluation(dataset, str(root), **how).run(out)
    fewer = dataclasses.replace(dataset, clips=dataset.clips[:2])
    with pytest.raises(InputError, match=r"clips\.c = {\"frames\": 6, \"labels\": 6, \"files\": .*, not null"):
        Evaluation(fewer, str(root), "kmeans", settings=QUICK).run(out)
    (out / "clips" / "b.json").unlink()
    method = scoring._method
    for key, other, match in (
        ("weights", "other weights", "other weights of tiny"), ("device", "cuda", "device cpu, not cuda"),
        ("dtype", "float16", "dtype float32, not float16"),
    ):  # fmt: skip
        monkeypatch.setattr(scoring, "_method", lambda *args, new={key: other}: (method(*args)[0], method(*args)[1] | new))
        with pytest.raises(InputError, match=f"begun with {match}: choose another --out"):
            run(root, out, "kmeans")


def test_a_finished_run_is_not_taken_for_one_with_new_weights(root, tmp_path, monkeypatch):
    out, method = tmp_path / "out", scoring._method
    run(root, out, "kmeans")
    before = (out / "results.md").read_bytes()
    run(root, out, "kmeans")
    made = method("kmeans", "tiny", None, QUICK)[1]
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_method", lambda *args: (None, made | {"weights": "other"}))
        with pytest.raises(InputError, match="begun with other weights of tiny: choose another --out"):
            run(root, out, "kmeans")
        patch.setattr(scoring, "_method", lambda *args: (None, made | {"weights": "other", "dtype": "float16"}))
        run(root, out, "kmeans")  # in another precision the numbers of the same weights are others
        patch.setattr(weights, "on_disk", lambda model: None)
        patch.setattr(scoring, "_method", lambda *args: pytest.fail("a model was asked for that is not here"))
        run(root, out, "kmeans")
    assert (out / "results.md").read_bytes() == before


def test_with_other_threads_it_does_not_go_on(root, tmp_path, monkeypatch):
    """Neither behind clips that are finished nor within the first one."""
    out = tmp_path / "out"
    run(root, out, "kmeans")
    (out / "clips" / "b.json").unlink()
    dataset = open_dataset("folder", root)
    try:
        with pytest.raises(InputError, match="begun with threads 1, not 2: choose another --out"):
            Evaluation(dataset, str(root), "kmeans", settings=QUICK).run(out, threads=2)
        shutil.rmtree(out)
        monkeypatch.setattr(scoring, "score_windows", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            run(root, out, "kmeans")
        with pytest.raises(InputError, match="begun with threads 1, not 2: choose another --out"):
            Evaluation(dataset, str(root), "kmeans", settings=QUICK).run(out, threads=2)
    finally:
        torch.set_num_threads(1)


def test_with_files_that_have_changed_it_does_not_go_on(root, tmp_path):
    copy, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(root, copy)
    run(copy, out, "kmeans")
    for path in (copy / "b" / "labels" / "003.png", copy / "c" / "frames" / "002.png"):
        before = path.stat()
        Image.fromarray(np.flipud(Image.open(path))).save(path)
        with pytest.raises(InputError, match=rf"clips\.{path.parts[-3]}\.files = .*: choose another --out"):
            run(copy, out, "kmeans")
        shutil.copy2(root / path.relative_to(copy), path)
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    run(copy, out, "kmeans")
    path = copy / "a" / "frames" / "001.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    with pytest.raises(InputError, match=r"clips\.a\.files"):
        run(copy, out, "kmeans")
    changed = generated_clip(num_frames=3, size=SMALL)
    clips = [LabelledArrays("x", changed.frames, dict(enumerate(changed.labels + n))) for n in (0, 1)]
    assert digest_of(clips[0]) != digest_of(clips[1]) and digest_of(clips[0]) == digest_of(clips[0])


def test_weights_have_a_fingerprint(backbone):
    before = fingerprint(backbone.unet)
    assert before == fingerprint(backbone.unet) and len(before) == 16
    weight = backbone.unet.conv_out.weight
    weight[0, 0, 0, 0] += 1e-3
    after = fingerprint(backbone.unet)
    weight[0, 0, 0, 0] -= 1e-3
    assert after != before


def test_all_that_computes_is_in_the_fingerprint(tmp_path):
    copy = shutil.copytree(data_folder() / "models" / "tiny", tmp_path / "tiny")
    before = fingerprint_parts(load_backbone(copy))
    assert before == fingerprint_parts(load_backbone("tiny"))
    codec = json.loads((copy / "codec.json").read_text())
    codec["std"][0] *= 1.01
    (copy / "codec.json").write_text(json.dumps(codec))
    assert fingerprint_parts(load_backbone(copy)) != before
    for family, parts in (("sd21", ("vae", "text_encoder")), ("svd", ("vae", "image_encoder"))):
        folder = small(family, tmp_path / family)
        seen = {fingerprint_parts(load_backbone(folder))}
        for n, part in enumerate(parts, 2):
            (path,) = (folder / part).glob("*.safetensors")
            tensors = load_file(path)
            next(tensor for name, tensor in sorted(tensors.items()) if name.endswith("bias")).add_(0.1)
            save_file(tensors, path, {"format": "pt"})
            seen.add(fingerprint_parts(load_backbone(folder)))
            assert len(seen) == n, f"{part} of {family}"


def test_a_hub_id_is_a_model_as_for_segment(root, monkeypatch):
    monkeypatch.setattr(weights, "_cached", lambda source: data_folder() / "models" / "tiny")
    record = Evaluation(open_dataset("folder", root), model="somebody/small", settings=QUICK).record()
    assert record["model"] == "somebody/small" and record["settings"]["features"]["timestep"] == 20


def test_a_first_mask_of_class_0_and_void(root, tmp_path, capsys):
    """In a set it may be so; from somebody who draws it, it is a black-and-white mask."""
    for part in ("frames", "labels"):
        (tmp_path / "set" / part).mkdir(parents=True)
        for path in sorted((root / "c" / part).iterdir())[:4]:
            array = np.array(Image.open(path))
            if part == "labels":
                array = np.where(array == 0, 0, 255).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "set" / part / path.name)
    for method in ("vidseg", "kmeans"):
        run(tmp_path / "set", tmp_path / method, method)
        assert json.loads((tmp_path / method / "results.json").read_text())["stages"]["coarse"]["scores"]["mIoU"] > 0
    mask = np.where(generated_clip(num_frames=1, size=SMALL).labels[0] == 0, 0, 255)
    write_mask(tmp_path / "mask.png", mask)
    options = ["--first-mask", tmp_path / "mask.png", "--out", tmp_path / "out", "--size", "128x96"]
    assert main(["segment", *map(str, [root / "c" / "frames", *options])]) == 2
    assert "save the white as 1" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="save the white as 1"):
        VidSeg(load_backbone("tiny"), QUICK)(generated_clip(num_frames=1, size=SMALL).frames, mask)


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
        run(bad, tmp_path / "out", "kmeans")
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["clip"], r["stage"]) for r in rows] == [
        ("b", "coarse"), ("b", "bilinear"), ("a", "(failed)"), ("(all)", "coarse"), ("(all)", "bilinear"),
    ]  # fmt: skip
    assert rows[0]["mIoU"] == rows[3]["mIoU"] and not rows[2]["mIoU"]
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(data["clips"]) == ["b"] and "frame 0 of a has no labels" in data["failed"]["a"]
    written = (tmp_path / "out" / "results.md").read_text()
    assert "1 of 2 clips" in written and "not in the table: a. frame 0 of a has no labels" in written
    options = ["--dataset", "folder", "--root", bad, "--method", "kmeans", "--settings", root / "settings.json", "--threads", 1]
    assert main(["evaluate", *map(str, options), "--out", str(tmp_path / "out")]) == 2
    shutil.copy(root / "a" / "labels" / "000.png", bad / "a" / "labels")
    run(bad, tmp_path / "fresh", "kmeans")
    assert json.loads((tmp_path / "fresh" / "results.json").read_text())["failed"] == {}


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
    assert "is not empty and no evaluation" in refused("--dataset", "folder", "--root", root)


def test_clips_that_come_along(tmp_path, capsys):
    """The generated clip's motion and the samples' drawn frames reach the scores."""
    for name, labelled in (("generated", 28), ("cup", 5)):
        out = tmp_path / name
        assert main(["evaluate", "--dataset", name, "--method", "colour", "--out", str(out), "--threads", "1"]) == 0
        data = json.loads((out / "results.json").read_text())
        scores = data["stages"]["bilinear"]["scores"]
        assert data["clips"][name]["labelled"] == labelled and scores["mIoU"] > 0.7
        assert (scores["mIoU"] == scores["mIoU later"]) == (name == "cup"), "the given mask of a sample is not scored"
