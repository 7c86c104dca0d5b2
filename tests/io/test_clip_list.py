"""Which clips words and tables stand for."""

import os
import shutil

import pytest
from PIL import Image
from refusals import refusal

from vidseg_core.io.clip_list import Entry, named_entries, read_list


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Folders with clips of all kinds, by their names alone: nothing is opened."""
    for name in (
        "clips/c2.mp4", "clips/c10.mp4", "clips/C3.MOV", "clips/notes.txt", "clips/.c4.mp4", "clips/images/0.png",
        "clips/images/1.png", "clips/words/a.txt", "clips/done/contact_sheet.png", "clips/done/run.json",
        "clips/results/index.csv", "clips/results/index.png", "clips/.half.unfinished/0.png", "frames/0.png", "frames/1.jpg",
        "frames/c.mp4", "other/0.png", "empty/a.txt",
    ):  # fmt: skip
        (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path) if path.suffix in (".png", ".jpg") else path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["clips/C3.MOV", "clips/c2.mp4", "clips/c10.mp4", "clips/images"]
NAMED = {
    **dict.fromkeys(["clips/c2.mp4", "clips/notes.txt", "frames", "frames/0.png", "frames/*", "frames/*.png"]),
    **dict.fromkeys(["gone.mp4", "gone/*", "empty"]),
    **dict.fromkeys(["clips", "clips/*"], ALL),
    "clips/*.mp4": ["clips/c2.mp4", "clips/c10.mp4"],
    "clips/*.MOV": ["clips/C3.MOV"],
    "**/c*0.mp4": ["clips/c10.mp4"],
    "frames other": ["frames", "other"],
    "gone.mp4 other": ["gone.mp4", "other"],
    "frames/0.png other/0.png": ["frames/0.png", "other/0.png"],
    "frames/* clips/c2.mp4": ["frames/*", "clips/c2.mp4"],
    "clips/c2.mp4 clips": ["clips/c2.mp4", "clips/C3.MOV", "clips/c10.mp4", "clips/images"],
    "clips/c2.mp4 ./clips/c2.mp4": ["clips/c2.mp4"],
}
"""What words stand for, None for one clip, which `open_clip` takes as ever."""


@pytest.mark.parametrize("words", NAMED)
def test_what_words_stand_for(here, words):
    entries = named_entries(words.split())
    assert (entries and [entry.clip for entry in entries]) == NAMED[words]


def test_images_that_a_shell_made_of_a_pattern_are_refused(here):
    refusal("frames/0.png and 1.jpg", "in quotes: 'frames/*.jpg'", "--list", call=named_entries,
            words=["frames/0.png", "frames/1.jpg"])  # fmt: skip


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="who may do all reads all")
def test_a_folder_that_may_not_be_read_is_a_clip_that_fails_alone(here):
    (here / "clips" / "images").chmod(0)
    assert [entry.clip for entry in named_entries(["clips"])] == ALL
    (here / "clips" / "images").chmod(0o700)


# ---- tables


def entries(folder, text, encoding="utf-8"):
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return [(e.clip, e.first_mask, e.names) for e in read_list(folder / "list.csv")]


TABLES = {
    "clip,first_mask,names\na.mp4,a.png,names.txt\nb.mp4,,\nc.mp4\n": [("a.mp4", "a.png", "names.txt"), ("b.mp4",), ("c.mp4",)],
    "clip,names\na.mp4,names.txt": [("a.mp4", None, "names.txt")],
    "names,clip\r\nnames.txt,a.mp4\r\n\r\n": [("a.mp4", None, "names.txt")],
    "a.mp4\nb.mp4\n": [("a.mp4",), ("b.mp4",)],
    "a.mp4, a.png\n": [("a.mp4", "a.png")],
    '"a, b.mp4"\n': [("a, b.mp4",)],
    "Clip;First_Mask\na.mp4;a.png\n": [("a.mp4", "a.png")],
    "clip;first_mask\na.mp4;a.png\n": [("a.mp4", "a.png")],
    "clip\tfirst_mask\na.mp4\ta.png\n": [("a.mp4", "a.png")],
    "größe.mp4\n": [("größe.mp4",)],
    "images/*.png\n": [("images/*.png",)],
}


@pytest.mark.parametrize("text", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_in_all_forms(tmp_path, text, encoding):
    wanted = [[None if name is None else str(tmp_path / name) for name in row] for row in TABLES[text]]
    assert entries(tmp_path, text, encoding) == [tuple(row + [None] * (3 - len(row))) for row in wanted]


def test_paths_are_those_of_the_tables_folder_and_may_be_whole(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text(f"a.mp4\n{tmp_path / 'b.mp4'}\n~/c.mp4\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first, *others = read_list("lists/list.csv")
    assert first == Entry(os.path.join("lists", "a.mp4"), place=f"{os.path.join('lists', 'list.csv')}, line 1")
    assert [entry.clip for entry in others] == [str(tmp_path / "b.mp4"), str(tmp_path / "c.mp4")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["lists no clip"]),
        ("clip,first_mask\n\n", ["lists no clip"]),
        ("clip,mask\na.mp4,a.png\n", ["column 'mask'", "clip, first_mask, names"]),
        ("first_mask,names\na.png,a.txt\n", ["no column 'clip'", "first_mask, names"]),
        ("clip,clip\na.mp4,b.mp4\n", ["column 'clip'", "each once"]),
        ("a.mp4\nb.mp4,1,2,3\n", ["line 2", "4 values", "double quotes"]),
        ("clip,names\na.mp4\nb.mp4,1,2\n", ["line 3", "3 values", "at most 2"]),
        ("clip,first_mask\n\n,a.png\n", ["line 3", "names no clip"]),
        ("a.mp4\nb.mp4\n./a.mp4\n", ["line 3", "a.mp4", "line 1", "once"]),
        ('a.mp4\n"b.mp4\n', ["line 2", "no CSV", "double quotes"]),
        ('a.mp4\n"b" c.mp4\n', ["line 2", "no CSV"]),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line(tmp_path, text, words):
    refusal("list.csv", *words, call=entries, folder=tmp_path, text=text)


def test_what_is_no_table(tmp_path):
    refusal("list.csv cannot be read", "UTF-8", call=entries, folder=tmp_path, text="größe.mp4", encoding="latin-1")
    shutil.rmtree(tmp_path)
    refusal("gone.csv cannot be read", call=read_list, file=tmp_path / "gone.csv")
