"""One interface, and each baseline against a plain reference."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from vidseg_core import ContextSettings, InputError, Settings, VidSeg
from vidseg_core.common import enlarge
from vidseg_core.evaluation.baselines import METHODS, FrameMethod, PropagationSettings, bilinear, make_method, propagate
from vidseg_core.evaluation.extractors import colour_features
from vidseg_core.evaluation.metrics import confusion, mean_iou
from vidseg_core.features import Features

SMALL = (96, 128)
QUICK = Settings(working_size=SMALL, window=4)


def method(name, backbone, settings=QUICK):
    if "cnn" in name:
        pytest.importorskip("efficientnet_lite_pytorch")
    return make_method(name, backbone, settings)


@pytest.fixture(scope="module")
def labelled(backbone, clip):
    """The labels of each method, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = method(name, backbone)(clip.frames, clip.labels[0])
        return made[name]

    return get


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_called_alike_and_finds_more_than_the_ground(name, labelled, clip):
    labels = labelled(name)
    assert labels.shape == clip.labels.shape and np.issubdtype(labels.dtype, np.integer)
    assert set(np.unique(labels)) <= set(np.unique(clip.labels[0])) | {255}
    ground = mean_iou(confusion(np.zeros_like(labels), clip.labels, 3))
    assert mean_iou(confusion(labels, clip.labels, 3)) > 0.4 > ground, "better than calling all of it ground"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_from_its_state(name, labelled, backbone, clip):
    ours = method(name, backbone)
    first = next(ours.stream(clip.frames, clip.labels[0]))
    assert first.start == 0 and tuple(first.maps) == ours.stages
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in first.state.values()), "what np.savez takes"
    (rest,) = ours.stream(clip.frames[4:], start=4, state=first.state)
    both = np.concatenate([w.maps[ours.stages[-1]] for w in (first, rest)])
    assert rest.start == 4 and (both == labelled(name)).all()


@pytest.mark.parametrize("name", [n for n in METHODS if "propagation" not in n])
def test_without_a_mask_there_are_segments(name, backbone, clip):
    settings = dataclasses.replace(QUICK, context=ContextSettings(num_segments=5))
    labels = method(name, backbone, settings)(clip.frames[:4])
    assert 3 <= len(np.unique(labels)) <= 5


@pytest.mark.slow
def test_the_context_method_is_vidseg_without_its_last_stage(backbone, clip):
    result = VidSeg(backbone, QUICK)(clip.frames, first_mask=clip.labels[0], keep=())
    windows = list(method("bilinear", backbone).stream(clip.frames, clip.labels[0]))
    for stage in ("coarse", "refined"):
        assert (np.concatenate([w.maps[stage] for w in windows]) == getattr(result, stage)).all()
    full = list(method("vidseg", backbone).stream(clip.frames, clip.labels[0]))
    assert (np.concatenate([w.maps["full"] for w in full]) == result.labels).all()
    assert (full[0].maps["bilinear"] == windows[0].maps["bilinear"]).all()


def test_colours_are_means_of_cells(backbone, clip, settings):
    tokens = colour_features(backbone, settings)(clip.frames).context.numpy()
    blocks = clip.frames.reshape(6, 12, 8, 16, 8, 3).mean((2, 4)) / 127.5 - 1
    assert np.abs(tokens[..., :3] - blocks).max() < 1e-5
    assert tokens[0, 0, 0, 3:].tolist() == [-1, -1] and tokens[0, 11, 15, 3:].tolist() == [1, 1]


def test_frames_are_clustered_alone(backbone, clip):
    """A frame's labels depend on it and frame 0 only, and are K-means' own."""
    ours = method("kmeans", backbone)
    whole, pair = ours(clip.frames, clip.labels[0]), ours(clip.frames[[0, 5]], clip.labels[0])
    assert (whole[5] == pair[1]).all()


def test_frame_by_frame_agrees_with_scikit_learn(clip):
    """Well separated tokens, so that any K-means finds the same clusters; the last frame has one that frame 0 has not."""
    random = np.random.default_rng(0)
    patches = np.zeros((3, 8, 8), int)
    patches[:, 2:6, 2:6] = 1
    patches[2, :, 5:] = 2
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [9.0, 5.0]])
    tokens = torch.tensor(centres[patches] + random.normal(0, 0.1, (3, 8, 8, 2))).float()
    settings = Settings(context=ContextSettings(num_clusters=3, neighbours=1))
    ours = FrameMethod(lambda frames: Features(tokens, tokens), settings)
    mask = np.where(enlarge(patches[0], (16, 16)) == 1, 7, 4)
    labels = next(ours.stream(np.zeros((3, 16, 16, 3), np.uint8), mask)).maps["coarse"]
    first = KMeans(3, n_init=10, random_state=0).fit(tokens[0].reshape(-1, 2))
    names = [np.bincount(np.where(patches[0].ravel() == 1, 7, 4)[first.labels_ == k]).argmax() for k in range(3)]
    for n in range(3):
        own = KMeans(3, n_init=10, random_state=0).fit(tokens[n].reshape(-1, 2))
        expected = np.array(names)[first.predict(own.cluster_centers_)][own.labels_].reshape(8, 8)
        assert (labels[n] == expected).all()
    assert labels[2, 0, 7] == 7, "the new thing is called what it resembles most"


def test_propagation_agrees_with_a_plain_loop():
    random = torch.Generator().manual_seed(0)
    frame, tokens = torch.randn(5, 6, 3, generator=random), torch.randn(2, 5, 6, 3, generator=random)
    frame, tokens = frame / frame.norm(dim=-1, keepdim=True), tokens / tokens.norm(dim=-1, keepdim=True)
    shares = torch.rand(2, 5, 6, 4, generator=random)
    how = PropagationSettings(neighbours=4, temperature=0.5, radius=0.5)
    got = propagate(frame, tokens, shares, how)
    for y in range(5):
        for x in range(6):
            votes = []
            for m in range(2):
                for v in range(5):
                    for u in range(6):
                        if np.hypot(v - y, u - x) <= 2.5:
                            votes.append((float(frame[y, x] @ tokens[m, v, u]), shares[m, v, u].numpy()))
            votes = sorted(votes, key=lambda vote: -vote[0])[:4]
            weights = np.exp([cosine / 0.5 for cosine, _ in votes])
            expected = sum(w * share for w, (_, share) in zip(weights, votes, strict=True)) / weights.sum()
            assert np.abs(got[y, x].numpy() - expected).max() < 1e-5


def test_propagation_remembers_frame_0_and_the_last_ones(backbone, clip):
    ours = method("propagation", backbone)
    ours.how = PropagationSettings(memory=2)
    tokens = []
    extract = ours.extract
    ours.extract = lambda frames: tokens.append(f := extract(frames)) or f
    states = [w.state["tokens"] for w in ours.stream(clip.frames, clip.labels[0])]
    match = torch.nn.functional.normalize(torch.cat([f.match for f in tokens]), dim=-1).numpy()
    assert (states[0] == match[[0, 2, 3]]).all() and (states[1] == match[[0, 4, 5]]).all()


def test_bilinear_enlarging_is_that_of_each_mask():
    cells = np.random.default_rng(0).choice([3, 9, 255], (2, 4, 5))
    got = bilinear(cells, (17, 23))
    for n, y, x in np.ndindex(2, 17, 23):
        cy, cx = np.clip((y + 0.5) * 4 / 17 - 0.5, 0, 3), np.clip((x + 0.5) * 5 / 23 - 0.5, 0, 4)
        weights = {}
        for v in (int(cy), min(int(cy) + 1, 3)):
            for u in (int(cx), min(int(cx) + 1, 4)):
                weight = (1 - abs(cy - v)) * (1 - abs(cx - u))
                weights[v, u] = max(weight, weights.get((v, u), 0))
        totals = {label: sum(w for (v, u), w in weights.items() if cells[n, v, u] == label) for label in (3, 9, 255)}
        best = max(totals.values())
        assert totals[int(got[n, y, x])] == pytest.approx(best, abs=1e-5)


def test_refusals(backbone, clip, monkeypatch):
    with pytest.raises(InputError, match="no method 'sam'; there are vidseg"):
        make_method("sam", backbone, QUICK)
    with pytest.raises(InputError, match="cannot run without one"):
        make_method("propagation", backbone, QUICK)(clip.frames)
    with pytest.raises(InputError, match="first-frame mask is"):
        next(make_method("propagation", backbone, QUICK).stream(clip.frames, clip.labels[0][:5]))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"not installed.*pip install"):
        make_method("cnn", backbone, QUICK)
