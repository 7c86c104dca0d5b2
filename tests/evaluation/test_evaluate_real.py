"""Evaluations with the embedded model: one process, and Dask workers of which one is killed."""

import json
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from vidseg_core import ContextSettings, InputError, Settings, VidSeg, generated_clip
from vidseg_core.cli import main
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.evaluate import Evaluation
from vidseg_core.io.masks import write_mask
from vidseg_core.models import weights
from vidseg_core.models.registry import data_folder

SMALL = (48, 64)
QUICK = Settings(context=ContextSettings(num_clusters=6, restarts=1), working_size=SMALL, window=3)
TABLES = ("results.csv", "results.json", "results.md")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two clips of 5 and 4 frames."""
    root = tmp_path_factory.mktemp("set")
    for n, name in enumerate("ab"):
        clip = generated_clip(num_frames=5 - n, size=SMALL, seed=n)
        for part, arrays in (("frames", clip.frames), ("labels", clip.labels.astype(np.uint8))):
            (root / name / part).mkdir(parents=True)
            for i, array in enumerate(arrays):
                Image.fromarray(array).save(root / name / part / f"{i:03}.png")
    (root / "settings.json").write_text(json.dumps(QUICK.to_dict()))
    return root


def evaluate(root, out, *more):
    options = ["--dataset", "folder", "--root", root, "--settings", root / "settings.json", "--out", out, *more]
    return main(["evaluate", *map(str, options)])


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_give_the_table_of_one_process(root, tmp_path, capsys):
    """The one that is killed is in the middle of its clip, and another goes on with it."""
    assert evaluate(root, tmp_path / "whole", "--threads", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["a", "b"] and "| full |" in "".join(lines)
    out, killed = tmp_path / "out", []

    def kill():
        until = time.monotonic() + 120
        while not list(out.glob("windows/*/0*.npz")) and time.monotonic() < until:
            time.sleep(0.005)
        workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        busiest = max(workers, key=lambda p: sum(p.cpu_times()[:2]))
        killed.append(busiest.pid)
        os.kill(busiest.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert evaluate(root, out, "--workers", 2) == 0
    killer.join()
    assert killed
    for name in TABLES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_hub_id_is_a_model_as_for_segment(root, monkeypatch):
    monkeypatch.setattr(weights, "_cached", lambda source: data_folder() / "models" / "tiny")
    record = Evaluation(open_dataset("folder", root), model="somebody/small", settings=QUICK).record()
    assert record["model"] == "somebody/small" and record["settings"]["features"]["timestep"] == 20


def test_a_first_mask_of_class_0_and_void_is_refused_everywhere(root, backbone, tmp_path, capsys):
    """It is a black-and-white mask, of which nothing can be told apart from void."""
    for part in ("frames", "labels"):
        (tmp_path / "set" / part).mkdir(parents=True)
        for path in sorted((root / "b" / part).iterdir())[:4]:
            array = np.array(Image.open(path))
            if part == "labels":
                array = np.where(array == 0, 0, 255).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "set" / part / path.name)
    for method in ("vidseg", "kmeans"):
        dataset = open_dataset("folder", tmp_path / "set")
        with pytest.raises(InputError, match=r"1 of 1 clips.*save the white as 1"):
            Evaluation(dataset, method=method, settings=QUICK).run(tmp_path / method, threads=1)
    mask = np.where(generated_clip(num_frames=1, size=SMALL).labels[0] == 0, 0, 255)
    write_mask(tmp_path / "mask.png", mask)
    options = ["--first-mask", tmp_path / "mask.png", "--out", tmp_path / "out", "--size", "64x48"]
    assert main(["segment", *map(str, [root / "b" / "frames", *options])]) == 2
    assert "save the white as 1" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="save the white as 1"):
        VidSeg(backbone, QUICK)(generated_clip(num_frames=1, size=SMALL).frames, mask)


@pytest.mark.slow
def test_clips_that_come_along(tmp_path, capsys):
    """The generated clip's motion and the samples' drawn frames reach the scores."""
    for name, labelled in (("generated", 28), ("cup", 5)):
        out = tmp_path / name
        assert main(["evaluate", "--dataset", name, "--method", "colour", "--out", str(out), "--threads", "1"]) == 0
        data = json.loads((out / "results.json").read_text())
        scores = data["stages"]["bilinear"]["scores"]
        assert data["clips"][name]["labelled"] == labelled and scores["mIoU"] > 0.7
        assert (scores["mIoU"] == scores["mIoU later"]) == (name == "cup"), "the given mask of a sample is not scored"
