"""Runs for other tools, read back by their library."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import stubs
from PIL import Image

from vidseg_core import generated_clip
from vidseg_core.cli import main
from vidseg_core.io.frames import open_masks
from vidseg_core.io.masks import MaskFolder, write_mask, write_masks
from vidseg_core.io.overlay import encode_video

FRAMES = generated_clip(num_frames=4, size=(48, 64)).frames


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a folder of images, with classes 0 (which covers nothing in some frames), 2 and a name that is not ASCII."""
    stubs.install(monkeypatch.setattr)
    (tmp_path / "frames").mkdir()
    for n, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / "frames" / f"shot{n}.jpg")
    (tmp_path / "names.txt").write_text("wall\n\ntürkis\n", encoding="utf-8")
    Image.fromarray(np.arange(64, dtype=np.uint8)[None].repeat(48, 0) // 32 * 2).save(tmp_path / "first.png")
    options = ["--first-mask", str(tmp_path / "first.png"), "--names", str(tmp_path / "names.txt"), "--size", "64x48"]
    assert main(["segment", str(tmp_path / "frames"), "--out", str(tmp_path / "out"), *options]) == 0
    return tmp_path / "out"


def exported(run, *more):
    assert main(["export", str(run), *map(str, more)]) == 0
    return run.with_name("out-coco.json")


def test_the_library_reads_the_same_masks(run, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is an extra")
    path = exported(run, "--format", "coco")
    assert capsys.readouterr().out.strip().endswith(str(path))
    data = coco.COCO(str(path))
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == ["wall", "türkis"]
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == [f"shot{n}.jpg" for n in range(4)]
    for image, mask in zip(data.loadImgs(data.getImgIds()), open_masks(run), strict=True):
        again = np.full(mask.shape, 255)
        for annotation in data.loadAnns(data.getAnnIds(image["id"])):
            inside = data.annToMask(annotation) > 0
            assert (again[inside] == 255).all() and inside.sum() == annotation["area"] and annotation["id"] > 0
            x, y, width, height = map(int, annotation["bbox"])
            rows, columns = inside.nonzero()
            assert (y, x, y + height, x + width) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            again[inside] = annotation["category_id"] - 1
        assert (again == mask).all()


def test_an_export_is_a_mask_again(run, tmp_path):
    """The masks that one run left are the later masks of another, by the names of the frames."""
    pytest.importorskip("pycocotools", reason="pycocotools is an extra")
    path = exported(run)
    words = ["--names", str(tmp_path / "names.txt"), "--mask", f"2={path}", "--size", "64x48"]
    assert main(["segment", str(tmp_path / "frames"), "--out", str(tmp_path / "again"), *words]) == 0
    image = tmp_path / "out" / "masks" / "shot2.png"
    words[3] = f"2={image}"
    assert main(["segment", str(tmp_path / "frames"), "--out", str(tmp_path / "direct"), *words]) == 0
    ours, theirs = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("again", "direct"))
    assert ours["later_masks_sha256"] == theirs["later_masks_sha256"] and ours["later_masks_sha256"]


def test_a_run_of_before_and_of_a_video(run, tmp_path):
    """Without frames.csv, and with times."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is an extra")
    (tmp_path / "before").mkdir()
    write_masks(MaskFolder(tmp_path / "before" / "masks"), 0, np.array([[[0, 255], [3, 3]]] * 2))
    (tmp_path / "before" / "run.json").write_text("{}")
    assert main(["export", str(tmp_path / "before"), "--out", str(tmp_path / "new" / "old.json")]) == 0
    data = coco.COCO(str(tmp_path / "new" / "old.json"))
    assert [image["file_name"] for image in data.dataset["images"]] == ["00000.png", "00001.png"]
    assert [c["name"] for c in data.dataset["categories"]] == ["segment 0", "segment 3"], "void is no category"
    encode_video(FRAMES, 10, tmp_path / "clip.mp4")
    assert main(["segment", str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "video"), "--frames", "1:"]) == 0
    assert main(["export", str(tmp_path / "video")]) == 0
    images = json.loads((tmp_path / "video-coco.json").read_text())["images"]
    assert [(i["file_name"], i["frame"], i["seconds"]) for i in images][1] == ("00001.png", 2, 0.2)


DAMAGE = {
    "[]": ["run.json is damaged", "names"],
    '{"names": ["wall"]}': ["run.json is damaged", "names"],
    '{"names": {"x": "wall"}}': ["run.json is damaged", "names"],
    '{"names": null}': ["run.json is damaged", "names"],
    '{"names": ': ["run.json cannot be read"],
}


@pytest.mark.parametrize("text", DAMAGE)
def test_a_damaged_record_is_refused(run, capsys, text):
    (run / "run.json").write_text(text)
    capsys.readouterr()
    assert main(["export", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in DAMAGE[text]) and not run.with_name("out-coco.json").exists()


def test_an_export_is_replaced_by_an_export(run):
    path = exported(run)
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    assert exported(run, "--overwrite").read_bytes() == before


def test_masks_of_two_sizes_are_refused(run, capsys):
    write_mask(run / "masks" / "shot2.png", np.zeros((5, 7), int))
    capsys.readouterr()
    assert main(["export", str(run)]) == 2
    assert "frame 2" in (said := capsys.readouterr().err) and "7x5" in said and "64x48" in said


def test_refused_exports(run, tmp_path, capsys, monkeypatch):
    capsys.readouterr()

    def refused(*words):
        assert main(["export", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("vidseg: ") and said.err.count("\n") == 1 and not said.out
        return said.err

    assert "not a finished run" in refused(tmp_path / "frames") and "not a finished run" in refused(tmp_path / "gone")
    (tmp_path / "out-coco.json").write_text("precious")
    assert "--overwrite" in refused(run) and (tmp_path / "out-coco.json").read_text() == "precious"
    assert "exists" in refused(run, "--out", tmp_path, "--overwrite")
    assert "no export" in refused(run, "--overwrite") and (tmp_path / "out-coco.json").read_text() == "precious"
    assert "no export" in refused(run, "--overwrite", "--out", os.devnull) and not Path(os.devnull).is_file()
    (tmp_path / "link.json").symlink_to(run / "new.json")
    for inside in (run / "run.json", run / "masks" / "shot0.png", run / "new.json", tmp_path / "link.json"):
        assert "in the folder of the run" in refused(run, "--overwrite", "--out", inside) and not (run / "new.json").exists()
    assert "cannot be made" in refused(run, "--out", tmp_path / "first.png" / "x.json")
    assert "--out is empty" in refused(run, "--out", "")
    (state := tmp_path / ".half.unfinished" / ".state.npz").parent.mkdir()
    state.write_bytes(b"")
    assert "is unfinished" in refused(tmp_path / "half") and "--resume" in refused(tmp_path / "half")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert "pip install pycocotools" in refused(run, "--out", tmp_path / "x.json") and not (tmp_path / "x.json").exists()
