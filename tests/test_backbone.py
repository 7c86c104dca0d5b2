"""The model behind one interface: codec, noise levels, one UNet pass, hooks and replay."""

import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models import AutoencoderKL
from scipy.fft import dctn

from vidseg_core import ContextSettings, InputError, Settings, UpsampleSettings, VidSeg, load_backbone
from vidseg_core.features import QUERY
from vidseg_core.registry import SD_BLOCKS, data_folder

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
    monkeypatch.setattr(backbone, "condition", torch.randn(1, 1, 32))
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


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    """Stable Diffusion's block structure with few channels and random weights, saved as diffusers saves it."""
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = tuple(kind.replace("Down", "Up") for kind in down[::-1])
    UNet2DConditionModel(
        block_out_channels=(32, 32, 64, 64), down_block_types=down, up_block_types=up,
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    return folder


def test_stable_diffusion_goes_through_the_same_door(sd_folder):
    backbone = load_backbone(sd_folder, device="cpu")
    assert backbone.model.blocks == SD_BLOCKS and backbone.codec.factor == 8 and backbone.multiple == 64
    images = torch.rand(2, 3, 64, 128) * 2 - 1
    latents = backbone.encode(images)
    assert latents.shape == (2, 4, 8, 16)
    with backbone.tap((SD_BLOCKS[1] + QUERY,)) as taps:
        assert backbone.denoise(latents, 39).shape == latents.shape
    assert taps[SD_BLOCKS[1] + QUERY].shape == (2, 4 * 8, 32), "queries at 1/16 of the frame"
    difference = backbone.codec.decode_difference(latents, latents * 0.5)
    assert (difference - (backbone.decode(latents) - backbone.decode(latents * 0.5))).abs().max() < 1e-5


@pytest.mark.parametrize("strategy", ["direct", "reference"])
def test_stable_diffusion_runs_through_all_stages(sd_folder, strategy):
    """Random weights, so that nothing can be said of the labels but their shape and where they come from."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 50, 100, 3), dtype=np.uint8)
    settings = Settings(
        context=ContextSettings(num_clusters=3), upsample=UpsampleSettings(strategy=strategy), working_size=(64, 128), window=2
    )
    result = VidSeg(load_backbone(sd_folder, device="cpu"), settings)(frames)
    assert result.labels.shape == frames.shape[:3] and result.refined.shape == (3, 4, 8)
    assert set(np.unique(result.labels)) <= set(np.unique(result.refined)) and result.features.match.shape == (3, 4, 8, 32)


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
