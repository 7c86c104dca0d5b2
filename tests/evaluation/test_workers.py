"""Clips spread over workers; `test_evaluate_real` has real ones, of which one is killed."""

import distributed
import pytest
import stubs

from vidseg_core import Settings, generated_clip
from vidseg_core.cluster.door import Workers
from vidseg_core.evaluation.evaluate import Evaluation
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays

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
