"""Label maps and runs on disk: masks, names, tables, and a folder that appears whole or not at all."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidseg_core.io import results
from vidseg_core.io.files import InputError, RunFolder
from vidseg_core.io.results import read_mask, read_names, write_mask, write_masks, write_run
from vidseg_core.io.video import read_frames
from vidseg_core.workbook.figures import PALETTE

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def refusal(*words, call, **arguments):
    """Asserts that the call is refused by a text with all these words."""
    with pytest.raises(InputError) as info:
        call(**arguments)
    assert all(word in str(info.value) for word in words), str(info.value)


def test_masks_round_trip(tmp_path):
    labels = np.array([[0, 1, 2], [3, 254, 255]])
    write_mask(tmp_path / "m.png", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), PALETTE[labels])
    assert os.listdir(tmp_path) == ["m.png"]
    for value in (-1, 256):
        refusal(str(value), "0 to 255", call=write_mask, path=tmp_path / "m.png", labels=np.full((2, 2), value))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "1"])
def test_grey_masks(tmp_path, mode):
    labels = np.array([[0, 1, 1], [0, 0, 1]]) if mode == "1" else np.array([[0, 1, 2], [3, 254, 255]])
    image = Image.fromarray(labels.astype({"I;16": np.uint16, "1": bool}.get(mode, np.uint8)))
    if mode in ("LA", "RGB", "RGBA"):
        image = image.convert(mode)
    if mode.endswith("A"):
        image.putalpha(9)
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels)


def test_refused_masks(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(NOISE).save(path)
    refusal("m.png", "colours", "palette or grey", call=read_mask, path=path)
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(path)
    refusal("m.png", "300", "0 to 254", call=read_mask, path=path)
    path.write_bytes(b"nothing")
    refusal("m.png", "cannot be read", call=read_mask, path=path)
    refusal("none.png", "cannot be read", call=read_mask, path=tmp_path / "none.png")
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "m.jpg")
    refusal("m.jpg", "JPEG", "PNG", call=read_mask, path=tmp_path / "m.jpg")


def test_names(tmp_path):
    path = tmp_path / "names"
    path.write_text('{"0": "wall", "12": "cup"}')
    assert read_names(path) == {0: "wall", 12: "cup"}
    path.write_text("wall\n\n cup \n")
    assert read_names(path) == {0: "wall", 2: "cup"}
    for text in ('{"0": ', '{"a": "b"}'):
        path.write_text(text)
        refusal("names", "JSON", call=read_names, path=path)
    refusal("none", call=read_names, path=tmp_path / "none")


@pytest.mark.parametrize("count", [1, 9])
def test_a_run_is_written_from_frames_and_masks(tmp_path, count):
    frames = np.random.default_rng(1).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)
    labels = np.zeros((count, 32, 48), np.int16)
    labels[:, :, 20:] = 3
    write_masks(tmp_path / "masks", 0, labels[:4])
    write_masks(tmp_path / "masks", 4, labels[4:])
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


# --- the run folder ---


def earlier_run(folder: Path, **files):
    folder.mkdir(parents=True)
    for name, text in {"run.json": "{}", **files}.items():
        (folder / name).write_text(text)
    return folder


def test_a_new_run_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with RunFolder(out) as partial:
        (partial / "a").write_text("new")
        assert partial.parent == out.parent and partial.name.startswith(".out.partial-") and not out.exists()
    assert os.listdir(out) == ["a"] and os.listdir(out.parent) == ["out"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_empty_folder_is_used(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with RunFolder(tmp_path / "out") as partial:
        (partial / "a").write_text("new")
    assert os.listdir(tmp_path / "out") == ["a"] and os.listdir(tmp_path) == ["out"]
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    refusal("mount point", "a folder in it", call=RunFolder, folder=tmp_path / "out")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_broken_run_leaves_no_trace(tmp_path, error, overwrite):
    out = tmp_path / "out"
    if overwrite:
        earlier_run(out, a="old")
    with pytest.raises(error), RunFolder(out, overwrite) as partial:
        (partial / "a").write_text("new")
        raise error
    assert os.listdir(tmp_path) == (["out"] if overwrite else [])
    assert not overwrite or (out / "a").read_text() == "old"


def test_overwriting_replaces_everything(tmp_path):
    out = earlier_run(tmp_path / "out", a="old", b="old")
    refusal(str(out), "--overwrite", "--out", call=RunFolder, folder=out)
    with RunFolder(out, overwrite=True) as partial:
        (partial / "a").write_text("new")
        assert (out / "a").read_text() == "old"
    assert os.listdir(out) == ["a"] and (out / "a").read_text() == "new" and os.listdir(tmp_path) == ["out"]


def test_what_is_not_ours_is_never_replaced(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years")
    (home / "file").write_text("x")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for folder in ("~", ".", home, "../home", "/"):
        refusal("--out", call=RunFolder, folder=folder, overwrite=True)
    refusal("run.json", "not replaced", call=RunFolder, folder="~", overwrite=True)
    refusal("file", "is a file", call=RunFolder, folder=home / "file", overwrite=True)
    refusal("cannot be made", "--out", call=RunFolder(home / "file" / "out").__enter__)
    assert (home / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failed_renaming_puts_the_old_run_back(tmp_path, monkeypatch, error):
    out = earlier_run(tmp_path / "out", a="old")
    rename = Path.rename

    def failing(self, target):
        if ".partial-" in self.name and not self.name.endswith("-old"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((InputError, KeyboardInterrupt)) as info, RunFolder(out, overwrite=True) as partial:
        (partial / "a").write_text("new")
    assert (out / "a").read_text() == "old" and (partial / "a").read_text() == "new"
    assert isinstance(error, KeyboardInterrupt) or str(partial) in str(info.value)


def test_overwriting_looks_again_at_the_end(tmp_path):
    """--overwrite of a folder that was not there at the start, and is somebody's by the end."""
    with pytest.raises(InputError, match="complete"), RunFolder(tmp_path / "out", overwrite=True):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"


def test_a_folder_filled_meanwhile_is_kept(tmp_path):
    with pytest.raises(InputError, match="complete"), RunFolder(tmp_path / "out") as partial:
        earlier_run(tmp_path / "out", a="other")
    assert (tmp_path / "out" / "a").read_text() == "other" and partial.exists()
