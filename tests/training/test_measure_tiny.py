"""The script that scores queries on labelled frames: what it counts, what it reads as truth, and what it refuses."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans

from vidseg_core import InputError
from vidseg_core.models.registry import data_folder

pytestmark = pytest.mark.training

VOID = 255
TINY = data_folder() / "models" / "tiny"


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).resolve().parents[2] / "scripts" / "measure_tiny.py"
    spec = importlib.util.spec_from_file_location("measure_tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, pictures, names=None, suffix="png"):
    folder.mkdir(parents=True)
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{names[n] if names else f'{n:05}'}.{suffix}")


def scene(count=14, seed=0):
    """Noise of 32x32 in which a brighter square moves: frames, and masks of 0 and 1."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (count, 32, 32, 3), np.uint8)
    masks = np.zeros((count, 32, 32), np.uint8)
    for n in range(count):
        masks[n, 8:24, n % 16 : n % 16 + 16] = 1
    return frames + 90 * masks[..., None], masks


def plain(root, clip="a", count=14, void=()):
    """A clip in CLIP/frames and CLIP/labels; the masks of frames `void` are void (11 is SegNet's number for it)."""
    frames, masks = scene(count)
    masks[list(void)] = 11
    write(root / clip / "frames", frames)
    write(root / clip / "labels", masks)
    return root


def arguments(script, kind, root, *more):
    return script.parse(["model", f"--{kind}", str(root), f"--{kind}-sizes", "32x32", "--pads", "0", *more])


# ---- counting


def by_hand(tokens, truth, classes, clusters, seed):
    """The protocol of a window, token by token and pixel by pixel, for cells of 3x4 pixels; NEAREST takes a cell's middle."""
    f, h, w, _ = tokens.shape
    cells = [(y, x) for y in range(h) for x in range(w)]
    mask = {(y, x): truth[0, 3 * y + 1, 4 * x + 2] for y, x in cells}
    if seed is not None:
        found = KMeans(clusters, n_init=2, random_state=seed).fit(tokens.reshape(f * h * w, -1)).labels_
        cluster = dict(zip(cells, found, strict=False))
        votes = {c: Counter(mask[p] for p in cells if cluster[p] == c and mask[p] < classes) for c in range(clusters)}
        mask = {p: max(range(classes), key=lambda k: (votes[cluster[p]][k], -k)) for p in cells}
    known = [p for p in cells if mask[p] < classes]
    counts = np.zeros((classes, classes), int)
    for i, y, x in np.ndindex(truth.shape):
        if truth[i, y, x] != VOID:
            token = tokens[i, y // 3, x // 4]
            near = sorted(known, key=lambda p: ((token - tokens[0, *p]) ** 2).sum())[:4]
            votes = Counter(mask[p] for p in near)
            counts[truth[i, y, x], max(range(classes), key=lambda k: (votes[k], -k))] += 1
    return counts


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_confusion_and_scores_are_those_of_a_loop_over_pixels(script, seed):
    rng = np.random.default_rng(2)
    truth = rng.choice([0, 0, 1, 3, VOID], (3, 12, 20))  # class 2 does not occur
    assert (script.to_cells(truth[0], (4, 5)) == VOID).any()
    tokens = rng.normal(size=(3, 4, 5, 6))
    bench = script.Benchmark("", [], (40, 32), 5, 4)
    counts, expected = script.confusion(tokens, truth, bench, seed), by_hand(tokens, truth, 4, 5, seed)
    np.testing.assert_array_equal(counts, np.pad(expected, ((0, 0), (0, 1))))  # the last column is for void, never predicted
    hit = [expected[k, k] for k in range(4)]
    ious = [hit[k] / (expected[k].sum() + expected[:, k].sum() - hit[k]) for k in (0, 1, 3)]
    assert script.scores(counts) == pytest.approx((np.mean(ious), sum(hit) / expected.sum()))


@pytest.mark.parametrize("known", [1, 3])
def test_a_first_mask_may_know_fewer_tokens_than_there_are_neighbours(script, known):
    truth = np.full((2, 12, 20), VOID)
    truth[0].reshape(4, 3, 20)[0, :, : 4 * known] = 1
    truth[1] = 1
    tokens = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    counts = script.confusion(tokens, truth, script.Benchmark("", [], (40, 32), 5, 2), None)
    assert counts[1, 1] == counts.sum() == 240 + 12 * known


def test_a_mask_is_reduced_to_the_pixels_in_the_middle_of_its_cells(script):
    mask = np.arange(12 * 20).reshape(12, 20)
    assert script.to_cells(mask, (4, 5)).tolist() == [20 * (3 * y + 1) + 4 * x + 2 for y in range(4) for x in range(5)]
    assert script.to_cells(np.array([[0, VOID]]), (2, 4)).tolist() == [0, 0, VOID, VOID] * 2


def test_clusters_are_named_by_majority_and_void_does_not_vote(script):
    clusters = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 4, 4])  # no token of the first frame is in 3
    mask = np.array([2, 2, 1, VOID, VOID, VOID, 1, VOID, VOID, 2, 1], np.uint8)
    assert script.name_clusters(clusters, mask, 3).tolist() == [2] * 3 + [1] * 4 + [0] * 2 + [1] * 2


# ---- what is read as truth


def test_davis_masks_as_distributed_score_as_numbers_do(script, tmp_path):
    frames, masks = scene()
    official = tmp_path / "official"
    write(official / "JPEGImages" / "480p" / "a", frames)
    write(official / "Annotations" / "480p" / "a", 255 * masks)
    (official / "ImageSets" / "2016").mkdir(parents=True)
    (official / "ImageSets" / "2016" / "val.txt").write_text("a\n")
    (ours,) = script.benchmarks(arguments(script, "davis", official))
    (numbers,) = script.benchmarks(arguments(script, "davis", plain(tmp_path / "plain")))
    lines = [script.row("colour", script.colour, bench, 0, 1) for bench in (ours, numbers)]
    assert lines[0] == lines[1]
    rng = np.random.default_rng(0)
    cells = [line.split(" | ") for line in (lines[0], script.row("", lambda f: rng.normal(size=(14, 4, 4, 3)), ours, 0, 1))]
    colour, random = ([float(cell[n].split()[0]) for n in (3, 5)] for cell in cells)
    assert min(colour) > 0.6 > max(random), "an object that is void leaves nothing to be wrong about"


def test_camvids_void_is_void(script, tmp_path):
    (bench,) = script.benchmarks(arguments(script, "camvid", plain(tmp_path, count=28, void=[3])))
    assert (bench.clusters, bench.classes, [w.name for w in bench.windows]) == (20, 11, ["a@0", "a@14"])
    frames, truth = bench.read(bench.windows[0])
    assert frames.shape == (14, 3, 32, 32) and frames.min() >= -1 and frames.max() <= 1
    assert np.unique(truth[3]).tolist() == [VOID] and np.unique(truth[4]).tolist() == [0, 1]
    np.testing.assert_array_equal(bench.read(bench.windows[1])[1], scene(28)[1][14:])


NAMES = [*map(str, range(1, 13)), "g", "g.k"]
"""Sorted with their suffixes, "g.jpg" is before "g.k.jpg", but "g.png" behind "g.k.png"; and "10" is before "2"."""


def numbered(root, labels=NAMES, frames=NAMES):
    """Frame n is as bright as its mask has rows of 1: n + 1 of 32."""
    rows = np.arange(32)[:, None] * np.ones(32, int)
    write(root / "a" / "frames", [np.full((32, 32, 3), 8 * n + 8, np.uint8) for n in range(len(frames))], frames, "jpg")
    write(root / "a" / "labels", [(rows <= n).astype(np.uint8) for n in range(len(labels))], labels)
    return root


def test_frames_and_labels_are_paired_by_name(script, tmp_path):
    root = numbered(tmp_path)
    for hidden in ("frames/.DS_Store", "frames/._1.jpg", "labels/._1.png"):
        (root / "a" / hidden).write_bytes(b"no image")
    assert [p.stem for p in sorted(root.glob("a/frames/g*"))] != [p.stem for p in sorted(root.glob("a/labels/g*"))]
    (bench,) = script.benchmarks(arguments(script, "davis", root))
    frames, truth = bench.read(bench.windows[0])
    brightness = ((frames[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert brightness == [8 * n + 8 for n in range(14)] and truth[:, :, 0].sum(1).tolist() == list(range(1, 15))


@pytest.mark.parametrize(("labels", "named"), [([*NAMES[:-1], "h"], "h.png"), ([*NAMES[:4], *NAMES[5:]], "5.jpg")])
def test_what_does_not_pair_is_refused(script, tmp_path, labels, named):
    args = arguments(script, "davis", numbered(tmp_path, labels))
    with pytest.raises(InputError, match=rf"{named}.*label"):
        script.benchmarks(args)


def test_short_clips_are_left_out_and_said(script, tmp_path, capsys):
    for clip, count in (("long", 43), ("short", 13), ("shorter", 2)):
        plain(tmp_path, clip, count)
    (bench,) = script.benchmarks(arguments(script, "davis", tmp_path))
    assert [w.name for w in bench.windows] == ["long@0", "long@14", "long@28"]
    assert all(len(w.files) == len(w.labels) == 14 for w in bench.windows)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("14 frames: short, shorter\n")
    (bench,) = script.benchmarks(arguments(script, "davis", tmp_path, "--davis-windows", "2"))
    assert [w.name for w in bench.windows] == ["long@0", "long@14"]


def test_a_set_of_short_clips_is_refused(script, tmp_path, capsys):
    with pytest.raises(InputError, match="no clip has the 14 frames"):
        script.benchmarks(arguments(script, "camvid", plain(tmp_path, count=13)))
    assert capsys.readouterr().err.endswith("14 frames: a\n")


@pytest.mark.parametrize("seen", [False, True])
def test_a_first_mask_that_is_void_in_all_cells_is_refused(script, tmp_path, seen):
    plain(tmp_path, "clip", 28, void=[5, 14])
    path = tmp_path / "clip" / "labels" / "00014.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = 1  # no cell's middle
    mask[4, 4] = 1 if seen else 11
    Image.fromarray(mask).save(path)
    args = arguments(script, "camvid", tmp_path)
    if seen:
        assert len(script.benchmarks(args)[0].windows) == 2
    else:
        with pytest.raises(InputError, match=r"clip@14: .* 00014.png, are void"):
            script.benchmarks(args)


# ---- candidates


def test_two_models_in_folders_of_one_name_are_two(script, monkeypatch):
    monkeypatch.setattr(script, "queries", lambda folder, pad: lambda frames: np.full((1, 1, 1, 2), len(str(folder))))
    args = script.parse(["a/model", "bb/model", "c/other", "--davis", "d", "--no-baselines"])
    table = script.candidates(args, 0)
    assert [name for name in table if "+" not in name] == ["a/model queries", "bb/model queries", "other queries"]
    assert [extract.args[0](None).max() for extract in table.values()] == [7, 7, 8, 8, 7, 7]


def test_tokens_are_divided_by_their_length_if_asked(script, monkeypatch):
    tokens = np.array([3.0, -4.0], np.float32).reshape(1, 1, 1, 2)
    monkeypatch.setattr(script, "queries", lambda folder, pad: lambda frames: tokens)
    monkeypatch.setattr(script, "cnn", lambda blocks, enlarge: lambda frames: tokens)
    found = {}
    for how in ("max", "l2"):
        found[how] = script.candidates(script.parse(["m", "--davis", "d", "--normalise", how]), 0)
        bare, placed, *cnns = [extract(None).ravel().tolist() for name, extract in found[how].items() if "colour" not in name]
        assert bare == pytest.approx([0.75, -1] if how == "max" else [0.6, -0.8]) and cnns == [bare] * 3
        assert placed == pytest.approx([*bare, 0, 0]), "the only cell is in the middle"
    assert list(found["l2"])[:2] == ["m queries, by length", "m queries, by length + 0.15 (y, x)"]
    assert list(found["max"])[:2] == ["m queries", "m queries + 0.5 (y, x)"]


def test_padding_leaves_the_position_as_it_is(script):
    """With positions appended on the padded grid the corners would have less than the weight that the row names."""
    args = script.parse([str(TINY), "--davis", "d", "--no-cnn"])
    frames = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tables = [script.candidates(args, pad) for pad in (0, 16)]
    bare, padded = ([extract(frames) for extract in table.values()] for table in tables)
    assert list(tables[0]) == [*tables[1], "colour + position"] and len(padded) == 2
    for queries, placed in (bare[:2], padded):
        assert queries.shape == (2, 6, 8, 192) and placed.shape == (2, 6, 8, 194)
        np.testing.assert_allclose(np.abs(queries).max(-1), 1, atol=1e-6)
        np.testing.assert_array_equal(placed[..., :-2], queries)
        y, x = np.moveaxis(placed[..., -2:], -1, 0)
        np.testing.assert_allclose(y, np.broadcast_to(np.linspace(-0.5, 0.5, 6)[:, None], y.shape), atol=1e-6)
        np.testing.assert_allclose(x, np.broadcast_to(np.linspace(-0.5, 0.5, 8), x.shape), atol=1e-6)
    assert np.abs(bare[0] - padded[0]).max() > 0.1


@pytest.mark.parametrize("held", [[], ["unet"], ["codec.json"]])
def test_a_folder_without_a_model_is_refused_and_the_hub_not_asked(script, tmp_path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "load_backbone", lambda *_: pytest.fail("asked for what is no folder"))
    for part in held:
        (tmp_path / "owner" / "name" / part).mkdir(parents=True)
    missing = " and no ".join(part for part in ("unet", "codec.json") if part not in held)
    with pytest.raises(InputError, match=f"^owner/name has no {missing}. Give a folder"):
        script.queries(Path("owner/name"), 0)


def test_a_folder_is_read_even_if_it_is_called_as_an_embedded_model(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "unet").mkdir(parents=True)
    (tmp_path / "tiny" / "codec.json").touch()
    with pytest.raises(InputError, match=r"unet/config\.json"):
        script.queries(Path("tiny"), 0)


# ---- the command line


def test_the_table_and_its_progress(script, tmp_path, monkeypatch, capsys):
    bars = []
    monkeypatch.setattr(script, "tqdm", lambda windows, *_, **how: bars.append((len(windows), how["leave"])) or windows)
    monkeypatch.setattr(script, "queries", lambda folder, pad: script.colour)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    root, more = str(plain(tmp_path, count=28)), ["--davis-sizes", "32x32", "--pads", "0", "16", "--seeds", "2", "--no-cnn"]
    assert script.main(["x/model", "--davis", root, *more]) == 0
    header, ruler, *lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in (header, ruler, *lines)}) == 1
    model = ["model queries", "model queries + 0.5 (y, x)"]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| DAVIS, 32x32", pad, name] for pad, names in (("0", [*model, "colour + position"]), ("16", model)) for name in names
    ]
    assert bars == [(2, False)] * 5


def test_a_wrong_input_is_said_alone_with_status_2(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    more = ["--davis-sizes", "32x32", "--pads", "0"]
    assert script.main(["none", "--davis", str(tmp_path / "gone"), *more]) == 2
    assert script.main([str(tmp_path / "none"), "--davis", str(plain(tmp_path / "d")), *more]) == 2
    told = capsys.readouterr()
    assert not told.out and [line.split(": ")[0] for line in told.err.splitlines()] == ["measure_tiny"] * 2
    assert "gone is not a folder" in told.err and "none has no unet and no codec.json" in told.err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seeds", "0"], "--seeds 0: give at least 1"),
        (["--davis-windows", "0"], "--davis-windows 0: give at least 1"),
        (["--davis-windows", "-1"], "--davis-windows -1: give at least 1"),
        (["--threads", "0"], "--threads 0: give at least 1"),
        (["--pads", "0", "-16"], "--pads -16: give 0 or positive multiples of 16"),
        (["--pads", "32", "8"], "--pads 8: give 0 or positive multiples of 16"),
        (["--davis-sizes", "32x24"], "32x24: both sides must be positive multiples of 16"),
        (["--davis-sizes", "0x32"], "0x32: both sides must be positive multiples of 16"),
    ],
)
def test_bad_arguments_are_refused(script, capsys, more, sentence):
    with pytest.raises(SystemExit) as stop:
        script.main(["model", "--davis", "d", *more])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_nothing_to_measure_on_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["model"])
    assert "give --camvid, --davis or both" in capsys.readouterr().err


def test_padding_must_fit_into_the_frames(script, tmp_path):
    plain(tmp_path)
    with pytest.raises(InputError, match="--pads 32: frames of 32x32"):
        script.benchmarks(arguments(script, "davis", tmp_path, "--pads", "32"))
    assert script.benchmarks(arguments(script, "davis", tmp_path, "--pads", "16"))
