"""Runs for other tools, read back by their library."""

import json

import numpy as np
import pytest
import stubs
from PIL import Image

from vidseg_core import generated_clip
from vidseg_core.cli import main
from vidseg_core.io.frames import open_masks
from vidseg_core.io.masks import MaskFolder, write_masks
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
    write_masks(MaskFolder(tmp_path / "masks"), 0, np.array([[[0, 255], [3, 3]]] * 2))
    (tmp_path / "run.json").write_text("{}")
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "new" / "old.json")]) == 0
    data = coco.COCO(str(tmp_path / "new" / "old.json"))
    assert [image["file_name"] for image in data.dataset["images"]] == ["00000.png", "00001.png"]
    assert [c["name"] for c in data.dataset["categories"]] == ["segment 0", "segment 3"], "void is no category"
    encode_video(FRAMES, 10, tmp_path / "clip.mp4")
    assert main(["segment", str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "video"), "--frames", "1:"]) == 0
    assert main(["export", str(tmp_path / "video")]) == 0
    images = json.loads((tmp_path / "video-coco.json").read_text())["images"]
    assert [(i["file_name"], i["frame"], i["seconds"]) for i in images][1] == ("00001.png", 2, 0.2)


def test_refused_exports(run, tmp_path, capsys, monkeypatch):
    capsys.readouterr()

    def refused(*words):
        assert main(["export", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("vidseg: ") and said.err.count("\n") == 1 and not said.out
        return said.err

    assert "no finished run" in refused(tmp_path / "frames") and "no finished run" in refused(tmp_path / "gone")
    (tmp_path / "out-coco.json").write_text("precious")
    assert "--overwrite" in refused(run) and (tmp_path / "out-coco.json").read_text() == "precious"
    assert "exists" in refused(run, "--out", tmp_path, "--overwrite")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert "pip install pycocotools" in refused(run, "--out", tmp_path / "x.json") and not (tmp_path / "x.json").exists()
