"""Stable Video Diffusion behind the same interface: noise levels, conditioning, tokens in space and time, replay."""

import math

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.pipelines import StableVideoDiffusionPipeline

from vidseg_core import (
    ConditionSettings,
    ContextSettings,
    InputError,
    PaperSettings,
    Settings,
    UpsampleSettings,
    VidSeg,
    load_backbone,
)
from vidseg_core.context import Votes
from vidseg_core.features import QUERY, extract_features
from vidseg_core.models.registry import SD_BLOCKS, SVD
from vidseg_core.models.video_backbone import SPATIAL, TEMPORAL

SIZE = (64, 128)


@pytest.fixture(scope="module", params=["tiny-video", "svd"])
def backbone(request):
    """The embedded model, whose weights were trained, and SVD's structure with random weights."""
    return request.getfixturevalue("svd") if request.param == "svd" else load_backbone("tiny-video", device="cpu")


def twin(backbone):
    """The modulated layer and its counterpart in time."""
    return backbone.model.modulated, backbone.model.modulated.replace(SPATIAL, TEMPORAL)


def cells(backbone):
    """Rows and columns of the modulated layer's tokens."""
    return tuple(side // backbone.cell(backbone.model.modulated) for side in SIZE)


@pytest.fixture(scope="module")
def images():
    smooth = torch.rand(3, 3, 4, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(smooth, size=SIZE, mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def condition(backbone, images):
    return backbone.condition(images, ConditionSettings(), seed=0)


@pytest.fixture(scope="module")
def noisy(backbone, images):
    latents = backbone.encode(images)
    return latents + torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))


def test_noise_levels_are_karras(svd):
    """FIELD: 25 steps from 700 to 0.002 with rho 7: 1.273 at step 17, 0.002 at 24; closed form to a relative 1e-5."""
    timesteps, sigmas = svd.schedule(25)
    low, high = 0.002 ** (1 / 7), 700 ** (1 / 7)
    for step in range(25):
        closed = (high + step / 24 * (low - high)) ** 7
        assert sigmas[step] == pytest.approx(closed, rel=1e-5)
        assert timesteps[step] == pytest.approx(math.log(closed) / 4, abs=1e-6)
        assert svd.sigma(timesteps[step]) == pytest.approx(closed, rel=1e-5)
    assert (sigmas[17], sigmas[24], sigmas[25]) == (pytest.approx(1.273, abs=5e-4), pytest.approx(0.002, rel=1e-5), 0)
    assert svd.sigma(SVD.feature_timestep) == pytest.approx(0.002, rel=1e-5)
    assert svd.sigma(SVD.modulation_timestep) == pytest.approx(sigmas[17], rel=1e-5)
    with pytest.raises(InputError, match=r"ln\(sigma\)"):
        svd.sigma(39)


def test_one_step_is_the_schedulers_estimate(backbone, noisy, condition):
    scheduler = EulerDiscreteScheduler.from_config(backbone.scheduler)
    scheduler.set_timesteps(25)
    t = scheduler.timesteps[17]
    video = torch.cat([scheduler.scale_model_input(noisy, t)[None], condition.first[None].expand(-1, 3, -1, -1, -1)], 2)
    numbers = torch.tensor([[14.0, 127.0, 0.02]])
    with torch.inference_mode():
        output = backbone.unet(video, t, encoder_hidden_states=condition.embedding, added_time_ids=numbers).sample[0]
    scheduler._step_index = 17
    expected = scheduler.step(output, t, noisy).pred_original_sample
    assert (backbone.denoise(noisy, float(t), condition=condition) - expected).abs().max() < 1e-4


def test_guidance_grows_over_the_frames(backbone, noisy, condition):
    """Linear from the first to the last frame, against zero embedding and zero conditioning frame (FIELD: 1.0 to 2.5)."""
    from dataclasses import replace

    zero = replace(condition, embedding=condition.embedding * 0, first=condition.first * 0)
    told, untold = (backbone.denoise(noisy, 0.06, condition=c) for c in (condition, zero))
    scale = torch.tensor([1.0, 1.75, 2.5]).view(3, 1, 1, 1)
    found = backbone.denoise(noisy, 0.06, guidance=(1.0, 2.5), condition=condition)
    assert (found - (untold + scale * (told - untold))).abs().max() < 1e-3
    assert (found[0] - told[0]).abs().max() < 1e-3 and (found[2] - told[2]).abs().max() > 1e-2


def test_the_condition_is_what_diffusers_pipeline_makes(svd_folder, svd, images):
    """CLIP's embedding and the conditioning latent, beside StableVideoDiffusionPipeline's own methods."""
    from PIL import Image

    pipeline = StableVideoDiffusionPipeline.from_pretrained(svd_folder)
    rgb = ((images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    exact = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    ours = svd.condition(exact, ConditionSettings(noise_augmentation=0.0), seed=0)
    with torch.inference_mode():
        embedding = pipeline._encode_image(Image.fromarray(rgb), "cpu", 1, False)
        latent = pipeline._encode_vae_image(exact, "cpu", 1, False)
    assert (ours.first - latent).abs().max() < 1e-5
    assert (ours.embedding - embedding).abs().max() < 1e-5
    noised = svd.condition(exact, ConditionSettings(), seed=0)
    assert (noised.first - ours.first).abs().max() > 0
    noise = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    together = svd.condition(exact + 0.02 * noise, ConditionSettings(noise_augmentation=0.0), seed=0)
    assert (noised.first - together.first).abs().max() > 1e-6, "drawn apart from the latents' noise, which has the same seed"
    assert noised.numbers.tolist()[0] == pytest.approx([14, 127, 0.02])


def test_masks_land_on_their_tokens_in_space_and_time(backbone, noisy, condition):
    """Spatial attention has tokens [f, h * w], temporal attention [h * w, f]; two windows in a pass are kept apart."""
    (spatial, temporal), (h, w) = twin(backbone), cells(backbone)
    shift = torch.zeros(6, h, w)
    shift[1, 2, 5] = 7.0  # window 0, frame 1
    shift[5, 0, 3] = 3.0  # window 1, frame 2
    edits = backbone.modulation(spatial, shift, frames=3)
    assert set(edits) == {spatial, temporal}
    in_space, in_time = edits[spatial](torch.zeros(6, h * w, 5)), edits[temporal](torch.zeros(2 * h * w, 3, 5))
    assert (in_space[1, 2 * w + 5] == 7).all() and (in_space[5, 3] == 3).all() and in_space.sum() == 50
    assert (in_time[2 * w + 5, 1] == 7).all() and (in_time[h * w + 3, 2] == 3).all() and in_time.sum() == 50
    with backbone.tap((spatial, temporal)) as taps:
        backbone.denoise(noisy, 0.06, condition=condition)
    assert taps[spatial].shape[:2] == (3, h * w) and taps[temporal].shape[:2] == (h * w, 3)


def test_only_temporal_self_attention_is_injected(backbone):
    paths, attentions = backbone.injected(), 4 if backbone.model.name == "tiny-video" else 9
    assert len(paths) == 2 * attentions and all(".temporal_transformer_blocks.0.attn1.to_" in p for p in paths)


def test_features_are_a_manual_walk_through_the_network(svd, images):
    """The queries of output blocks 6, 7, 8, taken by calling the submodules one after the other up to that layer."""
    settings = Settings(context=ContextSettings(num_clusters=3), working_size=SIZE).resolve(svd.model)
    found = extract_features(svd, images, settings)
    unet, latents, condition = svd.unet, svd.encode(images), svd.condition(images, ConditionSettings(), seed=0)
    sigma = 0.002
    x = latents + sigma * svd.noise(latents, 0, shared=True)
    with torch.inference_mode():
        queries = walk(unet, torch.cat([x / (sigma**2 + 1) ** 0.5, condition.first.expand(3, -1, -1, -1)], 1), condition)
    mean = sum(queries) / 3
    expected = (mean / mean.abs().amax(-1, keepdim=True)).reshape(3, 4, 8, -1)
    assert (found.context - expected).abs().max() < 1e-4
    middle = queries[1] / queries[1].abs().amax(-1, keepdim=True)
    assert (found.match - middle.reshape(3, 4, 8, -1)).abs().max() < 1e-4


def walk(unet, x, condition):
    """Queries [3][f, h * w, d] of up_blocks[2].attentions[0..2] for one window x [f, 8, h, w]."""
    frames = len(x)
    t = torch.full((1,), math.log(0.002) / 4)
    embedded = unet.time_embedding(unet.time_proj(t)) + unet.add_embedding(
        unet.add_time_proj(condition.numbers.flatten()).reshape(1, -1)
    )
    embedded, context = embedded.repeat(frames, 1), condition.embedding.repeat(frames, 1, 1)
    video = {"image_only_indicator": torch.zeros(1, frames)}
    h = unet.conv_in(x)
    skips = [h]
    for block in unet.down_blocks:
        told = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
        h, more = block(h, temb=embedded, **told, **video)
        skips += more
    h = unet.mid_block(h, temb=embedded, encoder_hidden_states=context, **video)
    for n in (0, 1):
        part, skips = tuple(skips[-3:]), skips[:-3]
        told = {"encoder_hidden_states": context} if n else {}
        h = unet.up_blocks[n](h, part, temb=embedded, **told, **video)
    queries = []
    for resnet, attention in zip(unet.up_blocks[2].resnets, unet.up_blocks[2].attentions, strict=True):
        h = resnet(torch.cat([h, skips.pop()], 1), embedded, torch.zeros(1, frames))
        tokens = attention.proj_in(attention.norm(h).flatten(2).transpose(1, 2))
        block = attention.transformer_blocks[0]
        queries.append(block.attn1.to_q(block.norm1(tokens)))
        h = attention(h, context, torch.zeros(1, frames)).sample
    return queries


def test_replay_equals_the_full_pass_for_repeated_windows(backbone, noisy, condition):
    block = backbone.model.modulated
    with backbone.record(block) as record:
        plain = backbone.denoise(noisy, 0.06, condition=condition)
    rows = torch.arange(3).repeat(2)
    shift = torch.randn(6, *cells(backbone))
    with backbone.replay(record, rows), backbone.edit(backbone.modulation(block, shift, 3)):
        replayed = backbone.denoise(noisy[rows], 0.06, condition=condition)
    for n in range(2):
        with backbone.edit(backbone.modulation(block, shift[3 * n : 3 * n + 3], 3)):
            full = backbone.denoise(noisy, 0.06, condition=condition)
        assert (replayed[3 * n : 3 * n + 3] - full).abs().max() < 1e-4
        assert (full - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match="whole windows"), backbone.replay(record, torch.tensor([0, 2])):
        pass


def test_frames_see_each_other(backbone, noisy, condition):
    """Else the family would be an image model in disguise; and a chunk may then not cut a window."""
    other = noisy.clone()
    other[2] += 1
    change = (backbone.denoise(other, 0.06, condition=condition) - backbone.denoise(noisy, 0.06, condition=condition)).abs()
    assert change[0].max() > 1e-4
    assert backbone.coupled and not load_backbone("tiny", device="cpu").coupled


def test_each_frame_is_decoded_alone(backbone, noisy):
    """So that memory pressure never changes labels: the temporal decoder sees clips of one frame."""
    assert (backbone.decode(noisy) - torch.cat([backbone.decode(z[None]) for z in noisy])).abs().max() == 0


@pytest.mark.parametrize(
    ("backbone", "strategy"),
    [
        pytest.param(name, strategy, marks=() if (name, strategy) == ("tiny-video", "direct") else pytest.mark.slow)
        for name in ("tiny-video", "svd")
        for strategy in ("direct", "guided", "reference")
    ],
    indirect=["backbone"],
)
def test_a_clip_runs_through_all_stages(backbone, strategy):
    """A window of two frames and a shorter last one. Random weights: nothing can be said of where the borders are."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    how = {"upsample": UpsampleSettings(strategy=strategy), "paper": PaperSettings(start_step=23)}
    settings = Settings(context=ContextSettings(num_clusters=2), **how, working_size=(64, 64), window=2)
    result = VidSeg(backbone, settings)(frames)
    side = 64 // backbone.cell(backbone.model.blocks[0]) * settings.resolve(backbone.model).features.scales[0]
    assert result.labels.shape == (3, 50, 40) and result.refined.shape == (3, side, side)
    assert set(np.unique(result.labels)) <= set(np.unique(result.refined))
    again = VidSeg(backbone, settings).enlarge(frames[2:], Votes(torch.from_numpy(result.votes[1][2:]), torch.arange(2)))
    assert (again == result.labels[2:]).all()


def test_image_blocks_only(backbone):
    with pytest.raises(InputError, match="temporal"):
        backbone.modulation(twin(backbone)[1], torch.zeros(3, *cells(backbone)), 3)


def test_block_names_of_sd_hold_for_video():
    assert SVD.blocks == SD_BLOCKS and QUERY.startswith(".transformer_blocks.")
