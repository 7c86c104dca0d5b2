"""Masks drawn in other tools: outlines of labelme and of COCO become class numbers."""

import base64
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from vidseg_core import InputError, open_clip
from vidseg_core.io.annotations import given_masks
from vidseg_core.io.masks import write_mask
from vidseg_core.io.overlay import encode_video

SIZE = (20, 30)
SQUARE = [[4, 2], [12, 2], [12, 9], [4, 9]]


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "frames").mkdir()
    for name in ("a1", "a2", "a3"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "frames" / f"{name}.png")
    return open_clip(tmp_path / "frames")


def labelme(path, *shapes, size=SIZE):
    """A file as labelme 5 writes it."""
    shapes = [{"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
              for label, kind, points in shapes]  # fmt: skip
    path.write_text(json.dumps({"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a1.png", "imageData": None,
                                "imageHeight": size[0], "imageWidth": size[1]}))  # fmt: skip
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


@pytest.mark.parametrize("names", ["frame_{:06}.PNG", "{}.jpg", "clip/frame{:03}.png", "2024-05-06_{:04}.png"])
def test_frames_of_a_video_are_found_by_their_number(tmp_path, names):
    """As CVAT and others name them, by the number in the video; our own names count the frames that are taken."""
    encode_video(np.zeros((14, *SIZE, 3), np.uint8), 10, tmp_path / "clip.mp4")
    video = open_clip(tmp_path / "clip.mp4", start=1)
    square = [float(x) for point in SQUARE for x in point]
    images = [names.format(n) for n in (1, 10, 11)]
    path = coco(tmp_path / "c.json", (8, 2, [square]), images=images)
    masks, called = given_masks({9: path}, video, None)
    assert called == {1: "hand"} and (masks[9] == 1).sum() == 72
    refusal("0 images named '00004'", call=given_masks, files={4: path}, clip=video, names=None)
    path = coco(tmp_path / "own.json", (8, 2, [square]), images=["00010.png", "00009.png"])
    assert (given_masks({9: path}, video, None)[0][9] == 1).sum() == 72, "a name goes before a number"


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


def test_shapes_of_other_versions_of_labelme(tmp_path, clip):
    """Rectangles with four corners, and masks that a network drew: a PNG in the file and its place."""
    picture = io.BytesIO()
    inside = np.ones((4, 6), bool)
    inside[1, 2] = False
    Image.fromarray(inside).save(picture, "PNG")
    path = labelme(tmp_path / "0.json", ("cup", "rectangle", SQUARE), ("hand", "mask", [[20.0, 10.0], [25.0, 13.0]]),
                   ("hand ", "rotation", [[3, 12], [6, 12], [6, 15], [3, 15]]))  # fmt: skip
    data = json.loads((tmp_path / "0.json").read_text())
    data["shapes"][1]["mask"] = base64.b64encode(picture.getvalue()).decode()
    (tmp_path / "0.json").write_text(json.dumps(data))
    masks, names = given_masks({0: path}, clip, None)
    expected = np.zeros(SIZE, int)
    expected[2:10, 4:13] = 1
    expected[10:14, 20:26][inside] = 2
    expected[12:16, 3:7] = 2
    assert (masks[0] == expected).all() and names == {0: "background", 1: "cup", 2: "hand"}


def test_masks_of_another_size_are_refused(tmp_path, clip):
    write_mask(tmp_path / "m.png", np.arange(6).reshape(2, 3))
    refusal("m.png is 3x2", "30x20", "nearest", call=given_masks, files={1: str(tmp_path / "m.png")}, clip=clip, names=None)
    labelme(tmp_path / "x.json", ("cup", "polygon", SQUARE), size=(40, 60))
    refusal(
        "x.json is 60x40",
        "30x20",
        "draw it on a frame",
        call=given_masks,
        files={0: str(tmp_path / "x.json")},
        clip=clip,
        names=None,
    )


def test_masks_whose_palettes_contradict_each_other_are_refused(tmp_path, clip):
    for name, palette in (("a", "000000ff0000"), ("b", "ff0000000000")):
        image = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(SIZE) % 2)
        image.putpalette(bytes.fromhex(palette))
        image.save(tmp_path / f"{name}.png")
    files = {0: str(tmp_path / "a.png"), 2: str(tmp_path / "b.png")}
    refusal("a.png", "b.png", "palettes differ", call=given_masks, files=files, clip=clip, names=None)


LABELME = {
    "line": (SQUARE, ["line of 4 points", "polygons"]),
    "polygon": (SQUARE[:2], ["polygon of 2 points", "polygons"]),
    "point": (SQUARE[:1], ["point of 1 point:"]),
    "circle": (SQUARE[:1], ["circle of 1 point"]),
    "rectangle": (SQUARE[:1], ["rectangle of 1 point"]),
    "mask": (SQUARE[::2], ["damaged", "mask"]),
}
POINTS = {"NaN": float("nan"), "infinite": float("inf"), "far away": 1e30, "a word": "far"}


def refused(path, clip, *words):
    with pytest.raises(InputError) as info:
        given_masks({0: str(path)}, clip, None)
    said = str(info.value)
    assert all(word in said for word in words) and said.count(str(path)) == 1 and "InputError" not in said, said


@pytest.mark.parametrize("kind", LABELME)
def test_shapes_without_an_inside_are_refused(tmp_path, clip, kind):
    points, words = LABELME[kind]
    refused(labelme(tmp_path / "x.json", ("cup", kind, points)), clip, *words)


@pytest.mark.parametrize("number", POINTS)
def test_points_that_are_nowhere_are_refused(tmp_path, clip, number):
    points = [[4, 2], [12, POINTS[number]], [12, 9]]
    refused(labelme(tmp_path / "x.json", ("cup", "polygon", points)), clip, "damaged")
    refused(coco(tmp_path / "c.json", (7, 1, [[x for point in points for x in point]])), clip, "damaged")


@pytest.mark.parametrize("size", [(0, 30), (-20, 30), (10**9, 10**9), (None, None)])
def test_images_of_no_size_are_refused(tmp_path, clip, size):
    """Before memory is taken for them."""
    refused(labelme(tmp_path / "x.json", ("cup", "polygon", SQUARE), size=size), clip, "damaged")


def test_what_draws_nothing_is_refused(tmp_path, clip):
    """Not taken for a clip that is background alone."""
    refused(labelme(tmp_path / "x.json"), clip, "draws nothing")
    refused(labelme(tmp_path / "x.json", ("cup", "polygon", [[40, 2], [50, 2], [50, 9]])), clip, "'cup'", "outside", "30x20")
    refused(labelme(tmp_path / "x.json", (" ", "polygon", SQUARE)), clip, "without a label")
    refused(coco(tmp_path / "x.json"), clip, "draws nothing")
    refused(coco(tmp_path / "x.json", (8, 1, [[4, 2, 12, 2, 12, 9]])), clip, "draws nothing")


RUNS = [[50, 50], [-5, 605], [600, "x"], [], "abc"]


@pytest.mark.parametrize("counts", RUNS)
def test_damaged_runs_are_refused(tmp_path, clip, counts):
    pytest.importorskip("pycocotools", reason="pycocotools is an extra")
    refused(coco(tmp_path / "c.json", (7, 1, {"size": SIZE, "counts": counts})), clip, "damaged")
    refused(coco(tmp_path / "c.json", (7, 1, {"size": [10, 15], "counts": [50, 100]})), clip, "damaged", "(10, 15)")


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[4, 2, 12, 2]], ["outline of 2 points"]),
        ([[4, 2, 12, 2, 12]], ["damaged"]),
        ([4, 2, 12, 2, 12, 9], ["damaged"]),
        ([], ["without an outline", "boxes"]),
        (None, ["without an outline", "boxes"]),
    ],
)
def test_damaged_outlines_of_coco_are_refused(tmp_path, clip, segmentation, words):
    refused(coco(tmp_path / "c.json", (7, 1, segmentation)), clip, *words)


def test_bad_outlines_are_refused(tmp_path, clip, monkeypatch):
    path = tmp_path / "x.json"
    cases = {
        "not json": ["cannot be read", "labelme"],
        "[1]": ["no outlines", "labelme"],
        '{"shapes": [{"label": "a"}], "imageHeight": 20, "imageWidth": 30}': ["damaged", "points"],
        '{"annotations": []}': ["damaged", "images"],
    }
    for text, words in cases.items():
        path.write_text(text)
        refusal("x.json", *words, call=given_masks, files={0: str(path)}, clip=clip, names=None)
    coco(path, images=("b.png", "c.png"))
    refusal("0 images named 'a1'", "b.png", call=given_masks, files={0: str(path)}, clip=clip, names=None)
    coco(path, (7, 1, {"size": SIZE, "counts": "abc"}))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    refusal("pip install pycocotools", call=given_masks, files={0: str(path)}, clip=clip, names=None)
    refusal("frame 3", "0 to 2", call=given_masks, files={3: str(path)}, clip=clip, names=None)
