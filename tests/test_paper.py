"""The authors' code against plain loops that follow it word by word, and against numbers of the libraries it calls."""

import io
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from vidseg_core.common import InputError
from vidseg_core.evaluation.metrics import VOID
from vidseg_core.paper import find_tracks, name_clusters, refine_by_tracks, responses, scores, working_size

H, W, F = 6, 9, 5
OPENCV = "b999a4f8b59da056527bebd7c7bc8d93a3bebfaf99d9d7c18f8a7863aa95837e665b59"
"""Red of the 5 x 7 pixels that OpenCV makes of the 4 x 5 in the test that compares them."""


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
    ours = refine_by_tracks(match, coarse)
    assert ours.tracks.cells.tolist() == [[y * W + x for y, x in path] for path in tracks]
    assert (ours.labels.numpy() == labels).all() and np.abs(ours.confidence.numpy() - confidence).max() < 1e-6
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
    ours = refine_by_tracks(still, seen)
    assert ours.labels.reshape(4, 4).tolist() == [[7, 2, 9, 1]] * 4
    assert ours.confidence.reshape(4, 4).tolist() == [[0.5, 0.5, 0.5, 0.75]] * 4


def test_a_window_without_tracks_keeps_its_labels():
    """All tracks are led to the first cell, from there to the last, and are dropped."""
    e = torch.eye(8)
    match = torch.stack([e[[0, 1, 2, 3]], e[[0, 0, 0, 0]], e[[0, 4, 5, 6]], e[[7, 4, 5, 0]]])[:, None]
    labels = torch.arange(16).reshape(4, 1, 4)
    ours = refine_by_tracks(match, labels)
    assert ours.tracks.cells.shape == (0, 4) and torch.equal(ours.labels, labels) and ours.confidence.min() == 1


def test_half_precision_rounds_cosines_as_autocast_does(match):
    """Unit vectors, cosines, shares and sums, each in float16; of many equal sums the one that NumPy's partition puts last."""
    unit = (match / match.norm(dim=-1, keepdim=True)).flatten(1, 2).numpy().astype(np.float16)
    cells, differ = [np.arange(H * W)], 0
    for q in range(F - 1):
        near, first = ((unit[q, cells[-1]].astype(np.float32) @ unit[t].astype(np.float32).T) for t in (q + 1, 0))
        score = q / (q + 1) * near.astype(np.float16) + 1 / (q + 1) * first.astype(np.float16)
        assert score.dtype == np.float16
        cells.append(np.array([np.argpartition(row, -1)[-1:][0] for row in score]))
        differ += int((cells[-1] != (q / (q + 1) * near + 1 / (q + 1) * first).argmax(1)).sum())
    paths = [[divmod(int(c), W) for c in path] for path in zip(*cells, strict=True)]
    ours = find_tracks((match / match.norm(dim=-1, keepdim=True)).half())
    assert ours.cells.tolist() == [[y * W + x for y, x in path] for path in paths if not jumps(path)]
    assert differ, "rounding changes no hop, so this tests nothing"


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


def of_bytes(pictures):
    """What the decoder would have to give for these bytes, [n, h, w, 3]: the middle of each step."""
    return torch.from_numpy((pictures.astype(np.float64) + 0.5) / 127.5 - 1).permute(0, 3, 1, 2)


def test_responses_are_those_of_a_plain_loop():
    """Distance in bytes, then the Gaussian, then the JPEG, then the maximum: each in its place."""
    rng = np.random.default_rng(3)
    a = rng.integers(0, 256, (2, 24, 32, 3))
    b = (a + rng.integers(-9, 10, a.shape) * (np.arange(32) > 9)[:, None]).clip(0, 255)
    weights = np.exp(-(np.arange(-2, 3) ** 2) / 18)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for plus, minus, found in zip(a, b, responses(of_bytes(a), of_bytes(b), (24, 32)).numpy(), strict=True):
        distance = np.sqrt(((plus - minus) % 256 * ((plus - minus) % 256) % 256).sum(-1))
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
    grey = np.full((1, 16, 16, 3), 100)
    other = grey + np.array([step, 0, 0])
    found = responses(of_bytes(other), of_bytes(grey), (16, 16))
    assert found.dtype == torch.float64 and np.abs(found.numpy() - expected).max() < 1e-12


def test_pictures_are_resized_as_opencv_does():
    """`cv2.resize` (4.10) of the same bytes; they are a little off the exact line between two pixels, but never by a level."""
    from vidseg_core.paper import _pictures

    small = np.random.default_rng(4).integers(0, 256, (1, 4, 5, 3))
    found = _pictures(of_bytes(small), (5, 7))[0]
    assert bytes(found[:, :, 0]).hex() == OPENCV
    exact = torch.nn.functional.interpolate(torch.from_numpy(small).permute(0, 3, 1, 2).float(), (5, 7), mode="bilinear")
    assert np.abs(found - exact[0].permute(1, 2, 0).numpy()).max() < 1
    same = _pictures(torch.tensor([-2.0, -1, 0, 0.999, 1, 3]).reshape(1, 1, 1, 6).repeat(1, 3, 1, 1), (1, 6))
    assert same[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255], "cut to bytes, not rounded"


def test_outside_its_mask_a_response_weighs_less():
    """Lanczos on bytes: it rings, but stays within 0..255."""
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 3:6] = True
    maps = torch.from_numpy(np.random.default_rng(5).random((2, 48, 64)))
    picture = Image.fromarray(masks[0].numpy().astype(np.uint8) * 255).resize((64, 48), Image.Resampling.LANCZOS)
    inside = np.asarray(picture) / 255
    found = scores(maps, masks)
    assert np.abs(found[0].numpy() - maps[0].numpy() * (inside + 0.7 * (1 - inside))).max() < 1e-12
    assert torch.allclose(found[1], 0.7 * maps[1]) and found.dtype == torch.float64
    share = found[0] / maps[0]
    assert share.min() >= 0.7 - 1e-9 and share.max() <= 1 + 1e-9 and share[20:28, 32:40].min() > 0.99


def test_sides_are_cut_to_multiples_of_64():
    assert [working_size(*s) for s in ((480, 853), (1024, 2048), (64, 127))] == [(448, 832), (1024, 2048), (64, 64)]
    with pytest.raises(InputError, match="63 x 640"):
        working_size(63, 640)
