"""Stage 4: responses where the mask is, no response no pixel, and masks that share a pass."""

import dataclasses

import numpy as np
import pytest
import torch
from refusals import refusal
from scipy.ndimage import gaussian_filter1d

from vidseg_core import ContextSettings, Settings, UpsampleSettings, VidSeg, generated_clip, sample_clip
from vidseg_core.context import Votes, name_cells
from vidseg_core.modulation import NoisyWindow, colour, owners, plan, predict_masks
from vidseg_core.upsample import claim, gaussian_blur, modulated_cells, score_responses, upsample

SMALL = (96, 128)


def cells_of(labels, stride=8):
    """The label of each cell's centre pixel."""
    return torch.from_numpy(labels[:, stride // 2 :: stride, stride // 2 :: stride])


def each_alone(settings):
    """Mask by mask, without colouring."""
    return dataclasses.replace(settings, upsample=dataclasses.replace(settings.upsample, separation=None))


def noisy_window(backbone, images):
    """Frames as stage 4 hands them to the network, without a condition of their own."""
    latents = backbone.encode(images)
    return NoisyWindow(latents, backbone.noise(latents, 0, shared=True).expand_as(latents), None)


@pytest.fixture(scope="module")
def window(backbone):
    """Three frames of the generated clip, far apart, at the model's own size."""
    clip = generated_clip(num_frames=28)
    labels = clip.labels[::12]
    return labels, clip.frames[::12], cells_of(labels)


def test_every_mask_responds_most_where_it_is(backbone, window):
    """On the generated clip the mean response inside the modulated mask exceeds that outside, for things by far. The rest
    around them is level with them in some frames (0.95 of them at the least), since they respond more to anything."""
    _, frames, cells = window
    settings, images = Settings().resolve(backbone.model), backbone.images(frames, (240, 320))
    seen = set()
    for p in predict_masks(backbone, noisy_window(backbone, images), cells, each_alone(settings).upsample):
        group, responses = p.group, backbone.decode_difference(p.plus, p.minus).norm(dim=1)
        for name, frame, map_ in zip(group.owners[:, 0, 0].tolist(), group.frames.tolist(), responses, strict=True):
            inside = torch.nn.functional.interpolate((cells[frame] == name)[None, None].float(), size=(240, 320))[0, 0] > 0
            assert map_[inside].mean() > (3 if name else 0.9) * map_[~inside].mean(), (name, frame)
            seen.add((name, frame))
    assert seen == {(name, frame) for frame in range(3) for name in cells[frame].unique().tolist()} and len(seen) == 9


def test_exact_cells_give_the_exact_pixels(backbone, window):
    """Share of pixels that get their exact label: measured 98.9 %."""
    exact, frames, cells = window
    labels = upsample(backbone, frames, Votes.certain(cells), Settings().resolve(backbone.model)).numpy()
    assert (labels == exact).mean() > 0.985, (labels == exact).mean()


def test_chunks_do_not_change_the_labels(backbone, clip, settings):
    cells = cells_of(clip.labels)[:3]
    for noise in ("shared", "independent"):
        whole, parts = (
            upsample(backbone, clip.frames[:3], Votes.certain(cells), dataclasses.replace(
                settings, upsample=dataclasses.replace(settings.upsample, chunk=chunk),
                features=dataclasses.replace(settings.features, noise=noise)))
            for chunk in (16, 2)
        )  # fmt: skip
        assert (whole == parts).float().mean() > 0.9999


@pytest.mark.parametrize(("difference", "other"), [("one-sided", 0), ("two-sided", -1)])
def test_direct_is_the_unreplayed_pass(backbone, images, clip, settings, difference, other):
    """Masks one by one through the whole UNet, as EmerDiff says it; what +lambda is compared with is the pass without
    modulation, or that with -lambda."""
    s, cells = dataclasses.replace(each_alone(settings).upsample, difference=difference), cells_of(clip.labels)[:2]
    window = noisy_window(backbone, images[:2])
    noisy = window.latents + backbone.sigma(s.timestep) * window.noise
    for p in predict_masks(backbone, window, cells, s):
        for n, (name, frame) in enumerate(zip(p.group.owners[:, 0, 0].tolist(), p.group.frames.tolist(), strict=True)):
            for sign, found in ((1, p.plus), (other, p.minus)):
                mask = (cells[frame] == name).flatten()[:, None].float()
                block = backbone.unet.get_submodule(s.block)
                hook = block.register_forward_hook(lambda m, i, o, shift=sign * s.strength * mask: o + shift)
                expected = backbone.denoise(noisy[frame : frame + 1], s.timestep)
                hook.remove()
                assert (found[n] - expected[0]).abs().max() < 1e-3


def test_an_absent_mask_costs_nothing(backbone, clip, settings):
    cells = torch.zeros(6, 12, 16, dtype=torch.long)
    cells[2, 3:6, 3:6] = 9
    rows = []
    hook = backbone.unet.up_blocks[2].register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    one_sided = dataclasses.replace(each_alone(settings).upsample, difference="one-sided")
    labels = upsample(backbone, clip.frames, Votes.certain(cells), dataclasses.replace(settings, upsample=one_sided))
    hook.remove()
    assert sum(rows[1:]) == 7, "six frames of mask 0 and one of mask 9, after the recording pass"
    assert (labels[[0, 1, 3, 4, 5]] == 0).all() and set(labels[2].unique().tolist()) == {0, 9}


def test_a_mask_without_response_cannot_win():
    """Its votes count a little all the same, if the settings say so."""
    s = UpsampleSettings(floor=0.0)
    silent, loud = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.01)
    masks, owner = torch.ones(1, 2, 2), torch.full((1, 2, 2), 7)
    assert (
        (score_responses(silent, masks, owner, s) == 0).all()
        and (score_responses(silent + 1e-9, masks, owner, s) == 0).all()
        and (score_responses(loud, masks, owner, s) == 1).all()
    )
    labels, best = torch.full((8, 8), 3, dtype=torch.int16), torch.zeros(8, 8)
    claim(labels, best, owner[0], score_responses(silent, masks, owner, s)[0])
    assert (labels == 3).all()
    assert (score_responses(silent, masks * 0.4, owner, UpsampleSettings(floor=0.25)) - 0.08).abs().max() < 1e-6


def test_score_is_blur_maximum_damping(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    responses, masks = torch.rand(2, 16, 16, generator=rng), torch.zeros(2, 4, 4)
    masks[:, :2] = 1
    s = UpsampleSettings(damping=0.3, floor=0.0, peak=1.0)
    monkeypatch.setattr("vidseg_core.upsample.BLUR_SIZE", 1)  # no blur
    inside = torch.nn.functional.interpolate(masks[:, None], size=(16, 16), mode="bilinear")[:, 0]
    expected = responses / responses.amax((1, 2), keepdim=True) * (inside + 0.3 * (1 - inside))
    one = torch.zeros(2, 4, 4, dtype=torch.long)
    assert (score_responses(responses, masks, one, s) - expected).abs().max() < 1e-6
    assert (score_responses(responses * 50, masks, one, s) - expected).abs().max() < 1e-6
    halves = one.clone()
    halves[:, :, 2:] = 5  # two masks of one colour: each side is divided by its own maximum
    found = score_responses(responses, masks, halves, s)
    for side in (slice(0, 8), slice(8, 16)):
        part = responses[:, :, side] / responses[:, :, side].amax((1, 2), keepdim=True)
        assert (found[:, :, side] - part * (inside + 0.3 * (1 - inside))[:, :, side]).abs().max() < 1e-6


def test_a_peak_is_a_quantile(monkeypatch):
    """For a mask alone: torch's own quantile."""
    rng = torch.Generator().manual_seed(0)
    responses, masks = torch.rand(1, 40, 50, generator=rng), torch.zeros(1, 4, 5)
    masks[:, 1:3, 2:4] = 1
    s = UpsampleSettings(peak=0.9, floor=0.0)
    monkeypatch.setattr("vidseg_core.upsample.BLUR_SIZE", 1)  # no blur
    inside = torch.nn.functional.interpolate(masks[:, None], size=(40, 50), mode="bilinear")[0, 0].double().numpy()
    scaled = (responses[0] / responses.flatten().quantile(0.9)).clamp(max=1).numpy()
    found = score_responses(responses, masks, torch.zeros(1, 4, 5, dtype=torch.long), s)[0].numpy()
    assert np.abs(found - scaled * inside).max() < 2e-3
    speck = torch.zeros(1, 40, 50)
    speck[0, 20, 25] = 1.0  # fewer pixels than the quantile leaves: the maximum counts, and the mask is not lost
    assert score_responses(speck, masks, torch.zeros(1, 4, 5, dtype=torch.long), s).max() > 0.5


def test_claim_is_an_argmax_at_any_size():
    maps = torch.rand(5, 6, 8)
    labels, best = torch.full((12, 16), 99, dtype=torch.int16), torch.zeros(12, 16)
    for name, map_ in enumerate(maps):
        claim(labels, best, torch.full((3, 4), name), map_)
    large = torch.nn.functional.interpolate(maps[None], size=(12, 16), mode="bilinear")[0]
    assert torch.equal(labels.long(), large.argmax(0)) and torch.equal(best, large.amax(0))
    claim(labels, best, torch.tensor([[8, 8], [9, 9]]), maps[0] + 2)
    assert (labels[:6] == 8).all() and (labels[6:] == 9).all(), "each pixel goes to the owner of its cell"


def test_blur_is_scipys():
    maps = torch.rand(1, 20, 30)
    expected = maps[0].double().numpy()
    for axis in (0, 1):
        expected = gaussian_filter1d(expected, 3.0, axis=axis, mode="mirror", radius=2)
    assert np.abs(gaussian_blur(maps, 5, 3.0)[0].numpy() - expected).max() < 1e-6


def test_modulation_lands_on_its_tokens(backbone):
    shift = torch.zeros(2, 3, 4)
    shift[0, 1, 2] = shift[1, 2, 0] = 5
    ((path, edit),) = backbone.modulation("some.attn2", shift, frames=2).items()
    changed = edit(torch.zeros(2, 12, 7))
    assert path == "some.attn2" and (changed[0, 6] == 5).all() and (changed[1, 8] == 5).all() and changed.sum() == 70
    with pytest.raises(ValueError, match=r"\(2, 48\) tokens, the masks \(2, 12\)"):
        edit(torch.zeros(2, 48, 7))


# coloured modulation


@pytest.fixture
def patches():
    """Forty labels in blobs on a 24 x 32 grid, three frames."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, (24, 32), (40, 2))
    y, x = np.mgrid[:24, :32]
    frames = [np.stack([(y - sy - n) ** 2 + (x - sx) ** 2 for sy, sx in seeds]).argmin(0) for n in range(3)]
    return torch.from_numpy(np.stack(frames))


@pytest.mark.parametrize("separation", [0, 1, 2, 4])
def test_masks_of_one_colour_are_apart(patches, separation):
    """Every pair of cells with labels of one colour, by a plain loop over distances."""
    colours = colour(patches, separation)
    assert set(colours) == set(patches.unique().tolist()) and len(set(colours.values())) < len(colours)
    cells = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij"), -1).reshape(-1, 2)
    distance = (cells[:, None] - cells[None]).abs().amax(-1)
    tint = torch.tensor([colours.get(n, -1) for n in range(40)])
    for frame in patches:
        labels = frame.flatten()
        alike = (tint[labels][:, None] == tint[labels][None]) & (labels[:, None] != labels[None])
        assert distance[alike].min() > separation


def test_each_alone_is_a_colour_each(patches):
    assert sorted(colour(patches, None).values()) == list(range(len(patches.unique())))


def test_owners_are_the_nearest_of_the_mask():
    rng = np.random.default_rng(1)
    labels, mask = torch.from_numpy(rng.integers(0, 9, (7, 9))), torch.from_numpy(rng.random((7, 9)) < 0.2)
    found = owners(labels, mask)
    points = mask.nonzero()
    for y, x in np.ndindex(7, 9):
        squared = ((points - torch.tensor([y, x])) ** 2).sum(1)
        nearest = points[squared == squared.min()]
        assert found[y, x] in labels[nearest[:, 0], nearest[:, 1]]
    assert torch.equal(owners(labels, torch.zeros_like(mask)), labels)


@pytest.mark.parametrize("coupled", [False, True])
def test_the_plan_modulates_every_cell_once(patches, coupled):
    group = plan(patches, 1, coupled)
    covered = torch.zeros_like(patches)
    covered.index_add_(0, group.frames, group.masks.long())
    assert (covered == 1).all()
    for frame, mask, owner in zip(group.frames, group.masks, group.owners, strict=True):
        assert (owner == patches[frame])[mask].all()
    if coupled:
        assert group.frames.tolist() == [0, 1, 2] * (len(group) // 3)
    else:
        assert group.masks.flatten(1).any(1).all() and len(group) < len(plan(patches, None, False))


@pytest.mark.slow
def test_colouring_changes_few_pixels(backbone):
    """Twenty clusters of the cup: measured 99.2 % of pixels as mask by mask, bilinear 97.9 %."""
    vidseg = VidSeg(backbone, Settings(context=ContextSettings(num_clusters=20, num_segments=None)))
    frames = sample_clip("cup").frames[:1]
    cells = torch.from_numpy(next(vidseg.cells(frames)).refined)
    together, alone = (
        upsample(backbone, frames, Votes.certain(cells), s) for s in (vidseg.settings, each_alone(vidseg.settings))
    )
    assert (alone == together).float().mean() > 0.98, (alone == together).float().mean()
    passes = [len(plan(cells, s, False)) for s in (None, 1)]
    assert passes[1] < passes[0] / 3


# votes on a finer grid


def test_what_wins_a_fine_cell_is_modulated():
    """The mean votes on a coarser grid; label 9 wins one fine cell and no mean, and has a cell all the same."""
    shares = torch.zeros(1, 4, 4, 2)
    shares[..., 0] = 1
    shares[0, 3, 3] = torch.tensor([0.4, 0.6])
    shares[0, :2, :2] = torch.tensor([0.2, 0.8])
    votes = Votes(shares, torch.tensor([3, 9]))
    assert modulated_cells(votes, (2, 2)).tolist() == [[[9, 3], [3, 3]]]
    shares[0, :2, :2] = torch.tensor([1.0, 0.0])
    assert modulated_cells(votes, (2, 2)).tolist() == [[[3, 3], [3, 9]]], "it would be lost"
    assert torch.equal(modulated_cells(votes, (4, 4)), votes.labels)


def test_what_is_lost_takes_nobodys_only_cell():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0, :2], labels[0, 1, 0] = torch.tensor([1, 2]), 3
    found = modulated_cells(Votes.certain(labels), (2, 2))
    assert found[0, 0, 0] in (1, 2, 3) and (found.flatten()[1:] == 0).all(), "three labels, of one coarse cell"
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[0, 2, 2], labels[0, 2, 3], labels[0, 3, 2] = 1, 2, 3
    spread = Votes(
        torch.nn.functional.avg_pool2d(torch.nn.functional.one_hot(labels).float().permute(0, 3, 1, 2), 3, 1, 1).permute(
            0, 2, 3, 1
        )
        * 0.3
        + 0.7 * torch.nn.functional.one_hot(labels),
        torch.arange(4),
    )
    assert set(modulated_cells(spread, (3, 3)).unique().tolist()) == {0, 1, 2, 3}


def test_finer_votes_give_finer_labels(backbone, window):
    """The exact labels of cells of 8 pixels, or of 4, are upsampled by masks of 8."""
    exact, frames, cells = window
    fine = torch.stack([name_cells(mask, (60, 80)) for mask in exact])
    settings = Settings().resolve(backbone.model)
    wrong = [(upsample(backbone, frames, Votes.certain(c), settings).numpy() != exact).mean() for c in (cells, fine)]
    assert wrong[1] < 0.8 * wrong[0], wrong


@pytest.mark.parametrize("strategy", ["direct", "guided", "reference"])
@pytest.mark.parametrize("part", ["unet", "codec"])
def test_responses_that_are_no_numbers_are_refused(backbone, clip, monkeypatch, strategy, part):
    """They would lose against every vote, and the pixels would be the cells, with no word."""
    settings = Settings(working_size=SMALL, upsample=UpsampleSettings(strategy=strategy)).resolve(backbone.model)
    name = "denoise" if part == "unet" else ("decode" if strategy == "reference" else "decode_difference")
    method = getattr(backbone, name)
    monkeypatch.setattr(backbone, name, lambda *given, **how: method(*given, **how) * float("nan"))
    votes = Votes.certain(cells_of(clip.labels[:1]))
    words = ("NaN", "--dtype float32", "bfloat16")
    refusal(*words, call=upsample, backbone=backbone, frames=clip.frames[:1], votes=votes, settings=settings)
