"""What a run leaves on disk beside its masks, and its tables."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from vidseg_core.io import results
from vidseg_core.io.masks import MaskFolder, write_masks
from vidseg_core.io.results import write_run
from vidseg_core.io.video import read_frames


@pytest.mark.parametrize("count", [1, 9])
def test_a_run_is_written_from_frames_and_masks(tmp_path, count):
    frames = np.random.default_rng(1).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)
    labels = np.zeros((count, 32, 48), np.int16)
    labels[:, :, 20:] = 3
    write_masks(MaskFolder(tmp_path / "masks"), 0, labels[:4])
    write_masks(MaskFolder(tmp_path / "masks"), 4, labels[4:])
    ticks = []
    write_run(tmp_path, frames, 10, {0: "wall", 3: "cup"}, {"seed": 5}, ticks.append)
    assert sorted(os.listdir(tmp_path)) == ["contact_sheet.png", "masks", "overlay.mp4", "run.json", "segments.csv"]
    assert read_frames(tmp_path / "overlay.mp4").shape == frames.shape and sum(ticks) == count
    table = (tmp_path / "segments.csv").read_text().splitlines()
    assert len(table) == 3 and table[2].startswith("3,cup,") and table[2].endswith(f",{count},0,{count - 1}")
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 5, "names": {"0": "wall", "3": "cup"}}
    assert len(os.listdir(tmp_path / "masks")) == count
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width == 1200


def test_tables(tmp_path):
    labels = [np.array([[0, 0], [2, 255]]), np.array([[0, 0], [0, 0]]), np.array([[2, 2], [2, 2]])]
    rows = results.segment_table(iter(labels), {0: "wall"})
    assert [tuple(row.values()) for row in rows] == [
        (0, "wall", "#1f77b4", 0.5, 2, 0, 1),
        (2, "segment 2", "#2ca02c", 0.416667, 2, 0, 2),
        (255, "void", "#000000", 0.083333, 1, 0, 0),
    ]
    assert results.segment_table([], {}) == []
    results.write_table(tmp_path / "s.csv", [{**rows[0], "name": 'a "cup", größe'}])
    assert (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines() == [
        "id,name,colour,area,frames,first,last",
        '0,"a ""cup"", größe",#1f77b4,0.5,2,0,1',
    ]
    results.write_json(tmp_path / "r.json", {"seed": 0, "name": "größe"})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"seed": 0, "name": "größe"}
    with pytest.raises(TypeError):
        results.write_json(tmp_path / "r.json", {"seed": object()})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["seed"] == 0
    assert sorted(os.listdir(tmp_path)) == ["r.json", "s.csv"]


def test_a_name_that_is_not_utf8_is_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    results.write_json(tmp_path / "r.json", {"clip": name})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"clip": name}
    results.write_table(tmp_path / "s.csv", [{"clip": name}])
    assert (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines() == ["clip", r"caf\udce9.mp4"]
