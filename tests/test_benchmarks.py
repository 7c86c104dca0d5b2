"""What the figures in README and docs come from still runs; the figures themselves are made by hand, on an idle machine."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import full_size_memory
import gpu_check
import pytest
import torch

from vidseg_core import InputError
from vidseg_core.models.registry import MODELS, data_folder

BENCHMARKS = sorted(p.stem for p in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize(
    "name", [pytest.param("sd21-base", marks=pytest.mark.slow), pytest.param("svd", marks=pytest.mark.long)]
)
def test_memory_is_counted_at_full_size(name):
    """Two frames of 128x128: less than for the registry's figures, and weights as many as the registry says."""
    gb = full_size_memory.measure(name, 2, (128, 128))
    assert gb["weights"] > 2 * MODELS[name].parameters[0] / 1000
    for how, limit in zip(("direct", "guided"), MODELS[name].memory_gb, strict=True):
        assert 0 < gb[how] < limit - gb["weights"]


@pytest.fixture
def short(monkeypatch, clip):
    """A clip of two frames with all labels instead of the sample clips."""
    labelled = gpu_check.Labelled("short", clip.frames[:2], dict(enumerate(clip.labels[:2])), 3)
    monkeypatch.setattr(gpu_check, "clips", lambda vspw, frames: iter([labelled]))


def checked(tmp_path, *more):
    """report.json and report.md of a check of the embedded model, which lies in a folder of somebody's."""
    model = tmp_path / "somebody" / "my-model"
    shutil.copytree(data_folder() / "models" / "tiny", model, dirs_exist_ok=True)
    assert gpu_check.main(["--model", str(model), "--device", "cpu", "--out", str(tmp_path / "out"), *more]) == 0
    return [(tmp_path / "out" / "my-model" / f"report.{kind}").read_text() for kind in ("json", "md")]


def test_the_report_does_not_say_where_the_model_lies(tmp_path, short, capsys):
    for text in (*checked(tmp_path, "--size", "128x96", "--offload"), capsys.readouterr().out.split("Please")[0]):
        assert "my-model" in text and "somebody" not in text
    report = json.loads((tmp_path / "out" / "my-model" / "report.json").read_text())
    assert report["settings"]["working_size"] == [96, 128] and report["offload"]
    assert [row["strategy"] for row in report["rows"]] == ["direct", "guided"]
    assert all(0 <= row["agreement"] <= 1 and "not run" not in row for row in report["rows"])


@pytest.mark.parametrize("which", ["direct", "guided"])
def test_a_strategy_without_enough_memory_has_a_row(tmp_path, short, monkeypatch, which):
    real = gpu_check.run

    def small(vidseg, *arguments):
        if vidseg.settings.upsample.strategy == which:
            raise InputError("the device's memory is too small")
        return real(vidseg, *arguments)

    monkeypatch.setattr(gpu_check, "run", small)
    report, table = checked(tmp_path, "--size", "128x96")
    rows = {row["strategy"]: row for row in json.loads(report)["rows"]}
    assert rows[which]["not run"] in table and "full" not in rows[which]
    assert all("full" in row for strategy, row in rows.items() if strategy != which) and len(rows) == 2


def test_memory_is_that_of_the_card_that_runs(monkeypatch):
    card, asked = torch.device("cuda:1"), []
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", asked.append)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: asked.append(device) or 3e9)

    class OnCard:
        backbone = SimpleNamespace(device=card)

        def __call__(self, *_, **__):
            return "result"

    clip = gpu_check.Labelled("none", None, {0: None}, 1)
    assert gpu_check.run(OnCard(), clip, None) == ("result", 3.0) and asked == [card, card]
