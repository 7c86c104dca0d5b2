"""What masks are called, and the table that says which of them is of which frame."""

import csv
import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import stubs
from PIL import Image
from refusals import refusal

from vidseg_core import generated_clip, open_clip
from vidseg_core.cli import main
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.io import run
from vidseg_core.io.frames import mask_names, open_masks
from vidseg_core.io.masks import MaskFolder, read_mask, write_masks
from vidseg_core.io.overlay import encode_video
from vidseg_core.io.resume import RunState

FRAMES = generated_clip(num_frames=6, size=(48, 64)).frames
NAMES = ["shot.2", "shot.10", "shot.11", "shot.12", "shot.13", "shot.14"]
"""In natural order, with a dot that is no ending."""


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    stubs.install(monkeypatch.setattr)


def save(folder, names):
    folder.mkdir()
    for name, frame in zip(names, FRAMES, strict=False):
        Image.fromarray(frame).save(folder / name)
    return folder


def segment(clip, out, *more):
    return main(["segment", str(clip), "--out", str(out), "--size", "64x48", "--clusters", "3", "--window", "2", *more])


def rows(out):
    return list(csv.DictReader((out / "frames.csv").open(encoding="utf-8")))


def test_masks_of_images_are_named_like_them(tmp_path):
    images = save(tmp_path / "frames", [f"{name}.jpg" for name in NAMES])
    assert segment(images, tmp_path / "out", "--frames", "1:", "--stride", "2") == 0
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["shot.10.png", "shot.12.png", "shot.14.png"]
    assert rows(tmp_path / "out")[1] == {
        "mask": "shot.12.png", "number": "1", "frame": "3", "seconds": "", "file": "shot.12.jpg"
    }  # fmt: skip


def test_masks_are_the_labels_of_their_frames(tmp_path):
    """`evaluate --dataset folder` takes them as they are, each with its own frame."""
    images = save(tmp_path / "frames", [f"{name}.png" for name in NAMES])
    assert segment(images, tmp_path / "out") == 0
    shutil.copytree(tmp_path / "out" / "masks", tmp_path / "labels")
    (clip,) = open_dataset("folder", tmp_path).clips
    masks = list(open_masks(tmp_path / "out"))
    assert sorted(clip.labels) == list(range(6)) and [f.stem for f in clip.files] == NAMES
    assert all((clip.read_labels(n)[0] == masks[n]).all() for n in range(6))
    assert any((masks[0] != mask).any() for mask in masks[1:]), "or an exchange would not be seen"


@pytest.mark.parametrize("names", [("a.png", "A.png"), (f"{'x' * 230}.png", "b.png")])
def test_numbers_where_names_cannot_be(tmp_path, names):
    images = save(tmp_path / "frames", names)
    assert segment(images, tmp_path / "out") == 0
    assert [row["mask"] for row in rows(tmp_path / "out")] == ["00000.png", "00001.png"]
    assert {row["file"] for row in rows(tmp_path / "out")} == set(names)


def test_a_name_that_is_not_text_is_written_out(tmp_path):
    images = save(tmp_path / "frames", ["a.png", "b.png"])
    (images / "b.png").rename(images / "b\udcff.png")
    clip = open_clip(images)
    assert mask_names(clip) == ()
    assert [r["file"] for r in run.frame_table(clip, MaskFolder(tmp_path))] == ["a.png", "b\\udcff.png"]


def test_frames_of_a_video_have_times(tmp_path):
    encode_video(FRAMES, 10, tmp_path / "clip.mp4")
    assert segment(tmp_path / "clip.mp4", tmp_path / "out", "--frames", "1:", "--stride", "2") == 0
    assert [(r["mask"], r["frame"], float(r["seconds"])) for r in rows(tmp_path / "out")] == [
        ("00000.png", "1", 0.1), ("00001.png", "3", 0.3), ("00002.png", "5", 0.5)
    ]  # fmt: skip


def test_times_are_those_of_the_file(tmp_path):
    """Of a variable rate: every frame is shown longer than the one before."""
    stamps = [0, 100, 300, 600, 1000, 1500]
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.time_base = 64, 48, Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, frame in zip(stamps, FRAMES, strict=True):
            picture = av.VideoFrame.from_ndarray(frame)
            picture.pts, picture.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert open_clip(tmp_path / "clip.mkv").times() == pytest.approx([s / 1000 for s in stamps], abs=1e-3)


def stop_after(monkeypatch, windows):
    write, calls = run.write_masks, []

    def writing(masks, start, labels):
        calls.extend([start] if masks.folder.parent.name.endswith(".unfinished") else [])  # not what is tried at the beginning
        if len(calls) > windows:
            raise KeyboardInterrupt
        write(masks, start, labels)

    monkeypatch.setattr(run, "write_masks", writing)
    return lambda: monkeypatch.setattr(run, "write_masks", write)


def test_a_run_of_images_goes_on(tmp_path, monkeypatch, capsys):
    images = save(tmp_path / "frames", [f"{name}.jpg" for name in NAMES])
    assert segment(images, tmp_path / "whole") == 0
    restore = stop_after(monkeypatch, 1)
    assert segment(images, tmp_path / "out") == 130
    restore()
    masks = tmp_path / ".out.unfinished" / "masks"
    (masks / "shot.13.png").write_bytes(b"of a window that was not finished")
    moved = (masks / "shot.10.png").rename(tmp_path / "moved.png")
    assert segment(images, tmp_path / "out", "--resume") == 2
    assert "lacks the mask of frame 1 (shot.10.png)" in capsys.readouterr().err
    moved.rename(masks / "shot.10.png")
    assert segment(images, tmp_path / "out", "--resume") == 0
    for name in (*(f"masks/{name}.png" for name in NAMES), "frames.csv", "segments.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_that_began_with_numbers_goes_on_with_them(tmp_path, monkeypatch):
    """As those that began before masks had names; the frames' own names are other numbers."""
    images = save(tmp_path / "frames", [f"{n:05}.png" for n in range(1, 7)])
    assert segment(images, tmp_path / "whole") == 0
    restore = stop_after(monkeypatch, 2)
    assert segment(images, tmp_path / "out") == 130
    restore()
    hidden = tmp_path / ".out.unfinished"
    for n in range(4):
        (hidden / "masks" / f"{n + 1:05}.png").rename(hidden / "masks" / f"{n:05}.png")
    state = RunState.read(hidden / ".state.npz")
    del state.record["masks"]
    state.write(hidden / ".state.npz")
    assert segment(images, tmp_path / "out", "--resume") == 0
    whole, parts = (list(open_masks(tmp_path / name)) for name in ("whole", "out"))
    assert [row["mask"] for row in rows(tmp_path / "out")] == [f"{n:05}.png" for n in range(6)]
    assert len(parts) == 6 and all((a == b).all() for a, b in zip(whole, parts, strict=True))


def test_an_old_run_has_no_table(tmp_path):
    write_masks(MaskFolder(tmp_path / "masks"), 99_999, np.arange(3)[:, None, None].repeat(4, 1).repeat(4, 2))
    assert [int(mask.max()) for mask in open_masks(tmp_path)] == [0, 1, 2]


TABLES = {
    "another": ("mask,frame,seconds\ngone.png,0,\n", ["same run", "0.png is in masks/ alone"]),
    "cut": ("mask,frame,seconds\n0.png,0,\n", ["same run", "1.png is in masks/ alone"]),
    "empty": ("", ["same run", "0.png is in masks/ alone"]),
    "longer": ("mask,frame,seconds\n0.png,0,\n1.png,1,\n2.png,2,\n", ["same run", "2.png is in the table alone"]),
    "semicolons": ("mask;frame;seconds\n0.png;0;\n1.png;1;\n", ["cannot be read", "no column 'frame'"]),
    "words": ("mask,frame,seconds\n0.png,x,\n1.png,1,\n", ["cannot be read", "'x'"]),
    "latin": ("mask,frame,seconds\n0.png,0,\né.png,1,\n", ["cannot be read"]),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_is_not_that_of_the_masks_is_refused(tmp_path, case):
    text, words = TABLES[case]
    write_masks(MaskFolder(tmp_path / "masks", ("0", "1")), 0, np.zeros((2, 4, 4), int))
    (tmp_path / "masks" / "._0.png").write_bytes(b"what macOS leaves on other disks")
    (tmp_path / "frames.csv").write_text(text, encoding="latin-1")
    refusal("frames.csv", *words, call=open_masks, run=tmp_path)
    (tmp_path / "frames.csv").write_text("mask,frame,seconds\n1.png,0,\n0.png,1,\n", encoding="utf-8-sig")
    assert open_masks(tmp_path).names == ("1", "0"), "and that of an editor of Windows is read"


def test_a_run_records_how_masks_are_named(tmp_path):
    images = save(tmp_path / "frames", ["a.png", "b.png"])
    assert segment(images, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["masks"] == "named like the frames"
    assert read_mask(tmp_path / "out" / "masks" / "b.png").shape == (48, 64)
