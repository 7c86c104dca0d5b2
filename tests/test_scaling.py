"""What more workers are worth, predicted: the events against what can be counted by hand."""

from dataclasses import replace

import pytest
import scaling
from scaling import Costs, many_clips, one_clip

FREE = Costs(features=1, upsample=9, between=0, read=0, write=0, sent=0, received=0, rest=0, alone=30)


@pytest.fixture(autouse=True)
def scheduler_takes_no_time(monkeypatch):
    monkeypatch.setattr(scaling, "TASK", 0.0)


@pytest.mark.parametrize(("workers", "seconds"), [(1, 80), (2, 40), (4, 20), (8, 10), (512, 10)])
def test_a_client_that_costs_nothing_keeps_all_workers_busy(workers, seconds):
    """Eight windows of ten seconds."""
    assert one_clip(FREE, 8, workers) == pytest.approx(seconds)


def test_many_workers_wait_for_the_client():
    """A hundred windows, one after the other through the client; before the first, its features, and behind the last, its
    last stage."""
    costs = replace(FREE, between=2)
    assert one_clip(costs, 100, 100) == pytest.approx(1 + 100 * 2 + 9)
    assert one_clip(replace(costs, read=1, write=1, rest=5), 100, 512) == pytest.approx(100 + 100 * 2 + 100 + 5, rel=0.05)


def test_one_worker_computes_while_the_client_does():
    """Only the first window's stages 2 and 3 are waited for: the worker has the next one's features to do, then its pixels."""
    assert 80 <= one_clip(replace(FREE, between=1), 8, 1) <= 82


def test_bytes_take_time():
    costs = replace(FREE, features=0, upsample=0, sent=scaling.LINK, received=scaling.LINK)
    assert one_clip(costs, 10, 4) == pytest.approx(20)


@pytest.mark.parametrize(("workers", "seconds"), [(1, 240), (2, 120), (3, 90), (8, 30), (512, 30)])
def test_clips_in_rounds(workers, seconds):
    assert many_clips(FREE, 8, workers) == pytest.approx(seconds)


def test_a_table_is_read_as_it_was_written(tmp_path):
    found = {("one clip", 1): 81.0, ("one clip", 2): 43.0, ("short clips", 1): 240.0, ("short clips", 2): 130.0}
    table = list(scaling.rows(FREE, found, 112, 14))
    scaling.write_table(tmp_path / "a.csv", table)
    assert scaling.read_table(tmp_path / "a.csv") == (FREE, found, 112, 14)
    seen = {(row["what"], row["workers"]): row for row in table if row.get("workers")}
    assert seen["one clip of 112 frames", 2] == {
        "what": "one clip of 112 frames",
        "workers": 2,
        "measured": 43.0,
        "predicted": 40,
    }
    assert seen["1000 clips of 14 frames", 512]["predicted"] == 60
    scaling.plot(tmp_path / "a.png", table)
    assert (tmp_path / "a.png").stat().st_size > 10_000
