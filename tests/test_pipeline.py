"""The whole of it: the contract of VidSeg, real clips against hand-drawn masks, the paper's protocol step by step."""

import dataclasses
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from full_size_memory import peak
from sklearn.neighbors import KNeighborsClassifier

from vidseg_core import (
    ContextSettings,
    FeatureSettings,
    InputError,
    Segmentation,
    Settings,
    VidSeg,
    generated_clip,
    paper,
    reference_settings,
    sample_clip,
)
from vidseg_core.common import enlarge
from vidseg_core.context import Votes, kmeans
from vidseg_core.evaluation.extractors import colour_features
from vidseg_core.evaluation.metrics import confusion, flicker, mean_iou

SMALL = (96, 128)


NATIVE = FeatureSettings(scales=(1.0,))
"""Cells of 8 pixels: less work, and some tests count them."""


def quick(**context):
    return Settings(features=NATIVE, context=ContextSettings(**context), working_size=SMALL, window=4)


def bilinear(cells, size):
    """The baseline of stage 4: each mask enlarged bilinearly, the largest wins."""
    values = torch.from_numpy(np.unique(cells))
    masks = (torch.from_numpy(cells)[:, None] == values[None, :, None, None]).float()
    return values[torch.nn.functional.interpolate(masks, size=size, mode="bilinear").argmax(1)].numpy()


# mIoU of the pixels on the drawn frames after the first, and the last of them that is asked for: measured 0.912 and 0.922
BOUNDS = {"cup": (0.892, 47), "box": (0.902, 24)}


@pytest.fixture(scope="module", params=BOUNDS)
def scored(request, backbone):
    """mIoU against the hand-drawn masks after each stage, and the pixels of the first three frames; the first mask names the
    cells and is not scored. Stage 4 runs on these frames alone."""
    sample, vidseg, last = sample_clip(request.param), VidSeg(backbone), BOUNDS[request.param][1]
    drawn = [n for n in sample.masks if 0 < n <= last]
    windows = list(vidseg.cells(sample.frames[: last + 1], first_mask=sample.masks[0]))
    coarse, refined = (np.concatenate([getattr(w, name) for w in windows]) for name in ("coarse", "refined"))
    shares = np.concatenate([w.votes[1] for w in windows])
    truth, size, shown = np.stack([sample.masks[n] for n in drawn]), sample.frames.shape[1:3], [0, 1, 2, *drawn]
    pixels = vidseg.enlarge(
        sample.frames[shown],
        Votes(torch.from_numpy(shares[shown]), windows[0].scene.named(torch.from_numpy(shares[:1])).numbers),
    )
    maps = {"coarse": enlarge(coarse[drawn], size), "bilinear": bilinear(refined[drawn], size), "pixels": pixels[3:]}
    scores = {name: mean_iou(confusion(m, truth, len(sample.names))) for name, m in maps.items()}
    return request.param, scores, pixels[:3]


@pytest.mark.slow
def test_real_clips_against_hand_drawn_masks(scored):
    name, scores, _ = scored
    assert scores["pixels"] > BOUNDS[name][0], scores


@pytest.mark.slow
def test_pixels_are_not_below_cells_nor_bilinear(scored):
    _, scores, _ = scored
    assert scores["pixels"] >= scores["coarse"], scores
    assert scores["pixels"] >= scores["bilinear"] - 0.003, scores  # level on one clip, ahead on the other


@pytest.mark.slow
def test_pixels_are_stable_in_time(scored):
    """Share of pixels that change label from frame to frame; a hand that moves changes some: measured 0.012 and 0.005."""
    assert flicker(scored[2]) < 0.02


@pytest.fixture(scope="module")
def told():
    """What was said of the progress of `plain`."""
    return []


@pytest.fixture(scope="module")
def plain(backbone, clip, told):
    """A run without a mask: windows of four and of two frames."""
    return VidSeg(backbone, quick())(clip.frames, progress=lambda stage, frames: told.append((stage, frames)))


def joined(windows, name):
    return np.concatenate([getattr(w, name) for w in windows])


def test_result_is_as_documented(backbone, clip):
    result = VidSeg(backbone, quick())(clip.frames, first_mask=clip.labels[0])
    assert isinstance(result, Segmentation)
    assert result.features.context.shape == (6, 12, 16, 194) and result.features.match.shape == (6, 12, 16, 96)
    assert result.coarse.shape == result.refined.shape == result.confidence.shape == (6, 12, 16)
    assert result.labels.shape == (6, *SMALL) and np.issubdtype(result.labels.dtype, np.integer)
    assert set(np.unique(result.labels)) <= set(np.unique(clip.labels[0])) | {255} <= set(result.names)
    assert set(result.timings) == {"features", "context", "refine", "upsample"} and min(result.timings.values()) > 0
    assert result.confidence.min() > 0 and result.confidence.max() <= 1
    assert VidSeg(backbone, quick())(clip.frames[:1], keep=()).features is None


def test_another_seed_gives_other_clusters(backbone, clip, plain):
    """That the same seed gives the same labels is said by the stream below."""
    other = next(VidSeg(backbone, dataclasses.replace(quick(), seed=1)).cells(clip.frames))
    assert (plain.coarse[:4] != other.coarse).any()


def test_stream_gives_the_same_window_by_window(backbone, clip, plain):
    asked = []

    def frames():
        for n, frame in enumerate(clip.frames):
            asked.append(n)
            yield frame

    stream = VidSeg(backbone, quick()).stream(frames())
    first = next(stream)
    assert max(asked) == 3, "the second window was read before it was needed"
    windows = [first, *stream]
    assert [w.start for w in windows] == [0, 4]
    assert (joined(windows, "labels") == plain.labels).all()


def test_progress_is_told_after_each_stage_of_each_window(plain, told):
    assert told == [(stage, frames) for frames in (4, 2) for stage in ("features", "context", "refine", "upsample")]


def test_cells_are_those_of_the_whole_run(backbone, clip, plain, monkeypatch):
    monkeypatch.setattr("vidseg_core.pipeline.upsample", lambda *_: pytest.fail("stage 4 ran"))
    windows = list(VidSeg(backbone, quick()).cells(clip.frames))
    assert all(w.labels is None and set(w.seconds) == {"features", "context", "refine"} for w in windows)
    assert all((joined(windows, name) == getattr(plain, name)).all() for name in ("coarse", "refined", "confidence"))


def test_another_first_stage(backbone, clip):
    """Mean colours as features: everything behind them runs as ever."""
    vidseg = VidSeg(backbone, quick(num_clusters=3), colour_features(backbone, quick().resolve(backbone.model)))
    result = vidseg(clip.frames[:2])
    assert result.features.context.shape == (2, 12, 16, 5) and result.labels.shape == (2, *SMALL)


@pytest.mark.slow
def test_granularity_is_a_lookup_and_only_stage_4_runs_again(backbone, clip, plain, monkeypatch):
    vidseg = VidSeg(backbone, quick())
    assert len(np.unique(plain.refined)) > 4
    monkeypatch.setattr(vidseg, "extract", lambda *_: pytest.fail("stage 1 ran again"))
    fewer = vidseg.resegment(plain, 4)
    assert len(np.unique(fewer.refined)) <= 4 and (fewer.refined == plain.at(4)[1]).all()
    assert set(np.unique(fewer.labels)) <= set(np.unique(fewer.refined)) <= set(fewer.names)
    assert fewer.settings.context.num_segments == 4
    numbers, shares = fewer.scene.segment, plain.votes[1]
    sums = np.stack([shares[..., numbers == n].sum(-1) for n in np.unique(numbers)], -1)
    assert (np.unique(numbers)[sums.argmax(-1)] == fewer.refined).all() and np.abs(sums.max(-1) - fewer.confidence).max() < 1e-6
    direct = VidSeg(backbone, quick(num_segments=4))(clip.frames, keep=())
    assert (direct.labels == fewer.labels).all()
    with pytest.raises(InputError, match="mask"):
        VidSeg(backbone, quick())(clip.frames[:1], first_mask=clip.labels[0]).at(3)


def test_names(backbone, clip):
    vidseg = VidSeg(backbone, quick(num_segments=4))
    unnamed = next(vidseg.cells(clip.frames)).refined
    a, b, *_ = sorted(set(np.unique(unnamed).tolist()))
    named = vidseg(clip.frames[:4], names={a: "rest", b: "rest"}, keep=())
    assert named.names[a] == "rest" and b not in named.names
    assert (named.refined == np.where(unnamed == b, a, unnamed)).all()
    assert (named.at(4)[1] == named.refined).all()
    again = vidseg.resegment(named, 4)
    assert again.names == named.names and (again.refined == named.refined).all()
    with pytest.raises(InputError, match="segment 255"):
        next(VidSeg(backbone, quick()).cells(clip.frames, names={255: "void"}))
    with pytest.raises(InputError, match="200"):
        next(VidSeg(backbone, quick()).cells(clip.frames, names={200: "x"}))
    names = ["rest", "leaf", "blossom", "other"]
    classes = next(VidSeg(backbone, quick()).cells(clip.frames, first_mask=clip.labels[0], names=names)).scene
    assert classes.names == {0: "rest", 1: "leaf", 2: "blossom", 255: "void"}


def test_void_in_the_mask_stays_void(backbone, clip):
    mask = np.full(SMALL, 255)
    mask[:, :64] = 5
    result = VidSeg(backbone, quick(num_clusters=20))(clip.frames[:1], first_mask=mask, keep=())
    assert set(np.unique(result.labels)) == {5, 255}
    assert (result.labels[0, :, 64:] == 255).mean() > 0.7 > 0.3 > (result.labels[0, :, :64] == 255).mean()


@pytest.mark.parametrize("count", [1, 5])
def test_short_clips(backbone, clip, count):
    assert VidSeg(backbone, quick())(clip.frames[:count], keep=()).labels.shape[0] == count


@pytest.mark.slow
def test_frames_of_any_size_get_labels_of_that_size(backbone):
    """16x16 is enlarged to the working size, 1600x1200 shrunk; the labels have the frames' own size."""
    rng = np.random.default_rng(0)
    for height, width in ((16, 16), (1200, 1600), (50, 400)):
        frames = rng.integers(0, 15, (1, height, width, 3)).astype(np.uint8)
        frames[:, :, width // 2 :] += 220
        result = VidSeg(backbone, Settings(context=ContextSettings(num_clusters=2)))(frames, keep=())
        assert result.labels.shape == (1, height, width)
        left, right = result.labels[0, :, : width // 4], result.labels[0, :, -width // 4 :]
        assert np.bincount(left.ravel()).argmax() != np.bincount(right.ravel()).argmax()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((2, 8, 8), np.uint8), r"uint8 \(8, 8\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3)), "float64"),
    ],
)
def test_frames_that_are_none_are_refused(backbone, frames, words):
    with pytest.raises(InputError, match=words):
        VidSeg(backbone)(frames)


def test_frames_that_change_size_are_refused(backbone):
    frames = [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)]
    with pytest.raises(InputError, match=r"\(32, 48\).*\(32, 32\)"):
        next(VidSeg(backbone, quick()).stream(iter(frames)))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((9, 9), int), r"\(9, 9\).*\(96, 128\)"),
        (np.full(SMALL, 300), "300"),
        (np.full(SMALL, "1"), "give whole numbers"),
        (np.full(SMALL, 1.0), "float64"),
        (np.full(SMALL, -1), "-1"),
        (np.full(SMALL, 255), "void everywhere"),
        (np.where(np.arange(128) < 64, 0, 255)[None].repeat(96, 0), "save the white as 1"),
        (np.random.default_rng(0).integers(0, 30, (12, 16)).repeat(8, 0).repeat(8, 1), "30 classes.*20 clusters"),
    ],
)
def test_masks_that_do_not_fit_are_refused_at_every_entrance(backbone, clip, mask, words):
    vidseg = VidSeg(backbone, quick(naming="clusters"))
    for enter in (vidseg, vidseg.stream, vidseg.cells):
        with pytest.raises(InputError, match=words):
            enter(clip.frames, first_mask=mask)


@pytest.mark.parametrize("naming", ["cells", "clusters"])
def test_classes_that_no_cell_takes_are_reported(backbone, clip, naming):
    mask = clip.labels[0].copy()
    mask[40:43, 60:63] = 9
    scene = next(VidSeg(backbone, quick(num_clusters=5, naming=naming)).cells(clip.frames, first_mask=mask)).scene
    assert 9 in scene.lost and 0 not in scene.lost


def test_a_mask_names_cells_unless_clusters_are_asked_for(backbone, clip):
    """Eight by eight pixels make a cell of their own class, but never a cluster; and more classes than clusters fit."""
    mask = np.arange(192).reshape(12, 16).repeat(8, 0).repeat(8, 1)
    first = next(VidSeg(backbone, quick(num_clusters=5, neighbours=1)).cells(clip.frames, first_mask=mask))
    assert (first.coarse[0] == mask[::8, ::8]).all() and first.scene.lost == ()
    mask = np.where(mask == 100, 1, 0)
    first = next(VidSeg(backbone, quick(num_clusters=5, naming="clusters")).cells(clip.frames, first_mask=mask))
    assert (first.coarse == 0).all() and first.scene.lost == (1,)


def test_no_seam_between_windows(backbone, clip):
    """With nothing to learn from later windows, one window of six is two of three, but for the frames at the end of a window,
    which do not hear the next."""
    context = ContextSettings(neighbours=1, max_context=None)
    runs = []
    for window in (3, 6):
        settings = dataclasses.replace(quick(), window=window, context=context)
        results = list(VidSeg(backbone, settings).cells(clip.frames, first_mask=clip.labels[0]))
        runs.append((np.concatenate([r.coarse for r in results]), np.concatenate([r.confidence for r in results])))
    (short, confidence), (long, expected) = runs
    assert (short[:3] == long[:3]).all() and np.allclose(confidence[0], expected[0], atol=1e-6)
    same = (short == long).all(0)
    same[:, 1:-1] &= same[:, 2:] & same[:, :-2]
    same[1:-1] &= same[2:] & same[:-2]
    inner = np.s_[1:-1, 1:-1]
    assert same[inner].mean() > 0.5
    assert np.abs(confidence[3:] - expected[3:])[:, 1:-1, 1:-1][:, same[inner]].max() < 1e-5


def test_settings_that_do_not_fit_are_refused(backbone, clip, plain):
    with pytest.raises(InputError, match=r"\(100, 125\) \(height, width\).*multiples of 16.*96, 128"):
        VidSeg(backbone, Settings(working_size=(100, 125)))
    for features, words in (({"timestep": 5000}, "999"), ({"blocks": ("up_blocks.9",)}, "up_blocks.9")):
        with pytest.raises(InputError, match=words):
            VidSeg(backbone, Settings(features=FeatureSettings(**features)))
    with pytest.raises(InputError, match="feature"):
        VidSeg(backbone, quick())(clip.frames, keep=("feature",))
    with pytest.raises(InputError, match="160 tokens"):
        quick(max_context=159)
    with pytest.raises(InputError, match="0 segments"):
        plain.at(0)
    with pytest.raises(InputError, match="leave it out"):
        VidSeg(backbone, quick(num_segments=3))(clip.frames, first_mask=clip.labels[0])
    with pytest.raises(InputError, match="200 clusters cannot be made of 192 tokens"):
        VidSeg(backbone, quick(num_clusters=200))(clip.frames[:1])


def test_a_scene_of_another_size_is_refused(backbone, clip):
    (window,) = VidSeg(backbone, quick(num_clusters=4)).cells(clip.frames[:2])
    for other in (
        dataclasses.replace(quick(), working_size=(64, 64)),
        dataclasses.replace(quick(), features=FeatureSettings()),
    ):
        with pytest.raises(InputError, match="the scene has features of"):
            list(VidSeg(backbone, other).cells(clip.frames[2:4], scene=window.scene))


def test_the_paper_protocol_step_by_step(backbone, clip):
    """FIELD, with scikit-learn's k-NN: fitted on frame 0 of the first window, whose clusters have the classes of the mask;
    after each window the reference set is all of that window's tokens with their refined labels."""
    settings = dataclasses.replace(reference_settings("tiny"), working_size=SMALL, window=3)
    vidseg = VidSeg(backbone, settings)
    first, second = vidseg.cells(clip.frames, first_mask=clip.labels[0])
    tokens = [w.features.context.numpy() for w in (first, second)]
    clusters = kmeans(first.features.context.flatten(0, 2), settings.context, settings.seed)
    assigned = clusters.labels.reshape(3, 12, 16)
    classes = paper.name_clusters(assigned[0], clip.labels[0], 20).numpy()[assigned[0].numpy()]
    knn = KNeighborsClassifier(4).fit(tokens[0][0].reshape(192, -1), classes.ravel())
    assert (first.coarse.ravel() == knn.predict(tokens[0].reshape(576, -1))).mean() > 0.998
    refined = paper.refine(first.features.match, torch.from_numpy(first.coarse).long())[0].numpy()
    assert (first.refined == refined).all()
    knn = KNeighborsClassifier(4).fit(tokens[0].reshape(576, -1), refined.ravel())
    assert (second.coarse.ravel() == knn.predict(tokens[1].reshape(576, -1))).mean() > 0.998


def test_stages_on_the_generated_clip(backbone):
    """Accuracy against the exact labels after each stage, over two windows (measured: 99.3, 99.3, 98.9 %)."""
    clip = generated_clip(num_frames=4)
    result = VidSeg(backbone, Settings(window=3))(clip.frames, first_mask=clip.labels[0], keep=())
    (h, w), (height, width) = result.coarse.shape[1:], clip.labels.shape[1:]
    centres = ((2 * np.arange(n) + 1) * size // (2 * n) for n, size in ((h, height), (w, width)))
    cells = clip.labels[:, *np.ix_(*centres)]
    shares = [(result.coarse == cells).mean(), (result.refined == cells).mean(), (result.labels == clip.labels).mean()]
    assert min(shares) > 0.98, shares


def test_memory_does_not_grow_with_the_clip(backbone):
    """What torch holds at the most, for three windows and for one. They leave labels, votes and small scenes: measured 1.14."""
    frames = generated_clip(num_frames=6, size=(64, 64)).frames
    context = ContextSettings(num_clusters=3, max_context=64, num_segments=1)
    vidseg = VidSeg(backbone, Settings(context=context, working_size=(64, 64), window=2))
    peaks = [peak(lambda count=count: vidseg(frames[:count], keep=())) for count in (2, 6)]
    assert peaks[1] < 1.2 * peaks[0], peaks


@pytest.mark.slow
def test_an_installed_copy_works_without_the_repository(tmp_path):
    """The wheel alone, unpacked elsewhere: model, clips and code."""
    root = __file__.rsplit("/tests/", 1)[0]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, root], check=True
    )
    wheel = next(tmp_path.glob("*.whl"))
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import vidseg_core, numpy as np; from vidseg_core import *; s = sample_clip('cup');"
        "small = Settings(working_size=(96, 128));"
        "r = VidSeg(load_backbone('tiny'), small)(s.frames[:1], first_mask=s.masks[0]);"
        "print(vidseg_core.__file__, r.labels.shape, sorted(set(np.unique(r.labels).tolist()) - set(s.names)))"
    )
    output = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path / "site", text=True)
    assert str(tmp_path) in output and "(1, 240, 320) []" in output
