"""Masks drawn in other tools: outlines of labelme and of COCO become class numbers."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from vidseg_core import open_clip
from vidseg_core.io.annotations import given_masks
from vidseg_core.io.masks import write_mask

SIZE = (20, 30)
SQUARE = [[4, 2], [12, 2], [12, 9], [4, 9]]


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "frames").mkdir()
    for name in ("a1", "a2", "a3"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "frames" / f"{name}.png")
    return open_clip(tmp_path / "frames")


def labelme(path, *shapes):
    """A file as labelme 5 writes it."""
    shapes = [{"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
              for label, kind, points in shapes]  # fmt: skip
    path.write_text(json.dumps({"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a1.png", "imageData": None,
                                "imageHeight": SIZE[0], "imageWidth": SIZE[1]}))  # fmt: skip
    return str(path)


def coco(path, *annotations, images=("a1.jpg", "a2.jpg")):
    images = [{"id": n + 7, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for n, name in enumerate(images)]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "hand"}]
    rows = [
        {"id": n, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": 0} for n, (i, c, s) in enumerate(annotations)
    ]
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return str(path)


def test_outlines_of_labelme(tmp_path, clip):
    """What was drawn last lies above; what nobody drew in the first frame is background, in a later one void."""
    first = labelme(tmp_path / "0.json", ("cup", "polygon", SQUARE), ("hand", "rectangle", [[20, 15], [10, 5]]))
    later = labelme(tmp_path / "2.json", ("cup", "circle", [[10, 10], [10, 14]]), ("__ignore__", "rectangle", [[0, 0], [2, 2]]),
                    ("_background_", "rectangle", [[25, 0], [29, 19]]))  # fmt: skip
    masks, names = given_masks({0: first, 2: later}, clip, None)
    assert names == {0: "background", 1: "cup", 2: "hand"}
    expected = np.zeros(SIZE, int)
    expected[2:10, 4:13] = 1
    expected[5:16, 10:21] = 2
    assert (masks[0] == expected).all()
    assert masks[2][10, 10] == 1 and (masks[2] == 1).sum() == pytest.approx(np.pi * 4**2, rel=0.3)
    assert (masks[2][:, 25:] == 0).all() and masks[2][1, 1] == 255 == masks[2][19, 0]


def test_labels_have_the_numbers_of_their_names(tmp_path, clip):
    """Given names, and the numbers of masks that are images, are respected."""
    path = labelme(tmp_path / "1.json", ("cup", "polygon", SQUARE), ("plate", "rectangle", [[20, 5], [25, 9]]))
    write_mask(tmp_path / "0.png", np.arange(SIZE[1])[None].repeat(SIZE[0], 0) // 15)
    masks, names = given_masks({0: str(tmp_path / "0.png"), 1: path}, clip, {2: "table", 5: "cup"})
    assert names == {2: "table", 5: "cup", 3: "plate"} and set(np.unique(masks[1])) == {3, 5, 255}
    masks, names = given_masks({0: path}, clip, {0: "table"})
    assert names == {0: "table", 1: "background", 2: "cup", 3: "plate"} and set(np.unique(masks[0])) == {1, 2, 3}
    assert given_masks({0: str(tmp_path / "0.png")}, clip, None)[1] is None


def test_outlines_of_coco(tmp_path, clip):
    """The image named like the frame; polygons of several parts, and runs written out."""
    square = [float(x) for point in SQUARE for x in point]
    other = [x + 14 for x in square]
    path = coco(tmp_path / "c.json", (7, 1, [square, other]), (8, 2, [square]))
    masks, names = given_masks({0: path, 1: path}, clip, None)
    assert names == {0: "background", 1: "cup", 2: "hand"}
    assert (masks[0][2:10, 4:13] == 1).all() and masks[0][17, 20] == 1 and set(np.unique(masks[1])) == {2, 255}
    one = coco(tmp_path / "one.json", (7, 1, [square]), images=("elsewhere.jpg",))
    assert (given_masks({2: one}, clip, None)[0][2] == 1).sum() == 72, "a single image is meant, whatever it is called"


def test_runs_of_coco(tmp_path, clip):
    library = pytest.importorskip("pycocotools.mask", reason="pycocotools is an extra")
    inside = np.zeros(SIZE, np.uint8)
    inside[3:8, 5:20] = 1
    inside[5, 9] = 0
    code = library.encode(np.asfortranarray(inside))
    flat = inside.ravel(order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), len(flat)]).tolist()
    for segmentation in ({"size": SIZE, "counts": code["counts"].decode()}, {"size": SIZE, "counts": counts}):
        path = coco(tmp_path / "c.json", (7, 1, segmentation))
        assert (given_masks({0: path}, clip, None)[0][0] == inside).all()


def test_bad_outlines_are_refused(tmp_path, clip, monkeypatch):
    path = tmp_path / "x.json"
    cases = {
        "not json": ["cannot be read", "labelme"],
        "[1]": ["no outlines", "labelme"],
        '{"shapes": [{"label": "a"}], "imageHeight": 20, "imageWidth": 30}': ["damaged", "points"],
        '{"shapes": [], "imageHeight": null, "imageWidth": null}': ["damaged"],
        '{"annotations": []}': ["damaged", "images"],
    }
    for text, words in cases.items():
        path.write_text(text)
        refusal("x.json", *words, call=given_masks, files={0: str(path)}, clip=clip, names=None)
    for kind, points in (("line", SQUARE), ("polygon", SQUARE[:2])):
        labelme(path, ("cup", kind, points))
        refusal("x.json", kind, "polygons", call=given_masks, files={0: str(path)}, clip=clip, names=None)
    coco(path, images=("b.png", "c.png"))
    refusal("0 images named 'a1'", "b.png", call=given_masks, files={0: str(path)}, clip=clip, names=None)
    coco(path, (7, 1, {"size": SIZE, "counts": "abc"}))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    refusal("pip install pycocotools", call=given_masks, files={0: str(path)}, clip=clip, names=None)
    refusal("frame 3", "0 to 2", call=given_masks, files={3: str(path)}, clip=clip, names=None)
