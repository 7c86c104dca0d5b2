"""The authors' code against plain loops that follow it word by word, and against numbers of the libraries it calls."""

import dataclasses
import io
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from vidseg_core import InputError, Settings, VidSeg, paper, reference_settings
from vidseg_core.common import VOID
from vidseg_core.context import Votes
from vidseg_core.modulation import Group, NoisyWindow, Prediction
from vidseg_core.paper import find_tracks, name_clusters, refine, response, working_size
from vidseg_core.upsample import upsample

H, W, F = 6, 9, 5
SMALL = (96, 128)


@pytest.fixture(scope="module")
def match():
    """A smooth random field that drifts, with noise enough for some tracks to jump."""
    rng = np.random.default_rng(0)
    field = np.cumsum(np.cumsum(rng.normal(size=(H + F, W + F, 12)), 0), 1)
    maps = [field[t // 2 : t // 2 + H, t // 3 : t // 3 + W] + rng.normal(0, 1.0, (H, W, 12)) for t in range(F)]
    return torch.from_numpy(np.stack(maps)).float()


@pytest.fixture(scope="module")
def coarse():
    return torch.from_numpy(np.random.default_rng(1).choice([0, 3, 4, VOID], (F, H, W)))


def plain_tracks(match):
    """All tracks, (y, x) in each frame, before any is dropped."""
    unit = (match / match.norm(dim=-1, keepdim=True)).double().numpy()
    tracks = []
    for start in np.ndindex(H, W):
        path = [start]
        for q in range(F - 1):
            source = unit[q][path[-1]]
            score = q / (q + 1) * (unit[q + 1] @ source) + 1 / (q + 1) * (unit[0] @ source)
            path.append(tuple(int(i) for i in np.unravel_index(score.argmax(), (H, W))))
        tracks.append(path)
    return tracks


def jumps(path):
    return any(b[0] - a[0] > 1 or b[1] - a[1] > 1 for a, b in pairwise(path))


def test_tracks_and_what_they_write_are_those_of_a_plain_loop(match, coarse):
    tracks = [path for path in plain_tracks(match) if not jumps(path)]
    labels, confidence, writers = coarse.numpy().copy(), np.ones((F, H, W)), Counter()
    for path in tracks:
        votes = Counter(int(coarse[t][cell]) for t, cell in enumerate(path))
        winner, count = votes.most_common(1)[0]  # of equal counts the one seen first
        for t, cell in enumerate(path):
            labels[t][cell], confidence[t][cell] = winner, count / F
            writers[t, cell] += 1
    ours, share = refine(match, coarse)
    assert find_tracks(match).cells.tolist() == [[y * W + x for y, x in path] for path in tracks]
    assert (ours.numpy() == labels).all() and np.abs(share.numpy() - confidence).max() < 1e-6
    upward = [min(min(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(path)) for path in tracks]
    assert len(tracks) < H * W and min(upward) < -1 and max(writers.values()) > 1 and (labels != coarse.numpy()).any(), (
        "no track is dropped, jumps back, meets another or changes a label, so this tests nothing"
    )


def test_the_weakest_hop_is_a_tracks_similarity(match):
    unit, tracks = match.flatten(1, 2) / match.flatten(1, 2).norm(dim=-1, keepdim=True), find_tracks(match)
    hops = [[float(unit[q, a] @ unit[q + 1, b]) for q, (a, b) in enumerate(pairwise(c))] for c in tracks.cells]
    weakest = np.minimum.accumulate(np.hstack([np.ones((len(hops), 1)), hops]), axis=1)
    assert np.abs(tracks.similarity.numpy() - weakest).max() < 1e-5 and tracks.grid == (H, W)


def test_of_equal_votes_the_label_seen_first_wins():
    still = torch.eye(4).reshape(1, 2, 2, 4).repeat(4, 1, 1, 1)
    seen = torch.tensor([[7, 2, 9, 1], [2, 7, 0, 1], [2, 7, 9, 5], [7, 2, 0, 1]]).reshape(4, 2, 2)
    labels, confidence = refine(still, seen)
    assert labels.reshape(4, 4).tolist() == [[7, 2, 9, 1]] * 4
    assert confidence.reshape(4, 4).tolist() == [[0.5, 0.5, 0.5, 0.75]] * 4


def test_a_window_without_tracks_keeps_its_labels():
    """All tracks are led to the first cell, from there to the last, and are dropped."""
    e = torch.eye(8)
    match = torch.stack([e[[0, 1, 2, 3]], e[[0, 0, 0, 0]], e[[0, 4, 5, 6]], e[[7, 4, 5, 0]]])[:, None]
    labels = torch.arange(16).reshape(4, 1, 4)
    found, confidence = refine(match, labels)
    assert find_tracks(match).cells.shape == (0, 4) and torch.equal(found, labels) and confidence.min() == 1


def test_clusters_are_named_by_one_pixel_a_cell():
    rng = np.random.default_rng(2)
    labels, mask = rng.integers(0, 6, (5, 7)), rng.choice([1, 2, VOID], (33, 52))
    small = np.array([[mask[int((y + 0.5) * 33 / 5), int((x + 0.5) * 52 / 7)] for x in range(7)] for y in range(5)])
    expected = []
    for cluster in range(6):
        values, counts = np.unique(small[labels == cluster], return_counts=True)
        expected.append(values[counts.argmax()])
    assert name_clusters(torch.from_numpy(labels), mask, 6).tolist() == expected


def test_void_votes_and_of_equal_counts_the_smallest_class_wins():
    labels = torch.tensor([[0, 0, 0, 1, 1, 2]])
    mask = np.array([[VOID, 3, VOID, 9, 4, VOID]])
    assert name_clusters(labels, mask, 4).tolist() == [VOID, 4, VOID, VOID]
    mask[0, 5] = 0
    assert name_clusters(labels, mask, 4).tolist() == [VOID, 4, 0, VOID]


def test_responses_are_those_of_a_plain_loop():
    """Distance in bytes, then the Gaussian, then the JPEG, then the maximum: each in its place."""
    rng = np.random.default_rng(3)
    a = rng.integers(0, 256, (2, 24, 32, 3)).astype(np.uint8)
    b = (a + rng.integers(-9, 10, a.shape) * (np.arange(32) > 9)[:, None]).clip(0, 255).astype(np.uint8)
    weights = np.exp(-(np.arange(-2, 3) ** 2) / 18)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for plus, minus in zip(a, b, strict=True):
        found, difference = response(plus, minus), (plus.astype(int) - minus) % 256
        distance = np.sqrt((difference * difference % 256).sum(-1))
        padded, blurred = np.pad(distance, 2, mode="reflect"), np.zeros((24, 32))
        for y, x in np.ndindex(24, 32):
            blurred[y, x] = (padded[y : y + 5, x : x + 5] * weights).sum()
        file = io.BytesIO()
        Image.fromarray(blurred.astype(np.uint8)).save(file, "JPEG")
        picture = np.asarray(Image.open(file)).astype(float)
        assert np.abs(found - picture / (picture.max() + 1e-5)).max() < 1e-12 and len(np.unique(picture)) > 5


@pytest.mark.parametrize(("step", "expected"), [(16, 0.0), (20, 12 / (12 + 1e-5)), (3, 3 / (3 + 1e-5))])
def test_squares_wrap_around_and_faint_maps_count_in_full(step, expected):
    """16 squared is 256, which a byte calls 0; 20 squared is 400, which it calls 144. A step of 3 is as good as one of 200."""
    grey = np.full((16, 16, 3), 100, np.uint8)
    other = grey + np.array([step, 0, 0], np.uint8)
    assert np.abs(response(other, grey) - expected).max() < 1e-12


def test_a_decoded_picture_is_cut_to_bytes_before_it_is_enlarged():
    """Within a level of the exact line between two pixels, as OpenCV's 8-bit `resize` is."""
    small = np.random.default_rng(4).integers(0, 256, (1, 3, 4, 5))
    found = paper._pictures(torch.from_numpy((small + 0.5) / 127.5 - 1).float(), (5, 7))
    exact = torch.nn.functional.interpolate(torch.from_numpy(small).float(), (5, 7), mode="bilinear")
    assert np.abs(found - exact.permute(0, 2, 3, 1).numpy()).max() < 1
    same = paper._pictures(torch.tensor([-2.0, -1, 0, 0.999, 1, 3]).reshape(1, 1, 1, 6).repeat(1, 3, 1, 1), (1, 6))
    assert same[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255], "cut to bytes, not rounded"


def test_outside_its_mask_a_response_weighs_less(backbone, monkeypatch):
    """Lanczos on bytes: it rings, but stays within 0..255."""
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 3:6] = True
    maps = np.random.default_rng(5).random((2, 48, 64))
    monkeypatch.setattr(paper, "response", lambda plus, minus: maps[int(plus[0, 0, 0])])

    numbers = (torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 48, 64) + 0.5) / 127.5 - 1  # pictures of bytes 0 and 1
    monkeypatch.setattr(backbone, "decode", lambda latents: numbers)
    group = Group(torch.arange(2), masks, torch.zeros(2, 6, 8, dtype=torch.long))
    found = paper.score(backbone, Prediction(group, torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 6, 8)), (48, 64)).numpy()
    picture = Image.fromarray(masks[0].numpy().astype(np.uint8) * 255).resize((64, 48), Image.Resampling.LANCZOS)
    inside = np.asarray(picture) / 255
    assert np.abs(found[0] - maps[0] * (inside + 0.7 * (1 - inside))).max() < 1e-6
    assert np.abs(found[1] - 0.7 * maps[1]).max() < 1e-6
    share = found[0] / maps[0]
    assert share.min() > 0.7 - 1e-6 and share.max() < 1 + 1e-6 and share[20:28, 32:40].min() > 0.99


def test_sides_are_cut_to_multiples_of_64():
    assert [working_size(*s) for s in ((480, 853), (1024, 2048), (64, 127))] == [(448, 832), (1024, 2048), (64, 64)]
    with pytest.raises(InputError, match="640x63"):
        working_size(63, 640)


def test_the_working_size_is_the_clips(backbone):
    """Without rescaling: 70 x 200 pixels are seen at 64 x 192, where the default would enlarge them to the native area."""
    frames = np.zeros((1, 70, 200, 3), np.uint8)
    assert VidSeg(backbone, reference_settings("tiny")).images(frames).shape == (1, 3, 64, 192)
    assert VidSeg(backbone, Settings()).images(frames).shape[2] > 100
    with pytest.raises(InputError, match="200x60"):
        VidSeg(backbone, reference_settings("tiny"))(np.zeros((1, 60, 200, 3), np.uint8))


def test_reference_steps_are_a_plain_loop(backbone, images, monkeypatch):
    """FIELD: guided steps 22-24; +/-50 on the cross-attention at 22, both halves; q, k of the decoder injected; blending after
    22 and 23. Written again with diffusers' own scheduler and hooks."""
    s = reference_settings("tiny")
    cells = torch.zeros(2, 12, 16, dtype=torch.long)
    cells[:, 4:8, 5:9] = 1
    latents = backbone.encode(images[:2])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    scheduler = EulerDiscreteScheduler.from_config(backbone.scheduler, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    projections = {
        name: module for name, module in backbone.unet.named_modules()
        if name.startswith("up_blocks") and name.split(".")[-1] in ("to_q", "to_k")
    }  # fmt: skip
    embedding = torch.randn(1, 1, 32)
    monkeypatch.setattr(backbone, "prompt", lambda text: embedding)  # else both halves of the guidance batch are equal
    condition = torch.cat([torch.zeros(2, 1, 32), backbone.prompt("").expand(2, -1, -1)])

    def run(step, x, hooks):
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        t = scheduler.timesteps[step]
        with torch.inference_mode():
            unconditional, conditional = backbone.unet(
                scheduler.scale_model_input(torch.cat([x, x]), t), t, condition
            ).sample.chunk(2)
        for handle in handles:
            handle.remove()
        scheduler._step_index = step
        x = scheduler.step(unconditional + 5 * (conditional - unconditional), t, x).prev_sample
        scheduler._step_index = None
        return x

    x, plain, kept = latents + scheduler.sigmas[22] * noise, {}, {}
    for step in (22, 23, 24):
        kept[step] = {}
        x = run(step, x, [(m, lambda m, i, o, n=n, k=kept[step]: k.__setitem__(n, o)) for n, m in projections.items()])
        plain[step] = x
    mask = torch.nn.functional.interpolate((cells == 1)[:, None].float(), size=(24, 32), mode="nearest")
    modulated = backbone.unet.get_submodule(s.upsample.block)
    ends = []
    for sign in (1, -1):
        x = latents + scheduler.sigmas[22] * noise
        for step in (22, 23, 24):
            hooks = [(m, lambda mod, i, o, v=kept[step][n]: v) for n, m in projections.items()]
            if step == 22:
                shift = sign * 50 * (cells == 1).flatten(1)[:, :, None].float().repeat(2, 1, 1)
                hooks.append((modulated, lambda m, i, o, shift=shift: o + shift))
            x = run(step, x, hooks)
            if step < 24:
                x = x * mask + plain[step] * (1 - mask)
        ends.append(x)
    for p in paper.predict_masks(backbone, NoisyWindow(latents, noise, None), cells, s.upsample, s.paper):
        if p.group.owners[0, 0, 0] == 1:
            assert p.group.frames.tolist() == [0, 1]
            assert (p.plus - ends[0]).abs().max() < 2e-3 and (p.minus - ends[1]).abs().max() < 2e-3
            assert (p.plus - p.minus).abs().max() > 0.1


def test_a_guidance_of_one_is_none(backbone, images, monkeypatch):
    """Half the cost, the same estimate: the conditional half alone."""
    embedding = torch.randn(1, 1, 32)
    monkeypatch.setattr(backbone, "prompt", lambda text: embedding)
    s = reference_settings("tiny")
    alone, almost = (dataclasses.replace(s.paper, guidance=g) for g in (1.0, 1.0 + 1e-7))
    cells = torch.zeros(1, 12, 16, dtype=torch.long)
    cells[:, 4:8, 5:9] = 1
    latents = backbone.encode(images[:1])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    window = NoisyWindow(latents, noise, None)
    runs = (paper.predict_masks(backbone, window, cells, s.upsample, how) for how in (alone, almost))
    for ours, theirs in zip(*runs, strict=True):
        assert max((ours.plus - theirs.plus).abs().max(), (ours.minus - theirs.minus).abs().max()) < 2e-3
    assert alone.scale is None and almost.scale is not None


def test_reference_labels_a_window(backbone, clip):
    settings = dataclasses.replace(reference_settings("tiny"), working_size=SMALL)
    cells = torch.from_numpy(clip.labels[:1, 4::8, 4::8].copy())
    labels = upsample(backbone, clip.frames[:1], Votes.certain(cells), settings)
    assert labels.shape == (1, *SMALL) and set(labels.unique().tolist()) <= set(cells.unique().tolist())
    assert len(labels.unique()) > 1
