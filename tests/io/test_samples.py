"""The sample clips: what is on disk is what data/README.md says, and the generated clip's truth is true."""

import importlib.util
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from scipy import ndimage

from vidseg_core.io.samples import data_folder, generated_clip, sample_clip
from vidseg_core.models import registry

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {"cup": {0: "wall", 1: "cup", 2: "hand"}, "box": {0: "rest", 1: "box", 2: "hand", 3: "cloth"}}
DRAWN = [0, 12, 24, 36, 47]


@pytest.fixture(scope="module", params=["cup", "box"])
def clip(request):
    return request.param, sample_clip(request.param)


@pytest.fixture(scope="module")
def make_clips():
    spec = importlib.util.spec_from_file_location("make_clips", ROOT / "scripts" / "make_clips.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(
    scope="module", params=[(0, False, (240, 320)), (1, True, (240, 320)), (2, True, (120, 200)), (3, False, (301, 160))]
)
def generated(request):
    seed, late, size = request.param
    return generated_clip(num_frames=20, size=size, seed=seed, late=late)


def warp(picture, flow):
    """The next frame seen from this one: `picture` [H, W] or [H, W, 3] sampled at p + flow(p)."""
    at = np.moveaxis(flow, -1, 0) + np.indices(flow.shape[:2])
    planes = picture[..., None] if picture.ndim == 2 else picture
    return np.stack([ndimage.map_coordinates(planes[..., c].astype(float), at, order=1) for c in range(planes.shape[-1])], -1)


def uniform(labels):
    """Pixels whose eight neighbours are all of their class."""
    return ndimage.minimum_filter(labels, 3) == ndimage.maximum_filter(labels, 3)


def at_target(pictures, flow):
    """What is in the pixel nearest to p + flow(p); the border's pixel if that is out of the picture."""
    target = np.round(np.moveaxis(flow, -1, 0) + np.indices(flow.shape[:2])).astype(int)
    y, x = (np.clip(t, 0, side - 1) for t, side in zip(target, flow.shape[:2], strict=True))
    return pictures[y, x]


# The real clips


def test_clips_decode_and_are_small(clip):
    name, sample = clip
    assert sample.frames.shape == (60, 240, 320, 3)
    assert sample.path == data_folder() / "clips" / f"{name}.mp4"
    content = sample.path.read_bytes()
    assert len(content) < 1_000_000
    assert content.index(b"moov") < content.index(b"mdat"), "not faststart: a browser would wait for the whole file"


def test_something_happens(clip):
    frames = clip[1].frames.astype(int)
    changed = np.abs(frames[47] - frames[0]).max(-1) > 40
    assert 0.05 < changed.mean() < 0.6


def test_masks_name_what_is_there(clip):
    name, sample = clip
    assert sample.names == CLASSES[name]
    assert sorted(sample.masks) == DRAWN
    for frame, mask in sample.masks.items():
        assert mask.shape == (240, 320)
        assert set(np.unique(mask)) - {255} == set(sample.names), f"frame {frame}"
        assert (mask == 255).mean() < 0.01


def test_masks_are_the_polygons(clip, make_clips):
    name, sample = clip
    drawing = json.loads((data_folder() / "clips" / f"{name}.polygons.json").read_text())
    assert {int(key): value for key, value in drawing["names"].items()} == sample.names
    assert sorted(int(frame) for frame in drawing["frames"]) == DRAWN
    for frame, mask in sample.masks.items():
        np.testing.assert_array_equal(make_clips.rasterise(drawing, frame), mask)


def test_polygons_fill_like_matplotlib(make_clips):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :50] + 0.5
    for _ in range(5):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        corners = np.stack([25 + rng.uniform(5, 24, 9) * np.cos(angle), 20 + rng.uniform(5, 19, 9) * np.sin(angle)], -1)
        expected = Outline(corners).contains_points(np.stack([x.ravel(), y.ravel()], -1)).reshape(40, 50)
        np.testing.assert_array_equal(make_clips.inside(corners.tolist(), 50, 40), expected)


def test_masks_sit_on_the_edges(clip):
    """Along the drawn outlines the picture changes more than along the same outlines moved by three pixels either way."""
    _, sample = clip
    for frame, mask in sample.masks.items():
        picture = ndimage.gaussian_filter(sample.frames[frame].astype(float), (0.7, 0.7, 0))
        steep = np.sqrt(sum(np.gradient(picture, axis=axis) ** 2 for axis in (0, 1)).sum(-1))
        outline = ~uniform(mask)
        outline[:4] = outline[-4:] = outline[:, :4] = outline[:, -4:] = False
        for shift in ((3, 0), (-3, 0), (0, 3), (0, -3)):
            assert steep[outline].mean() > 1.15 * steep[np.roll(outline, shift, (0, 1))].mean(), (frame, shift)


def test_cup_and_hand_stand_out_from_the_wall():
    """A white wall lets a colour rule find everything that is not wall; the drawing has to agree with it."""
    sample = sample_clip("cup")
    for frame, mask in sample.masks.items():
        red, _, blue = np.moveaxis(sample.frames[frame].astype(int), -1, 0)
        rule, drawn = (sample.frames[frame].mean(-1) < 125) | (red - blue > 55), mask > 0
        assert (rule & drawn).sum() / (rule | drawn).sum() > 0.96, frame


def test_unknown_clip_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'mug'.*cup, box"):
        sample_clip("mug")


def test_data_folder(monkeypatch, tmp_path):
    package = tmp_path / "vidseg_core"
    monkeypatch.setattr(registry, "__file__", str(package / "models" / "registry.py"))
    with pytest.raises(FileNotFoundError, match=str(package)):
        data_folder()
    (tmp_path / "data").mkdir()  # somebody else's folder of that name
    with pytest.raises(FileNotFoundError):
        data_folder()
    (tmp_path / "data" / "models").mkdir()
    assert data_folder() == tmp_path / "data"
    (package / "data" / "models").mkdir(parents=True)
    assert data_folder() == package / "data"


# The generated clip


def test_shapes(generated):
    f, height, width, _ = generated.frames.shape
    assert f == 20
    assert generated.labels.shape == (f, height, width)
    assert generated.flow.shape == (f - 1, height, width, 2)
    assert generated.visible.shape == (f - 1, height, width)
    with pytest.raises(FrozenInstanceError):
        generated.labels = None


def test_every_class_is_seen(generated):
    late = "tile" in generated.names.values()
    assert list(generated.names) == list(range(4 if late else 3))
    for number in range(3):
        assert (generated.labels == number).any((1, 2)).all()
    if late:
        seen = (generated.labels == 3).any((1, 2))
        assert not seen[:11].any()
        assert seen[13:].all()
    assert set(np.unique(generated.labels)) == set(generated.names)


def test_labels_follow_the_flow(generated):
    right, total = 0, 0
    for i, flow in enumerate(generated.flow):
        sure = generated.visible[i] & at_target(uniform(generated.labels[i + 1]), flow)
        right += (at_target(generated.labels[i + 1], flow) == generated.labels[i])[sure].sum()
        total += sure.sum()
    assert total > 0.9 * generated.flow[..., 0].size
    assert right / total > 0.999


def test_what_is_hidden_is_behind_a_higher_class(generated):
    height, width = generated.labels.shape[1:]
    hidden_leaf = 0
    for i, flow in enumerate(generated.flow):
        target = np.moveaxis(flow, -1, 0) + np.indices((height, width))
        within = (target >= 0).all(0) & (target[0] <= height - 1) & (target[1] <= width - 1)
        assert not generated.visible[i][~within].any()
        hidden = within & ~generated.visible[i]
        sure = hidden & at_target(uniform(generated.labels[i + 1]), flow)
        assert (at_target(generated.labels[i + 1], flow) > generated.labels[i])[sure].all()
        hidden_leaf += (hidden & (generated.labels[i] == 1)).sum()
    assert hidden_leaf > 0.2 * (generated.labels[0] == 1).sum(), "the blossom never passes in front of the leaf"


def test_colours_follow_the_flow(generated):
    error, still = [], []
    for i, flow in enumerate(generated.flow):
        # An edge pixel mixes two colours and its mixture may change: compare away from the edges of both frames.
        inner = generated.visible[i] & uniform(generated.labels[i]) & at_target(uniform(generated.labels[i + 1]), flow)
        now = generated.frames[i].astype(float)
        error.append(np.abs(warp(generated.frames[i + 1], flow) - now)[inner].mean())
        still.append(np.abs(generated.frames[i + 1] - now)[inner].mean())
    assert np.mean(error) < 5, "grey levels of 255; what is left is interpolation"
    assert np.mean(error) < 0.5 * np.mean(still)


@pytest.mark.parametrize("seed", range(4))
def test_motion_is_smooth_and_slow(seed):
    clip = generated_clip(seed=seed)
    speed = np.hypot(*np.moveaxis(clip.flow[clip.visible], -1, 0))
    assert 1 < speed.max() < 4.5
    corner = clip.flow[:, 2, 2]  # always the background
    assert np.abs(np.diff(corner, axis=0)).max() < 0.3, "the camera jerks"
    blossom = np.array([ndimage.center_of_mass(labels == 2) for labels in clip.labels])
    assert np.abs(np.diff(blossom, 2, axis=0)).max() < 0.3, "the blossom jerks"


def test_edges_are_smooth():
    """Part of the leaf's outermost pixels is mixed with what is behind it; without anti-aliasing none is."""
    clip = generated_clip(num_frames=1, seed=0)
    rim = (clip.labels[0] == 1) & ~uniform(clip.labels[0])
    red = clip.frames[0][..., 0].astype(int)  # the leaf has next to none
    leaf = red[(clip.labels[0] == 1) & uniform(clip.labels[0])]
    assert leaf.max() < 30
    assert (red[rim] > 30).mean() > 0.15
    assert red[rim].max() < 145, "a pixel that the leaf covers less than half (255 / 2, and the leaf's own red) is called leaf"


def test_seed_decides():
    first, again, other = (generated_clip(num_frames=4, seed=seed) for seed in (5, 5, 6))
    for field in ("frames", "labels", "flow", "visible"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert (first.frames != other.frames).mean() > 0.5
    assert (first.labels != other.labels).any()


def test_speed_scales_with_size():
    small, large = (generated_clip(num_frames=3, size=size, seed=0) for size in ((120, 160), (240, 320)))
    np.testing.assert_allclose(
        2 * small.flow[0, 30:90, 40:120].mean((0, 1)), large.flow[0, 60:180, 80:240].mean((0, 1)), atol=0.1
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 200), (480, 640)])
def test_other_sizes(size):
    clip = generated_clip(num_frames=2, size=size)
    assert clip.frames.shape == (2, *size, 3)
    assert set(np.unique(clip.labels)) == {0, 1, 2}


def test_one_frame():
    clip = generated_clip(num_frames=1)
    assert clip.flow.shape == (0, 240, 320, 2)
    assert clip.visible.shape == (0, 240, 320)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_frames": 0}, "num_frames is 0; at least 1 "),
        ({"num_frames": -3}, "num_frames is -3"),
        ({"num_frames": 11, "late": True}, "num_frames is 11; at least 12 "),
        ({"size": (31, 320)}, "size is 31x320; each side needs at least 32"),
        ({"size": (240, 8)}, "size is 240x8"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        generated_clip(**arguments)


def test_masks_are_palette_pictures(clip):
    """So that an ordinary viewer shows them in colour while the pixels stay class numbers."""
    name, _ = clip
    for png in sorted((data_folder() / "clips" / name / "masks").glob("*.png")):
        with Image.open(png) as image:
            assert image.mode == "P"
