"""The model behind one interface: codec, noise levels, one UNet pass, hooks and replay."""

import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from families import small
from scipy.fft import dctn

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
from vidseg_core.features import QUERY, extract_features
from vidseg_core.models.codec import BlockDCT
from vidseg_core.models.registry import SD21_BASE, SD_BLOCKS, SVD, data_folder

BLOCK = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def test_the_embedded_model_loads_offline_and_fast(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    started = time.perf_counter()
    backbone = load_backbone("tiny", device="cpu")
    assert time.perf_counter() - started < 2
    assert sum(p.numel() for p in backbone.unet.parameters()) < 15e6
    assert backbone.multiple == 16


def test_codec_is_the_block_dct(backbone):
    """Every channel against SciPy's DCT of the colour plane, at every block."""
    image = torch.rand(1, 3, 8, 12) * 2 - 1
    found = (backbone.codec.encode(image) * backbone.codec.std + backbone.codec.mean)[0].numpy()
    r, g, b = image[0].numpy()
    planes = (
        0.299 * r + 0.587 * g + 0.114 * b,
        -0.168736 * r - 0.331264 * g + 0.5 * b,
        0.5 * r - 0.418688 * g - 0.081312 * b,
    )
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
    kept = [(plane, order[n]) for plane, count in zip(planes, (6, 3, 3), strict=True) for n in range(count)]
    for channel, (plane, coefficient) in enumerate(kept):
        for i, j in np.ndindex(2, 3):
            block = dctn(plane[4 * i : 4 * i + 4, 4 * j : 4 * j + 4], norm="ortho")
            assert abs(found[channel, i, j] - block[coefficient]) < 1e-5


def test_codec_refuses_what_it_would_spoil(backbone, images):
    for wrong in (images[..., :-1], images[..., :-2, :]):
        with pytest.raises(ValueError, match="multiples of 4"):
            backbone.codec.encode(wrong)
    spec = {"block": 4, "luma": 2, "chroma": 1, "zigzag": [[0, 0], [0, 1]], "mean": [0.0] * 4, "std": [1.0] * 4}
    BlockDCT(**spec)
    for changed in ({"zigzag": [[0, 0]]}, {"std": [1.0, 1.0, 0.0, 1.0]}, {"mean": [0.0]}):
        with pytest.raises(ValueError, match=r"fix codec\.json"):
            BlockDCT(**spec | changed)


def test_codec_keeps_what_it_keeps_and_decodes_differences(backbone, images):
    codec = backbone.codec
    latents = codec.encode(images)
    again = codec.encode(codec.decode(latents))
    assert (again - latents).abs().max() < 1e-4
    other = latents + torch.randn_like(latents)
    assert (codec.decode_difference(other, latents) - (codec.decode(other) - codec.decode(latents))).abs().max() < 1e-4
    psnr = -10 * torch.log10((codec.decode(latents) - images).square().mean() / 4)
    assert psnr > 24


def test_noise_levels_are_those_of_the_scheduler(backbone):
    alphas = DDIMScheduler.from_config(backbone.scheduler).alphas_cumprod
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for t in (0, 20, 119, 999):
        alpha = np.prod(1 - betas[: t + 1])
        assert backbone.sigma(t) == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-5)
        assert backbone.sigma(t) == pytest.approx(float(((1 - alphas[t]) / alphas[t]) ** 0.5), rel=1e-4)  # float32 there
    timesteps, sigmas = backbone.schedule(25)
    assert timesteps[:2] == [999, 959] and timesteps[22:] == [119, 79, 39]
    assert sigmas[22:] == pytest.approx([0.387, 0.296, 0.196, 0], abs=5e-4)  # FIELD: the paper's steps 22, 23, 24
    with pytest.raises(InputError, match="1000"):
        backbone.sigma(1000)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_denoise_equals_the_schedulers_estimate(backbone, images, prediction, monkeypatch):
    monkeypatch.setitem(backbone.scheduler, "prediction_type", prediction)
    scheduler = EulerDiscreteScheduler.from_config(backbone.scheduler, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    t, x = scheduler.timesteps[22], backbone.encode(images) + torch.randn(6, 12, 24, 32)
    with torch.inference_mode():
        output = backbone.unet(scheduler.scale_model_input(x, t), t, torch.zeros(6, 1, 32)).sample
    expected = scheduler.step(output, t, x).pred_original_sample
    assert (backbone.denoise(x, float(t)) - expected).abs().max() < 1e-4


def test_guidance_mixes_both_halves(backbone, images, monkeypatch):
    x = backbone.encode(images[:2]) + torch.randn(2, 12, 24, 32)
    unconditional = backbone.denoise(x, 119)  # this model's condition is the zero embedding
    assert (backbone.denoise(x, 119, guidance=5.0) - unconditional).abs().max() < 1e-4
    embedding = torch.randn(1, 1, 32)
    monkeypatch.setattr(backbone, "prompt", lambda text: embedding)
    conditional = backbone.denoise(x, 119)
    assert (conditional - unconditional).abs().max() > 1e-3
    expected = unconditional + 5 * (conditional - unconditional)
    assert (backbone.denoise(x, 119, guidance=5.0) - expected).abs().max() < 1e-3


def test_replay_equals_the_full_pass(backbone, images):
    x = backbone.encode(images) + torch.randn(6, 12, 24, 32)
    shift = torch.randn(6, 12 * 16, 1)
    with backbone.edit({BLOCK: lambda out: out + shift}):
        full = backbone.denoise(x, 200)
    with backbone.record(BLOCK) as record:
        plain = backbone.denoise(x, 200)
    calls = []
    hook = backbone.unet.down_blocks[0].resnets[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        with backbone.replay(record, torch.arange(6)), backbone.edit({BLOCK: lambda out: out + shift}):
            replayed = backbone.denoise(x, 200)
    finally:
        hook.remove()
    assert not calls, "the part before the modulated layer ran again"
    assert (replayed - full).abs().max() == 0
    assert (replayed - plain).abs().max() > 1e-2
    assert (backbone.denoise(x, 200) - plain).abs().max() == 0, "a hook or a replaced forward stayed behind"


def test_replay_selects_rows(backbone, images):
    x = backbone.encode(images) + torch.randn(6, 12, 24, 32)
    with backbone.record(BLOCK) as record:
        plain = backbone.denoise(x, 200)
    rows = torch.tensor([4, 1, 1])
    with backbone.replay(record, rows):
        assert (backbone.denoise(x[rows], 200) - plain[rows]).abs().max() < 1e-4


def test_replay_restores_after_an_error(backbone, images):
    x = backbone.encode(images[:1])
    with backbone.record(BLOCK) as record:
        plain = backbone.denoise(x, 200)
    with pytest.raises(RuntimeError), backbone.replay(record, torch.tensor([0])):
        raise RuntimeError
    assert (backbone.denoise(x, 200) - plain).abs().max() == 0
    assert "forward" not in backbone.unet.mid_block.__dict__


def test_working_size_keeps_area_and_aspect(backbone):
    assert backbone.working_size(240, 320) == (240, 320)
    assert backbone.working_size(3000, 4000) == (240, 320)
    height, width = backbone.working_size(270, 480)
    assert height % 16 == width % 16 == 0 and abs(height / width - 270 / 480) < 0.03
    assert min(backbone.working_size(16, 4000)) >= 64


@pytest.fixture(scope="module", params=["sd15", "sd21-base", "sd21"])
def sd(request, tmp_path_factory):
    """Stable Diffusion's families with few channels and random weights, through diffusers' own `save_pretrained`."""
    return load_backbone(small(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def test_stable_diffusion_goes_through_the_same_door(sd):
    assert sd.model.blocks == SD_BLOCKS and sd.codec.factor == 8 and sd.multiple == 64
    latents = sd.encode(torch.rand(2, 3, 64, 128) * 2 - 1)
    assert latents.shape == (2, 4, 8, 16)
    difference = sd.decode_difference(latents, latents * 0.5)
    assert (difference - (sd.decode(latents) - sd.decode(latents * 0.5))).abs().max() < 1e-5


def test_what_comes_again_is_decoded_once(sd, monkeypatch):
    a, b, known, decode = torch.randn(4, 4, 8, 8), torch.randn(2, 4, 8, 8), [], sd.codec.vae.decode
    once, decoded = sd.decode_difference(a, b[[0, 0, 1, 0]]), []
    monkeypatch.setattr(sd.codec.vae, "decode", lambda z, **how: decoded.append(z) or decode(z, **how))
    assert sd.decode_difference(a[:3], b[[0, 0, 1]], known).equal(once[:3]) and len(decoded) == 3 + 2
    assert sd.decode_difference(a[3:], b[[0]], known).equal(once[3:]) and len(decoded) == 5 + 1 and len(known) == 2


def test_stable_diffusions_estimate_is_the_schedulers(sd):
    """Whatever the network predicts: pred_original_sample at the paper's step 22, from the model's own scheduler file."""
    scheduler = EulerDiscreteScheduler.from_config(sd.scheduler, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    t, x = scheduler.timesteps[22], torch.randn(2, 4, 8, 16)
    with torch.inference_mode():
        output = sd.unet(scheduler.scale_model_input(x, t), t, sd.prompt("").expand(2, -1, -1)).sample
    expected = scheduler.step(output, t, x).pred_original_sample
    assert (sd.denoise(x, float(t)) - expected).abs().max() < 1e-4
    assert sd.scheduler["prediction_type"] in ("epsilon", "v_prediction")


def test_stable_diffusions_sigmas_are_closed_forms(sd):
    """FIELD: steps 22, 23, 24 of 25 trailing ones: 0.387, 0.296, 0.196; all of them to a relative 1e-5."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    timesteps, sigmas = sd.schedule(25)
    for step, t in enumerate(range(999, 0, -40)):
        closed = ((1 - alphas[t]) / alphas[t]) ** 0.5
        assert timesteps[step] == t and sigmas[step] == pytest.approx(closed, rel=1e-5)
        assert sd.sigma(t) == pytest.approx(closed, rel=1e-6)
    assert sigmas[22:25] == pytest.approx([0.387, 0.296, 0.196], abs=5e-4)


def test_the_prompt_is_clips(sd):
    """Empty by default, padded to 77 tokens; another text gives another embedding, and another estimate."""
    assert sd.prompt("").shape == (1, 77, 32) and (sd.prompt("") == sd.prompt("")).all()
    assert (sd.prompt("a cat") - sd.prompt("")).abs().max() > 1e-3
    x = torch.randn(1, 4, 8, 16)
    told = sd.condition(x.new_zeros(1, 3, 64, 128), ConditionSettings(prompt="a cat"), 0)
    assert (sd.denoise(x, 119, condition=told) - sd.denoise(x, 119)).abs().max() > 1e-6
    words = sd.prompt("a " * 200)
    assert words.shape == (1, 77, 32), "longer texts are cut"


def test_stable_diffusions_features_are_a_manual_walk(sd):
    """Queries of output blocks 6, 7, 8 by calling the submodules one after the other up to that layer."""
    images = torch.rand(2, 3, 64, 128) * 2 - 1
    found = extract_features(sd, images, Settings(working_size=(64, 128)).resolve(sd.model))
    unet, sigma = sd.unet, sd.sigma(39)
    x = (sd.encode(images) + sigma * sd.noise(sd.encode(images), 0, shared=True)) / (sigma**2 + 1) ** 0.5
    context, t = sd.prompt("").expand(2, -1, -1), torch.full((2,), 39)
    with torch.inference_mode():
        embedded = unet.time_embedding(unet.time_proj(t))
        h = unet.conv_in(x)
        skips = [h]
        for block in unet.down_blocks:
            told = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
            h, more = block(h, temb=embedded, **told)
            skips += more
        h = unet.mid_block(h, embedded, encoder_hidden_states=context)
        for n in (0, 1):
            part, skips = tuple(skips[-3:]), skips[:-3]
            told = {"encoder_hidden_states": context} if n else {}
            h = unet.up_blocks[n](h, part, temb=embedded, **told)
        queries = []
        for resnet, attention in zip(unet.up_blocks[2].resnets, unet.up_blocks[2].attentions, strict=True):
            h = resnet(torch.cat([h, skips.pop()], 1), embedded)
            tokens = attention.norm(h)
            linear = isinstance(attention.proj_in, torch.nn.Linear)
            tokens = tokens.flatten(2).transpose(1, 2) if linear else attention.proj_in(tokens).flatten(2).transpose(1, 2)
            tokens = attention.proj_in(tokens) if linear else tokens
            block = attention.transformer_blocks[0]
            queries.append(block.attn1.to_q(block.norm1(tokens)))
            h = attention(h, context).sample
    mean = sum(queries) / 3
    expected = (mean / mean.abs().amax(-1, keepdim=True)).reshape(2, 4, 8, -1)
    assert (found.context - expected).abs().max() < 1e-4
    middle = queries[1] / queries[1].abs().amax(-1, keepdim=True)
    assert (found.match - middle.reshape(2, 4, 8, -1)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("sd", "strategy"),
    [
        pytest.param("sd15", "direct", marks=pytest.mark.slow),
        pytest.param("sd21-base", "guided", marks=pytest.mark.slow),
        ("sd21", "direct"),
    ],
    indirect=["sd"],
)
def test_stable_diffusion_runs_through_all_stages(sd, strategy):
    """Random weights, so that nothing can be said of the labels but their shape and where they come from."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    settings = Settings(
        context=ContextSettings(num_clusters=2), upsample=UpsampleSettings(strategy=strategy), working_size=(64, 64), window=2
    )
    result = VidSeg(sd, settings)(frames)
    assert result.labels.shape == frames.shape[:3] and result.refined.shape == (3, 4, 4)
    assert set(np.unique(result.labels)) <= set(np.unique(result.refined)) and result.features.match.shape == (3, 4, 4, 32)
    assert Settings().resolve(sd.model).upsample.strategy == "guided", "until direct is measured on real weights"


def test_guidance_over_frames_is_for_video(sd):
    with pytest.raises(InputError, match="image model"):
        VidSeg(sd, Settings(paper=PaperSettings(guidance=(1.0, 2.5))))


def test_block_names_are_those_of_the_original_checkpoints():
    """The original's output block n is up_blocks[n // 3].attentions[n % 3]: through diffusers' own converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    tag, query = "model.diffusion_model.output_blocks", "1.transformer_blocks.0.attn1.to_q.weight"
    original = {f"{tag}.{n}.0.in_layers.0.weight": torch.tensor([100.0 + n]) for n in range(12)}
    original |= {f"{tag}.{n}.{query}": torch.tensor([float(n)]) for n in range(3, 12)}
    converted = convert_ldm_unet_checkpoint(original, {"layers_per_block": 2})
    for n in (6, 7, 8):
        assert converted[SD_BLOCKS[n - 6] + QUERY + ".weight"].item() == n
    assert SD21_BASE.modulated.startswith("up_blocks.2.attentions.1."), "output block 7"
    assert SVD.modulated.startswith("up_blocks.2.attentions.2."), "output block 8"


@pytest.mark.parametrize("name", ["sd99", "no/such/folder"])
def test_unknown_models_are_refused(name):
    with pytest.raises(InputError, match=f"{name}.*tiny"):
        load_backbone(name)


def test_folders_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"unet/config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet1DModel", "block_out_channels": [1]}')
    with pytest.raises(InputError, match="UNet1DModel"):
        load_backbone(tmp_path)


def test_an_incomplete_model_is_refused(tmp_path):
    source = data_folder() / "models" / "tiny" / "unet" / "config.json"
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(source.read_text())
    with pytest.raises(InputError, match=r"incomplete.*safetensors"):
        load_backbone(tmp_path)


def test_a_sample_of_the_posterior_is_the_autoencoders(sd):
    """The paper's code encodes a draw; by default it is the mean. The draw shares no numbers with the latents' noise."""
    images = torch.rand(2, 3, 64, 128) * 2 - 1
    posteriors = [sd.codec.vae.encode(image[None]).latent_dist for image in images]
    mean, std = (torch.cat([getattr(p, part) for p in posteriors]) * sd.codec.scale for part in ("mean", "std"))
    assert (sd.encode(images) - mean).abs().max() < 1e-5
    drawn = (sd.encode(images, sample=7) - mean) / std
    assert torch.equal(sd.encode(images, sample=7), sd.encode(images, sample=7))
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1
    noise = sd.noise(drawn, 7, shared=False)
    assert abs(torch.corrcoef(torch.stack([drawn.flatten(), noise.flatten()]))[0, 1]) < 0.2
