"""Each layout as its owner distributes it, in small folders made here; the real ones if VIDSEG_DATA points to them."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidseg_core.common import InputError
from vidseg_core.evaluation.datasets import READERS, SOURCES, open_dataset
from vidseg_core.evaluation.labelled import CAMVID_11, CITYSCAPES_IDS

SIZE = (24, 32)
COLOURS = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Car": (64, 0, 128), "LaneMkgsDriv": (128, 0, 192),
    "Sky": (128, 128, 128), "Void": (0, 0, 0), "Wall": (64, 192, 0),
}  # fmt: skip


def image(path, values=None, size=SIZE):
    """A picture, or label values as a grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(0).integers(0, 256, (*size, 3))
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def halves(left, right, size=SIZE):
    """A mask with one value on the left and another on the right."""
    mask = np.full(size, left, np.uint8)
    mask[:, size[1] // 2 :] = right
    return mask


def ends(labels):
    return labels[0, 0], labels[0, -1]


@pytest.fixture
def camvid(tmp_path):
    """The original: all drives in one folder, labels as colours. (The real file has 32 lines.)"""
    lines = [f"{r} {g} {b}\t\t{name}" for name, (r, g, b) in COLOURS.items()]
    (tmp_path / "label_colors.txt").write_text("\n".join(lines) + "\n")
    for name in ("0001TP_006690", "0001TP_006720", "Seq05VD_f00000"):
        image(tmp_path / "701_StillsRaw_full" / f"{name}.png")
        pixels = np.array([COLOURS["Archway"], COLOURS["Void"]])[(halves(0, 1))]
        pixels[3, 3] = 1, 2, 3
        image(tmp_path / "LabeledApproved_full" / f"{name}_L.png", pixels)
    return tmp_path


def test_camvid_in_its_original_colours(camvid):
    dataset = open_dataset("camvid", camvid)
    assert [(c.name, len(c.files)) for c in dataset.clips] == [("0001TP", 2), ("Seq05VD", 1)] and len(dataset.classes) == 11
    labels, strays = dataset.clips[0].read_labels(1)
    assert ends(labels) == (list(CAMVID_11).index("building"), 255) and labels[3, 3] == 255 and strays == ("#010203",)


def test_camvid_with_all_classes_of_its_colour_file(camvid, monkeypatch):
    lines = [f"{n} {n} 7 Filler{n}" for n in range(32 - len(COLOURS))]
    with (camvid / "label_colors.txt").open("a") as file:
        file.write("\n".join(lines))
    dataset = open_dataset("camvid32", camvid)
    assert len(dataset.classes) == 32 and ends(dataset.clips[0].truth(0)) == (dataset.classes.index("Archway"), 255)


def test_camvid_as_segnet_prepared_it(tmp_path):
    for split, name in (
        ("test", "0001TP_008550"),
        ("test", "Seq05VD_f00000"),
        ("test", "Seq05VD_f00030"),
        ("val", "0016E5_07959"),
    ):
        image(tmp_path / split / f"{name}.png")
        image(tmp_path / f"{split}annot" / f"{name}.png", halves(10, 11))
    dataset = open_dataset("camvid", tmp_path)
    assert [(c.name, len(c.labels)) for c in dataset.clips] == [("0001TP", 1), ("Seq05VD", 2)]
    assert ends(dataset.clips[0].truth(0)) == (10, 255), "11 is void"
    assert [c.name for c in open_dataset("camvid", tmp_path, "val").clips] == ["0016E5"]
    with pytest.raises(InputError, match="32 classes"):
        open_dataset("camvid32", tmp_path)


def test_cityscapes_labels_the_twentieth_frame(tmp_path):
    mask = halves(CITYSCAPES_IDS["sky"], 4)
    mask[0, 1] = 77
    image(tmp_path / "gtFine" / "val" / "ulm" / "ulm_000003_000119_gtFine_labelIds.png", mask)
    sequence = tmp_path / "leftImg8bit_sequence" / "val" / "ulm"
    for n in range(100, 131):
        image(sequence / f"ulm_000003_{n:06}_leftImg8bit.png")
    dataset = open_dataset("cityscapes", tmp_path)
    clip = dataset.clips[0]
    assert len(clip.files) == 30 and list(clip.labels) == [19] and clip.files[19].name == "ulm_000003_000119_leftImg8bit.png"
    labels, strays = clip.read_labels(19)
    assert ends(labels) == (10, 255) and strays == ("77",), "trainId of sky; 'static' is not evaluated"
    assert clip.truth(0) is None and dataset.protocol == "named" and len(dataset.classes) == 19
    (sequence / "ulm_000003_000105_leftImg8bit.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 30 frames.*000105.*leftImg8bit_sequence"):
        open_dataset("cityscapes", tmp_path)


def test_vspw_counts_from_one_and_has_stray_values(tmp_path):
    (tmp_path / "val.txt").write_text("10_a\n9_b\n")
    for name, count in (("10_a", 3), ("9_b", 2), ("not_listed", 1)):
        for n in range(count):
            image(tmp_path / "data" / name / "origin" / f"{n:08}.jpg")
            mask = halves(124, 0)
            mask[0, 1:3] = 252, 1
            image(tmp_path / "data" / name / "mask" / f"{n:08}.png", mask)
    dataset = open_dataset("vspw", tmp_path)
    assert [(c.name, len(c.labels)) for c in dataset.clips] == [("10_a", 3), ("9_b", 2)] and dataset.official_vc
    labels, strays = dataset.clips[0].read_labels(2)
    assert ends(labels) == (123, 255) and labels[0, 1:3].tolist() == [255, 0] and strays == ("252",)
    assert len(dataset.classes) == 124


@pytest.fixture
def davis(tmp_path):
    for name in ("bear", "camel"):
        for n in range(4):
            image(tmp_path / "JPEGImages" / "480p" / name / f"{n:05}.jpg")
            image(tmp_path / "Annotations" / "480p" / name / f"{n:05}.png", halves(0, 2 if name == "bear" else 1))
    for year in ("2016", "2017"):
        path = tmp_path / "ImageSets" / year / "val.txt"
        path.parent.mkdir(parents=True)
        path.write_text("bear\ncamel\n" if year == "2017" else "camel\n")
    return tmp_path


def test_davis_with_objects_together_and_apart(davis):
    one, many = open_dataset("davis", davis), open_dataset("davis17", davis)
    assert [c.name for c in one.clips] == ["camel"] and one.classes == ("ground", "object")
    assert [c.name for c in many.clips] == ["bear", "camel"] and len(many.classes) == 3
    assert ends(many.clips[0].truth(0)) == (0, 2)
    assert [n for n in range(4) if one.clips[0].scored(n)] == [1, 2], "neither the first nor the last frame"


def test_davis_2016_as_it_was_first_distributed(davis):
    """Masks of 0 and 255, and a list of pairs of paths."""
    for path in (davis / "Annotations").rglob("*.png"):
        image(path, halves(0, 255))
    for path in (davis / "ImageSets").rglob("*.txt"):
        path.unlink()
    (davis / "ImageSets" / "480p").mkdir()
    lines = [f"/JPEGImages/480p/bear/{n:05}.jpg /Annotations/480p/bear/{n:05}.png" for n in range(4)]
    (davis / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines))
    dataset = open_dataset("davis", davis)
    assert [c.name for c in dataset.clips] == ["bear"] and ends(dataset.clips[0].truth(0)) == (0, 1)


def test_labels_stand_upright_as_their_frames_do(tmp_path):
    """A phone's portrait photo: the pixels lie on their side, and a note says how to turn them."""
    (tmp_path / "frames").mkdir()
    exif = Image.Exif()
    for suffix in ("jpg", "png"):
        exif[274] = 6
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "frames" / f"{suffix}.{suffix}", exif=exif)
        image(tmp_path / "labels" / f"{suffix}.png", halves(0, 1, SIZE[::-1]))
    clip = open_dataset("folder", tmp_path).clips[0]
    assert [clip.truth(n).shape for n in range(2)] == [frame.shape[:2] for frame in clip.frames] == [SIZE[::-1]] * 2
    image(tmp_path / "labels" / "jpg.png", halves(0, 1))
    with pytest.raises(InputError, match=r"is 32x24 pixels, but its frame jpg\.jpg is 24x32"):
        clip.truth(0)


@pytest.fixture
def folder(tmp_path):
    for n in (1, 2, 10):
        image(tmp_path / "frames" / f"frame{n}.jpg")
    image(tmp_path / "labels" / "frame1.png", halves(0, 2))
    image(tmp_path / "labels" / "frame10.png", halves(1, 255))
    return tmp_path


def test_a_plain_folder(folder):
    dataset = open_dataset("folder", folder)
    clip = dataset.clips[0]
    assert len(dataset.classes) == 3 and sorted(clip.labels) == [0, 2], "in natural order, and not each frame is labelled"
    assert ends(clip.truth(2)) == (1, 255) and clip.truth(1) is None
    assert [f.shape for f in clip.frames] == [(*SIZE, 3)] * 3 and clip.read(2).num_frames == 1
    (folder / "names.json").write_text('{"0": "rest", "1": "cup"}')
    dataset = open_dataset("folder", folder)
    assert dataset.classes == ("rest", "cup")
    labels, strays = dataset.clips[0].read_labels(0)
    assert ends(labels) == (0, 255) and strays == ("2",)


@pytest.mark.parametrize("text", ['{"0": "rest", "1": "cup", "2": "lid", "255": "void"}', '["rest",\n"cup",\n"lid"]'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_names_of_a_folder_are_those_of_its_values(folder, text, encoding):
    (folder / "names.json").write_text(text, encoding=encoding)
    dataset = open_dataset("folder", folder)
    assert dataset.classes == ("rest", "cup", "lid")
    assert ends(dataset.clips[0].read_labels(0)[0]) == (0, 2) and ends(dataset.clips[0].read_labels(2)[0]) == (1, 255)


def test_lists_with_a_byte_order_mark(camvid, davis):
    for path in (camvid / "label_colors.txt", davis / "ImageSets" / "2017" / "val.txt"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert open_dataset("camvid", camvid).clips[0].truth(1)[0, 0] == list(CAMVID_11).index("building")
    assert open_dataset("davis17", davis).clips


def test_folders_of_clips_in_parts(folder, tmp_path):
    root = tmp_path.parent / "set"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for part in ("frames", "labels"):
            (root / name / part).symlink_to(folder / part)
    dataset = open_dataset("folder", root)
    assert [c.name for c in dataset.clips] == ["a", "b"]
    parts = dataset.restart(2).clips
    assert [(p.name, len(p.files), sorted(p.labels)) for p in parts] == [
        ("a@0", 2, [0]), ("a@2", 1, [0]), ("b@0", 2, [0]), ("b@2", 1, [0]),
    ]  # fmt: skip
    assert ends(parts[1].truth(0)) == (1, 255)
    assert pickle.loads(pickle.dumps(parts[1])).files == parts[1].files, "clips travel to other processes"


@pytest.mark.parametrize("dataset", ["folder", "davis", "camvid"])
def test_links_are_clips_of_their_own(tmp_path, dataset):
    """Links are called as they are here, wherever they lead: /first/take and /second/take are a and b."""
    (root := tmp_path / "set").mkdir()
    for n, name in enumerate(("a", "b")):
        clip = tmp_path / name / "take"
        for part, values in (("frames", None), ("labels", halves(0, 1))):
            for i in range(2 + n):
                image(clip / part / f"{i}.png", values)
        (root / name).symlink_to(clip)
    assert [(c.name, c.num_frames) for c in open_dataset(dataset, root).clips] == [("a", 2), ("b", 3)]
    assert [c.name for c in open_dataset(dataset, root / "a").clips] == ["a"]


def test_a_set_is_called_like_its_folder_from_within_too(folder, monkeypatch):
    (folder / "frames" / "inside").mkdir()
    for place, root in ((folder, "."), (folder / "frames", ".."), (folder.parent, folder.name)):
        monkeypatch.chdir(place)
        assert [c.name for c in open_dataset("folder", root).clips] == [folder.name]


@pytest.mark.parametrize("name", ["davis17", "vspw"])
def test_a_clip_that_is_listed_twice_counts_once(davis, name):
    path = davis / "ImageSets" / "2017" / "val.txt"
    if name == "vspw":
        path = davis / "val.txt"
        for clip in ("bear", "camel"):
            image(davis / "data" / clip / "origin" / "0.jpg")
            image(davis / "data" / clip / "mask" / "0.png", halves(1, 2))
    path.write_text("bear\ncamel\nbear\n")
    assert [c.name for c in open_dataset(name, davis).clips] == ["bear", "camel"]


def test_clips_of_one_name_are_refused(folder, monkeypatch):
    """Results are kept by name: the second would have those of the first."""

    def twice(root, split):
        dataset = READERS["folder"](root, split)
        return dataclasses.replace(dataset, clips=dataset.clips * 2)

    monkeypatch.setitem(READERS, "twice", twice)
    monkeypatch.setitem(SOURCES, "twice", "nowhere")
    with pytest.raises(InputError, match=f"two clips are called '{folder.name}'.*rename"):
        open_dataset("twice", folder)


@pytest.mark.parametrize("name", READERS)
def test_a_set_that_is_not_there_says_where_to_get_it(name, tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"(?i)licence|terms there"):
            open_dataset(name, root)
        with pytest.raises(InputError, match=r"Expected|a folder with"):
            open_dataset(name, root)


def test_a_clip_of_the_list_that_is_missing(davis):
    (davis / "ImageSets" / "2017" / "val.txt").write_text("zebra\n")
    with pytest.raises(InputError, match="zebra is missing"):
        open_dataset("davis17", davis)


def test_wrong_folders_are_refused(folder):
    with pytest.raises(InputError, match="no data set 'kitti'"):
        open_dataset("kitti", folder)
    image(folder / "labels" / "frame3.png", halves(0, 1))
    with pytest.raises(InputError, match=r"frame3\.png is a label without a frame"):
        open_dataset("folder", folder)
    image(folder / "labels" / "frame3.png").unlink()
    image(folder / "labels" / "frame1.png", halves(0, 2, (12, 32)))
    with pytest.raises(InputError, match=r"32x12 pixels, but its frame frame1\.jpg is 32x24"):
        open_dataset("folder", folder).clips[0].truth(0)
    for path in (folder / "labels").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no labels for any of its 3 frames"):
        open_dataset("folder", folder)


@pytest.mark.skipif("VIDSEG_DATA" not in os.environ, reason="VIDSEG_DATA does not point to the real data")
def test_the_real_data():
    root = Path(os.environ["VIDSEG_DATA"])
    for name, classes, clips in (("camvid", 11, 1), ("davis", 2, 4)):
        dataset = open_dataset(name, root / name)
        assert len(dataset.classes) == classes and len(dataset.clips) == clips
        for clip in dataset.clips:
            assert len(clip.labels) == len(clip.files) >= 42
            for number in (0, 17, len(clip.files) - 1):
                labels, strays = clip.read_labels(number)
                assert not strays and labels.shape == clip.frames.size and len(np.unique(labels)) > 1
