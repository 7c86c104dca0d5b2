"""What the notebooks compute beside the stages, against closed forms; their explorers, driven from code on a small clip."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidseg_core import ContextSettings, RefineSettings, Settings, VidSeg, read_mask
from vidseg_core.evaluation.metrics import VOID
from vidseg_core.features import extract_features
from vidseg_core.io.results import read_names
from vidseg_core.io.samples import GeneratedClip
from vidseg_core.workbook import context, correspondence, upsampling
from vidseg_core.workbook.naming import Naming

CONTEXT = ContextSettings(num_clusters=6, restarts=1)


@pytest.fixture(scope="module")
def features(backbone, images, settings):
    return extract_features(backbone, images, settings)


@pytest.fixture
def sliding():
    """A clip that moves one cell (8 pixels) to the right in every frame; its features say exactly what each cell shows."""
    frames, h, w = 5, 6, 10
    world = np.random.default_rng(0).normal(size=(h, w + frames, 16)).astype(np.float32)
    match = np.stack([world[:, frames - n : frames - n + w] for n in range(frames)])
    classes = np.stack([np.arange(w + frames)[frames - n : frames - n + w] // 3 % 2 for n in range(frames)])[:, None].repeat(
        h, 1
    )
    labels = classes.repeat(8, 1).repeat(8, 2)
    flow = np.zeros((frames - 1, 8 * h, 8 * w, 2), np.float32)
    flow[..., 1] = 8
    visible = np.ones(flow.shape[:3], bool)
    visible[:, :, -8:] = False
    clip = GeneratedClip(np.zeros((*labels.shape, 3), np.uint8), labels, flow, visible, {0: "a", 1: "b"})
    return correspondence.Window(clip, torch.from_numpy(match), classes)


def test_stability_follows_the_motion(sliding):
    """Labels that move with the picture are kept everywhere, labels that stand still only inside the stripes of width 3."""
    clip, labels = sliding.clip, sliding.coarse
    assert context.stability(labels, clip.flow, clip.visible) == pytest.approx(np.ones(4))
    standing = np.broadcast_to(labels[:1], labels.shape).copy()
    expected = (labels[0][:, :-1] == labels[0][:, 1:]).mean()
    assert context.stability(standing, clip.flow, clip.visible) == pytest.approx(np.full(4, expected))


def test_true_paths_follow_the_flow_until_it_hides(sliding):
    paths = correspondence.true_paths(sliding.clip, np.array([[10.0, 3.0], [20.0, 60.0]]), 1, 5)
    assert np.isnan(paths[:, 0]).all() and paths[0, 1:].tolist() == [[10, 3], [10, 11], [10, 19], [10, 27]]
    assert paths[1, 1:4].tolist() == [[20, 60], [20, 68], [20, 76]] and np.isnan(paths[1, 4]).all()


def test_a_faster_clip_has_the_flow_of_its_longer_hops(sliding):
    fast = correspondence.faster(sliding.clip, 2)
    assert len(fast.frames) == 3 and fast.flow.shape[0] == 2
    assert (fast.flow[fast.visible] == [0, 16]).all() and not fast.visible[:, :, -16:].any() and fast.visible[:, :, :-16].all()


def test_hops_and_tracks_on_known_motion(sliding):
    settings = RefineSettings(precision="cell")
    hops = correspondence.judge_hops(sliding, settings)
    assert (hops.within, hops.pace, hops.still) == pytest.approx((1, 1, 0))
    tracks = sliding.refine(settings).tracks
    errors = correspondence.track_errors(tracks, sliding.clip)
    assert np.nanmax(errors) == pytest.approx(0) and correspondence.share_within(errors[:, -1]) == 1
    still = correspondence.judge_hops(sliding, RefineSettings(precision="cell", anchor="frame0"))
    assert still.pace < 1, "the first hop of frame0 is the identity"
    for share in correspondence.failures(sliding, tracks).values():
        assert np.isnan(share).all() or np.nanmin(share) == 1


def test_votes_repair_chance(sliding):
    disturbed = correspondence.with_noise(sliding.coarse, 0.2)
    assert 0.1 < (disturbed != sliding.coarse).mean() < 0.3 and set(np.unique(disturbed)) == {0, 1}
    window = correspondence.Window(sliding.clip, sliding.match, disturbed)
    table = correspondence.compare_votes(
        {"w": window}, {"vote": RefineSettings(method="tracks", precision="cell", majority=0.5)}
    )
    assert table.shape == (1, 2) and table[0, 0] == (disturbed == sliding.truth).mean() and table[0, 1] > table[0, 0] + 0.05


def test_explore_track(sliding):
    explorer = correspondence.explore_track(sliding, RefineSettings(precision="cell"))
    explorer.click("0", x=10, y=20)
    shown = explorer.shown
    assert shown["cells"].tolist() == [[2, 1], [2, 2], [2, 3], [2, 4], [2, 5]] and shown["error"] == pytest.approx(0)
    assert shown["votes"].tolist() == sliding.coarse[np.arange(5), 2, np.arange(1, 6)].tolist() and shown["share"] == 1
    explorer.set(frame=4, row=2, column=5)
    assert explorer.shown["cells"].tolist() == shown["cells"].tolist(), "the same track, taken hold of at its end"
    explorer.set(frame=3, row=0, column=0)
    assert explorer.shown["cells"][:3].tolist() == [[-1, -1]] * 3, "a cell that came into view has a track from there on"


def test_explore_vote(sliding):
    explorer = correspondence.explore_vote(sliding, RefineSettings(precision="cell"))
    assert explorer.shown["before"] == 1 and explorer.shown["after"] == 1 and explorer.shown["within"] == 1
    assert explorer.set(max_jump=0).shown["tracks"] > 100, "every hop is cut, so that every cell starts a track"


def test_frame_by_frame_renumbers_without_regrouping(features):
    raw, matched = context.frame_by_frame(features.context, CONTEXT)
    for a, b in zip(raw, matched, strict=True):
        assert len({*zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)}) == len(np.unique(a)) == len(np.unique(b))
    overlap = [(m[1:] == m[:-1]).mean() for m in (raw, matched)]
    assert overlap[1] > overlap[0]


def test_memory_is_that_of_the_pipeline(backbone, clip, features):
    """Without refinement, the pipeline's coarse clusters; what is remembered is at distance 0."""
    kept = {}
    for keeps in ("anchored", "window"):
        how = replace(CONTEXT, memory=keeps)
        settings = Settings(context=how, working_size=(96, 128), window=3, refine=RefineSettings(method="none"))
        whole = VidSeg(backbone, settings)(clip.frames, keep=())
        kept[keeps] = context.run_memory(features.context, CONTEXT, 3, keeps)
        assert (kept[keeps].labels == whole.clusters[0]).all()
        assert kept[keeps].distance[:3].max() < 0.005 and kept[keeps].distance[3:].min() > 0.05
    first = context.run_memory(features.context, CONTEXT, 3, "first")
    assert all((first.labels[:3] == k.labels[:3]).all() for k in kept.values())


def test_explore_clusters(clip, features):
    explorer = context.explore_clusters(clip.frames, features.context, CONTEXT)
    explorer.set(num_clusters=5, num_segments=5)
    clusters = explorer.shown["clusters"]
    assert (explorer.shown["segments"] == clusters).all() and len(np.unique(clusters)) == 5
    explorer.set(num_segments=2)
    assert (explorer.shown["clusters"] == clusters).all() and len(np.unique(explorer.shown["segments"])) == 2
    explorer.set(num_segments=6)
    assert "6 segments" in explorer.status.value
    inertia = explorer.set(num_clusters=10, num_segments=2).shown["inertia"]
    assert inertia < explorer.set(num_clusters=3).shown["inertia"]


def test_stories(clip, features):
    half = features.context
    story = context.cut_to(clip.frames[:3], half[:3], clip.frames[3:], half[3:])
    assert story.new[:3].sum() == 0 and story.new[3:].all() and len(story.frames) == 6
    late = context.arrival(clip.frames, half, clip.labels, 2)
    explorer = context.explore_memory({"cut": story, "late": late}, CONTEXT)
    curves = explorer.set(window=3).shown["curves"]
    assert np.isnan(curves["what is new"][:3]).all() and np.isfinite(curves["what is new"][3:]).all()
    assert np.isnan(curves["the rest"][3:]).all()
    assert np.isfinite(explorer.set(story="late").shown["curves"]["what is new"]).all()


def test_agreement_knows_which_way_labels_are_displaced(clip):
    cells = context.at_centres(clip.labels, (12, 16))
    assert context.agreement(cells, clip.labels).argmax() == 4
    assert context.agreement(np.roll(cells, 1, axis=2), clip.labels).argmax() == 5
    assert context.agreement(np.roll(cells, -1, axis=1), clip.labels).argmax() == 1


@pytest.fixture
def naming(backbone, clip, tmp_path):
    vidseg = VidSeg(backbone, Settings(context=ContextSettings(num_clusters=6, num_segments=1), working_size=(96, 128)))
    return Naming(vidseg, vidseg(clip.frames[:3], keep=()), tmp_path / "names", num_segments=4)


def test_names_join_segments_and_propagate(naming):
    a, b, *others = sorted({*naming.shown["names"]} - {VOID})
    before = naming.shown["maps"].copy()
    for segment in (a, b):
        naming.set(segment=segment)
        naming.name.value = "sky"
    assert naming.shown["names"][a] == "sky" and b not in naming.shown["names"]
    assert (naming.shown["maps"] == np.where(before == b, a, before)).all(), "in all frames"
    y, x = np.argwhere(before[0] == others[0])[0].tolist()
    naming.click("frame 0", x=8 * x + 4, y=8 * y + 4)
    assert naming.shown["chosen"] == others[0] and naming.name.value == ""
    naming.set(segment=a)
    assert naming.name.value == "sky"
    naming.name.value = ""
    naming.set(segment=b)
    naming.name.value = ""
    assert (naming.shown["maps"] == before).all(), "names that are taken back leave no trace"


def test_what_is_saved_is_what_the_command_line_takes(naming, backbone, clip):
    first, *others = sorted({*np.unique(naming.shown["maps"][0]).tolist()})
    naming.set(segment=first)
    naming.name.value = "void"
    naming.set(segment=others[0])
    naming.name.value = "thing"
    folder = naming.save()
    mask, names = read_mask(folder / "first_mask.png"), read_names(folder / "names.json")
    assert mask.shape == clip.frames.shape[1:3] and set(np.unique(mask)) == {*names, VOID} and "thing" in names.values()
    assert json.loads((folder / "names.json").read_text())["0"] == names[0] and "void" not in names.values()
    result = VidSeg(backbone, Settings(working_size=(96, 128)))(clip.frames[:2], first_mask=mask, names=names, keep=())
    assert "thing" in result.names.values()


@pytest.fixture(scope="module")
def bench(backbone, clip):
    cells = context.at_centres(clip.labels[:1], (30, 40))[0]
    return upsampling.Bench(backbone, clip.frames[0], cells, clip.names, Settings())


def test_the_bench_decides_as_the_stage_does(bench):
    own = bench.settings.upsample
    answers = bench.ask(own)
    labels, margin = bench.decide(answers, bench.judge(answers, own))
    stage, seconds = bench.run(replace(own, separation=None))
    assert (labels == stage).all() and seconds > 0 and margin.min() >= 0 and margin.max() <= 1
    assert answers.plus.shape == answers.minus.shape and answers.plus.min() >= 0 and answers.plus.max() <= 1


def test_explore_modulation(bench):
    explorer = upsampling.explore_modulation(bench)
    y, x = np.argwhere(bench.cells == 1)[0].tolist()
    explorer.click("cells", x=(x + 0.5) * 128 / 40, y=(y + 0.5) * 96 / 30)
    assert explorer.mask.value == 1
    outside = upsampling.enlarge(bench.cells, explorer.shown["score"].shape) != 1
    none, some, full = (explorer.set(damping=d).shown["score"][outside].mean() for d in (0.0, 0.5, 1.0))
    assert none < some < full and some == pytest.approx((none + full) / 2, rel=0.01)


def test_replay_is_exact_and_late_parts_come_last(bench):
    assert upsampling.replay_error(bench) == 0
    parts = upsampling.time_of_parts(bench, repeats=1)
    flags = [before for *_, before in parts]
    assert flags == sorted(flags, reverse=True) and {True, False} == set(flags)
    assert parts[-1][0] == "conv_out" and any(name.endswith("attn2") and before for name, _, before in parts)


def test_borders():
    truth = np.zeros((20, 30), int)
    truth[:, 15:] = 1
    near = upsampling.near_borders(truth, 2)
    assert near[:, 13:17].all() and near.sum() == 4 * 20
    truth[:8, :10] = 1
    cells = np.array([[0, 1, 1], [0, 1, 1]])
    smooth = upsampling.bilinear(cells, (20, 30))
    assert (smooth[:, :9] == 0).all() and (smooth[:, 11:] == 1).all()
    moved = np.roll(truth, 4, axis=1)
    assert upsampling.shifts(moved, truth, 4).argmax() == 5 and upsampling.shifts(truth, truth, 4).argmax() == 4
    explorer = upsampling.explore_borders(np.zeros((20, 30, 3), np.uint8), {"a": truth, "b": moved}, truth)
    explorer.click("frame", x=29, y=0)
    top, left, _, width = explorer.shown["view"]
    assert top == 0 and left + width == 30 and explorer.shown["right"]["a"] == 1 > explorer.set(width=30).shown["right"]["b"]
