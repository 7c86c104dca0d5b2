"""A folder that appears whole or not at all."""

import os
import stat
from pathlib import Path

import pytest
from refusals import refusal

from vidseg_core.common import InputError
from vidseg_core.io.files import RunFolder, UnfinishedFolder


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
        earlier_run(out, **{"overlay.mp4": "old"})
    with pytest.raises(error), RunFolder(out, overwrite) as partial:
        (partial / "a").write_text("new")
        raise error
    assert os.listdir(tmp_path) == (["out"] if overwrite else [])
    assert not overwrite or (out / "overlay.mp4").read_text() == "old"


def test_overwriting_replaces_everything(tmp_path):
    out = earlier_run(tmp_path / "out", **{"overlay.mp4": "old", "segments.csv": "old", ".DS_Store": "of a file browser"})
    (out / "masks").mkdir()
    (out / "masks" / "00000.png").write_text("old")
    refusal(str(out), "--overwrite", "--out", call=RunFolder, folder=out)
    with RunFolder(out, overwrite=True) as partial:
        (partial / "overlay.mp4").write_text("new")
        assert (out / "overlay.mp4").read_text() == "old"
    assert os.listdir(out) == ["overlay.mp4"] and (out / "overlay.mp4").read_text() == "new" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", ["cup/run.json", "thesis.tex", "masks/notes.txt", "masks/drawn/00000.png", "run.json.bak", ".git/HEAD"]
)
@pytest.mark.parametrize("kind", [RunFolder, UnfinishedFolder])
def test_a_run_with_anything_else_in_its_folder_is_never_replaced(tmp_path, kind, name):
    out = earlier_run(tmp_path / "out", **{"overlay.mp4": "old"})
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("years")
    refusal(str(out), name.split("/")[-1 if "masks/notes" in name else 0], "--out", call=kind, folder=out, overwrite=True)
    assert (out / name).read_text() == "years"


@pytest.mark.parametrize("where", ["out", "out/masks", "empty"])
@pytest.mark.parametrize("kind", [RunFolder, UnfinishedFolder])
def test_the_working_directory_is_never_replaced(tmp_path, monkeypatch, kind, where):
    (earlier_run(tmp_path / "out") / "masks").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / where)
    refusal("you are in", "--out", call=kind, folder=tmp_path / where.split("/")[0], overwrite=True)


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
    out = earlier_run(tmp_path / "out", **{"overlay.mp4": "old"})
    rename = Path.rename

    def failing(self, target):
        if ".partial-" in self.name and not self.name.endswith("-old"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((InputError, KeyboardInterrupt)) as info, RunFolder(out, overwrite=True) as partial:
        (partial / "a").write_text("new")
    assert (out / "overlay.mp4").read_text() == "old" and (partial / "a").read_text() == "new"
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
