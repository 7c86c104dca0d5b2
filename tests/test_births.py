"""What enters a clip late: one segment for it, and none for what was there."""

import dataclasses

import numpy as np
import pytest
import torch

from vidseg_core import ContextSettings, FeatureSettings, RefineSettings, Settings, VidSeg, generated_clip, sample_clip
from vidseg_core.births import Strangers, largest_group, meet, reach
from vidseg_core.common import InputError, enlarge
from vidseg_core.context import SceneContext
from vidseg_core.scene import Scene

SIZE, WINDOW = (128, 160), 7


def quick(**context):
    return Settings(
        window=WINDOW, working_size=SIZE, features=FeatureSettings(scales=(1.0,)), refine=RefineSettings(method="none"),
        context=ContextSettings(num_clusters=12, **context),
    )  # fmt: skip


def noisy(frames, seed=0):
    """With the noise of a camera, of standard deviation 2."""
    noise = np.random.default_rng(seed).normal(0, 2, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def late():
    """The generated clip, into which a tile comes from a side after frame 10; by frame 42 all of it is there."""
    return generated_clip(num_frames=56, size=SIZE, late=True)


def run(backbone, frames, settings):
    return list(VidSeg(backbone, settings).cells(frames))


def test_a_newcomer_gets_one_segment(backbone, late):
    """Its cells are of the new segment, and others are not."""
    windows = run(backbone, late.frames, quick())
    counts = [w.scene.context.count for w in windows]
    assert counts[0] == 12 and counts[-1] == 13 and counts == sorted(counts)
    assert windows[-1].scene.names[12] == "segment 12" and list(windows[-1].scene.names)[-1] == 255
    pixels = enlarge(np.concatenate([w.refined for w in windows[-2:]]), SIZE)
    tile = late.labels[-2 * WINDOW :] == 3
    assert (pixels[tile] == 12).mean() > 0.7 and (pixels[~tile] == 12).mean() < 0.03


def test_without_births_it_never_does(backbone, late):
    assert run(backbone, late.frames, quick(births=0))[-1].scene.context.count == 12


@pytest.mark.slow
def test_a_run_with_births_as_a_whole(backbone, late):
    """Votes of windows from before the birth have no share for it; cuts and a stream that goes on know it."""
    vidseg = VidSeg(backbone, quick())
    whole, windows = vidseg(late.frames, keep=()), list(vidseg.stream(late.frames))
    assert (np.concatenate([w.labels for w in windows]) == whole.labels).all()
    first = next(n for n, w in enumerate(windows) if w.votes[1].shape[-1] == 13)
    assert whole.votes[1].shape[-1] == 13 and (whole.votes[1][: first * WINDOW, ..., 12] == 0).all()
    assert 12 in whole.at(2)[1] and len(np.unique(whole.at(2)[1])) == 3, "cut at two, and one was born"
    again = vidseg.resegment(whole, 2)
    assert (again.refined == whole.at(2)[1]).all() and 12 in again.labels
    for cut in (first - 1, first):  # with strangers that wait, and right behind the birth
        state = windows[cut - 1].scene.state()
        scene = Scene.from_state({k: np.array(a) for k, a in state.items()}, vidseg.settings)
        rest = list(vidseg.stream(late.frames[WINDOW * cut :], scene=scene))
        assert all((a.labels == b.labels).all() for a, b in zip(rest, windows[cut:], strict=True))


def test_a_first_mask_says_what_there_is(backbone, late):
    windows = list(VidSeg(backbone, quick()).cells(late.frames, first_mask=late.labels[0]))
    assert windows[-1].scene.context.count == windows[0].scene.context.count and windows[-1].scene.strangers is None


@pytest.mark.parametrize("length", [28, pytest.param(140, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.long)])
def test_an_unchanged_scene_gets_none(backbone, length):
    """Of a camera that stands and sees its own noise alone; and of frames that are equal to the bit."""
    still = sample_clip("cup").frames[:1, ::2, ::2]
    frames = (noisy(still, seed=n)[0] for n in range(length))
    assert all(window.scene.context.count == 12 for window in VidSeg(backbone, quick()).cells(frames))
    assert run(backbone, np.repeat(still, 21, axis=0), quick())[-1].scene.context.count == 12


# by hand


def context_of(tokens, labels, anchored=0):
    settings = ContextSettings(num_clusters=2, neighbours=1)
    return SceneContext(tokens, labels, 2, anchored, settings)


@pytest.fixture
def two_things():
    """Tokens about (0, 0) and about (4, 0), a tenth from each other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    tokens = 0.1 * torch.randn(400, 2, generator=generator)
    tokens[:, 0] += 4 * labels
    return tokens, labels


def test_tokens_are_alike_up_to_the_distances_in_the_context(two_things):
    """Each token is there twice, as in a context that begins with the window that it saw last."""
    tokens, labels = two_things
    twice, of = torch.cat([tokens, tokens]), torch.cat([labels, labels])
    apart = torch.cdist(tokens, tokens).fill_diagonal_(float("inf"))
    other = apart.masked_fill(labels[:, None] == labels, float("inf")).amin(1).median()
    assert reach(context_of(twice, of)) == pytest.approx(float(other) / 1.15, rel=1e-3), "two things, far from each other"
    mixed = reach(context_of(twice, torch.arange(800) % 400 % 4 // 2))  # half of each thing has either label
    assert mixed == pytest.approx(float(torch.quantile(torch.cat([apart.amin(1)] * 2), 0.99)), rel=1e-3)


def test_strangers_wait_and_are_born_where_they_stay(two_things):
    tokens, labels = two_things
    before, none = context_of(tokens, labels, anchored=400), Strangers(tokens[:0], 0)
    new = torch.tensor([[0.0, 9.0]]) + tokens[:60:2] / 10
    lost = torch.tensor([[-9.0, 0.0]])
    seen = torch.cat([tokens, new, lost])
    after = dataclasses.replace(
        before, tokens=torch.cat([tokens, seen]), labels=torch.cat([labels, labels, torch.zeros(31).long()])
    )
    context, strangers = meet(before, after, none, 2)
    assert strangers.windows == 1 and torch.equal(strangers.tokens, seen[400:])
    assert context.count == 2 and torch.equal(context.tokens, torch.cat([tokens, tokens])), "they are not remembered"
    grown, left = meet(context, after, strangers, 2)
    assert left.windows == 0 and torch.equal(left.tokens, lost) and grown.count == 3 and grown.anchored == 430
    assert torch.equal(grown.tokens, torch.cat([tokens, new, tokens])) and (grown.labels == 2).nonzero()[:, 0].tolist() == [
        *range(400, 430)
    ]
    for other in (Strangers(-strangers.tokens, 1), none):
        assert meet(context, after, other, 2)[1].windows == 1, "others than those of the window before"
    few = dataclasses.replace(after, tokens=after.tokens[:-28], labels=after.labels[:-28])
    context, strangers = meet(before, few, none, 1)
    assert context.count == 2 and (len(strangers.tokens), strangers.windows) == (3, 0), "three of 403 are no thing"


def test_of_many_a_part_stays():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1000, 2, generator=generator) / 10 + torch.tensor([4.0, 0.0]) * (torch.arange(1000) % 2)[:, None]
    new = torch.randn(500, 2, generator=generator) / 10 + torch.tensor([0.0, 9.0])
    for anchored, stay in ((1000, 125), (0, 0)):
        before = context_of(tokens, torch.arange(1000) % 2, anchored)
        seen = torch.cat([tokens[:anchored], tokens, new])
        after = dataclasses.replace(before, tokens=seen, labels=torch.zeros(len(seen)).long())
        grown, _ = meet(before, after, Strangers(tokens[:0], 0), 1)
        assert grown.anchored == anchored + stay and (grown.labels == 2).sum() == 500
        assert (grown.labels[anchored : anchored + stay] == 2).all() and len(grown.tokens) == len(seen)


def test_the_largest_group():
    tokens = torch.tensor([[0.0], [1.0], [2.0], [5.0], [6.0], [9.0]])
    assert largest_group(tokens, 1.0).tolist() == [True] * 3 + [False] * 3
    assert largest_group(tokens[:0], 1.0).tolist() == []


def test_another_scene_is_taken_in(two_things):
    """More than half of the window is strange: it is remembered as it is, also where nothing stays."""
    tokens, labels = two_things
    for anchored in (400, 0):
        before = context_of(tokens, labels, anchored)
        after = dataclasses.replace(
            before, tokens=torch.cat([tokens[:anchored], tokens + 50]), labels=labels.repeat(1 + (anchored > 0))
        )
        context, strangers = meet(before, after, Strangers(tokens[:0], 0), 1)
        assert context is after and (len(strangers.tokens), strangers.windows) == (0, 0)


def test_a_cut_with_a_memory_of_the_last_window_alone(backbone):
    frames = np.concatenate(
        [np.repeat(generated_clip(1, SIZE).frames, 7, 0), np.random.default_rng(0).integers(0, 256, (14, *SIZE, 3), np.uint8)]
    )
    windows = run(backbone, frames, quick(memory="window"))
    assert all(len(w.scene.context.tokens) for w in windows)


def test_a_context_of_one_label_has_births(two_things):
    tokens, _ = two_things
    assert 0 < reach(context_of(tokens, torch.zeros(400).long())) < 1


def test_many_strangers_are_looked_at_in_part():
    tokens = (
        torch.randn(9000, 2, generator=torch.Generator().manual_seed(2))
        + torch.tensor([30.0, 0.0]) * (torch.arange(9000) < 3000)[:, None]
    )
    found = largest_group(tokens, 1.0)
    assert found[:3000].sum() == 0 and found.sum() > 5900


def test_a_still_window_with_fewer_tokens_than_clusters(backbone):
    """The last clusters are empty: they have a column and a segment all the same, and a stream goes on."""
    still = np.repeat(generated_clip(1, SIZE).frames, 14, 0)
    settings = dataclasses.replace(quick(), features=FeatureSettings(scales=(0.25,)), context=ContextSettings(num_clusters=40))
    vidseg = VidSeg(backbone, settings)
    first, second = vidseg.cells(still)
    assert first.scene.context.count == len(first.scene.segment) == 40
    scene = Scene.from_state(first.scene.state(), settings)
    (again,) = vidseg.cells(still[7:], scene=scene)
    assert (again.refined == second.refined).all()


def test_the_overlap_is_longer_than_a_short_window(backbone):
    windows = run(backbone, generated_clip(5, SIZE).frames, dataclasses.replace(quick(), window=1))
    assert [len(w.scene.overlap.match) for w in windows] == [1, 2, 2, 2, 2]


@pytest.mark.slow
def test_a_newcomer_can_be_named(backbone, late):
    vidseg = VidSeg(backbone, quick(num_segments=5))
    for name in ("tile", "rest"):
        first = next(vidseg.cells(late.frames[:7])).scene
        given = {12: name, min(first.names): "rest"}
        scene = list(vidseg.cells(late.frames, names=given))[-1].scene
        assert scene.segment[12] == (12 if name == "tile" else min(first.names)) and scene.names[scene.segment[12]] == name
    with pytest.raises(InputError, match="a name for segment 24, but this run begins with"):
        next(vidseg.cells(late.frames, names={24: "x"}))
    result = vidseg(late.frames[:7], keep=())
    for wrong in (True, 13, 0):
        with pytest.raises(InputError, match="segments are not possible"):
            result.at(wrong)
