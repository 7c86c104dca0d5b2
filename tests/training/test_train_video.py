"""The training of `tiny-video`: clips whose motion is known, a start that is an image model, one noisy pass, a whole run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import clips
from tiny_training.clips import (
    Cutout,
    Material,
    Shot,
    draw_shot,
    frames_of,
    look,
    read_material,
    real_shot,
    targets_of,
    through,
)
from tiny_training.families import VIDEO_UNET, ImageFamily, VideoFamily, VideoNetwork, hide, motion_bucket
from tiny_training.settings import TrainSettings
from tiny_training.targets import Targets
from tiny_training.trainer import Teacher
from tiny_training.widening import begin_from_image, places
from torch import nn
from trainings import command, interrupted_after, refused, weights

from vidseg_core import InputError, VidSeg, load_backbone, sample_clip
from vidseg_core.features import QUERY
from vidseg_core.io.overlay import encode_video
from vidseg_core.models.registry import data_folder

pytestmark = pytest.mark.training

TINY = data_folder() / "models" / "tiny"
SMALL = TrainSettings(
    model="tiny-video", steps=2, height=64, width=80, batch=2, frames=3, blocks=(0, 1), block_weights=(0.5, 0.5),
    relation_tokens=40,
)  # fmt: skip


def ramps(width: int, height: int, stride: int) -> Targets:
    """Maps whose two channels are the place (x, y) in pixels, as `sample_points` understands places."""
    x = stride * (torch.arange(width // stride) + 1.0)
    y = stride * (torch.arange(height // stride) + 1.0)
    place = torch.stack(torch.broadcast_tensors(x[None], y[:, None]))[None]
    return Targets([[place]], [stride])


def test_a_point_has_the_target_of_its_place_in_all_frames():
    rng, picture = np.random.default_rng(3), Image.fromarray(np.zeros((256, 320, 3), np.uint8))
    material = Material([picture], 1, ())
    for _ in range(5):
        shot = draw_shot(material, replace(SMALL, cutout_share=0), rng)
        found = targets_of(shot, ramps(320, 256, 4), SMALL)[0]
        points = clips.grid_points(*SMALL.grid, SMALL)
        wanted = torch.stack([through(way, points).movedim(-1, 0) for way in shot.ways])
        inside = ((wanted > 4) & (wanted < torch.tensor([320, 256]).view(2, 1, 1))).all(1, keepdim=True).expand_as(wanted)
        assert inside.float().mean() > 0.9
        assert (found - wanted)[inside].abs().max() < 1e-3


def test_the_picture_moves_as_the_targets_do():
    columns = np.broadcast_to(np.arange(320, dtype=np.uint8)[None, :, None] // 2, (256, 320, 3))
    material = Material([Image.fromarray(np.ascontiguousarray(columns))], 1, ())
    shot = Shot((0, 0, 0), tuple(look(np.array([160 + 8.0 * n, 128]), 1.0, 0.0, False, SMALL) for n in range(3)))
    red = (frames_of(shot, material, SMALL)[:, 0] + 1) * 127.5
    assert (red[1] - red[0]).mean().item() == pytest.approx(4, abs=0.1)  # eight columns, half a grey level each
    assert red[0, 0, 40].item() == pytest.approx(80, abs=0.6)


def test_a_cutout_lies_before_the_picture_and_goes_its_own_way():
    black, white = (Image.fromarray(np.full((160, 160, 3), value, np.uint8)) for value in (0, 255))
    still = look(np.array([80.0, 80.0]), 1.0, 0.0, False, SMALL)
    ways = [still.copy() for _ in range(3)]
    for n, way in enumerate(ways):
        way[:, 2] -= (10.0 * n, 0.0)  # the white piece moves 10 pixels to the right a frame
    shot = Shot((0,) * 3, (still,) * 3, Cutout((80.0, 80.0), 12.0, ()), 1, tuple(ways))
    frames = frames_of(shot, Material([black, white], 2, ()), SMALL)[:, 0] / 2 + 0.5
    assert frames.sum((1, 2)).allclose(torch.tensor(math.pi * 144), rtol=0.02)
    middles = (frames * (torch.arange(80) + 0.5)).sum((1, 2)) / frames.sum((1, 2))
    assert middles.allclose(torch.tensor([40.0, 50.0, 60.0]), atol=0.1)
    maps = Targets([[torch.zeros(1, 1, 20, 20), torch.ones(1, 1, 20, 20)]], [8.0])
    cells = targets_of(shot, maps, SMALL)[0][:, 0]
    x, y = 8 * torch.arange(10) + 4, 8 * torch.arange(8) + 4
    for n, row in enumerate(cells):
        assert torch.equal(row, (((x[None] - 40 - 10 * n) ** 2 + (y[:, None] - 32) ** 2) < 144).float())


def test_a_real_clip_keeps_its_order(tmp_path):
    encode_video(sample_clip("cup").frames[:24, :128, :160], 24, tmp_path / "a.mp4")
    material = read_material([], [tmp_path], SMALL)
    assert len(material.images) == 12 and material.clips == (range(12),) and material.stills == 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = np.diff(real_shot(material, SMALL, rng).images)
        assert len(set(steps)) == 1 and abs(steps[0]) in clips.STEPS
    with pytest.raises(InputError, match="has 24 frames: a training clip takes 28"):
        read_material([], [tmp_path], replace(SMALL, frames=14))
    with pytest.raises(InputError, match="nothing to train on"):
        read_material([], [], SMALL)


def test_temporal_layers_begin_as_the_identity():
    torch.manual_seed(0)
    unet = VideoFamily().create().unet.eval()
    clip, t = torch.randn(1, 3, 24, 16, 16), torch.tensor([0.1])
    told = {"encoder_hidden_states": torch.randn(1, 1, 32), "added_time_ids": torch.tensor([[7.0, 100.0, 0.02]])}
    with torch.inference_mode():
        together = unet(clip, t, **told).sample[0]
        alone = torch.cat([unet(clip[:, n : n + 1], t, **told).sample[0] for n in range(3)])
    assert (together - alone).abs().max() < 1e-4 * together.abs().max()


def test_a_widened_start_holds_the_image_models_weights():
    video, image = VideoFamily().create().unet, ImageFamily().load(TINY)
    before = video.down_blocks[1].attentions[0].temporal_transformer_blocks[0].attn1.to_q.weight.clone()
    begin_from_image(video, image)
    path = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(video.get_submodule(path).weight, image.get_submodule(path).weight)
    assert torch.equal(video.conv_in.weight[:48, :12], image.conv_in.weight)
    wide, narrow = (u.up_blocks[2].resnets[1] for u in (video, image))
    assert torch.equal(wide.spatial_res_block.conv1.weight[:48, 64:112], narrow.conv1.weight[:, 48:])
    assert places(128, 96)[48:].tolist() == list(range(64, 112)) and places(96, 96).tolist() == list(range(96))
    assert torch.equal(video.down_blocks[1].attentions[0].temporal_transformer_blocks[0].attn1.to_q.weight, before)


class Oracle(nn.Module):
    """Knows the clean latents: gives v of table 1 of Karras et al. 2022 from what it is shown."""

    def __init__(self, clean):
        super().__init__()
        self.clean = clean

    def forward(self, inputs, timestep, embedding, numbers):
        sigma = (4 * timestep).exp().view(-1, 1, 1, 1, 1)
        noisy = inputs[:, :, :12] * (sigma**2 + 1).sqrt()
        v = (noisy / (sigma**2 + 1) - self.clean) * (sigma**2 + 1).sqrt() / sigma
        return type("Output", (), {"sample": v})


def test_the_pass_asks_for_v_at_the_level_that_it_names():
    family, images = VideoFamily(), torch.rand(6, 3, 64, 80) * 2 - 1
    clean = family.codec.encode(images).unflatten(0, (2, 3))
    network = VideoNetwork(Oracle(clean), family.create().encoder)
    made = family.noisy_pass(network, images, replace(SMALL, hidden_share=0), torch.Generator().manual_seed(0))
    assert made.denoising < 1e-6 and made.embedding.shape == (2, 1, 32)
    assert made.certainty.shape == (6,) and made.certainty[:3].unique().numel() == 1 and (made.certainty > 0).all()


def test_hidden_parts_are_rectangles_in_half_of_the_frames_of_some_clips():
    hidden = hide(torch.zeros(200, 4, 12, 24, 32), 0.5, torch.Generator().manual_seed(0))[:, :, 0]
    clips = hidden.flatten(1).any(1)
    assert clips.float().mean().item() == pytest.approx(0.5 * (1 - 0.5**4), abs=0.1)
    frames = hidden[clips].flatten(0, 1)
    some = frames.flatten(1).any(1)
    assert some.float().mean().item() == pytest.approx(0.5 / (1 - 0.5**4), abs=0.1)
    for frame in frames[some][:20]:
        rows, columns = frame.any(1), frame.any(0)
        assert torch.equal(frame, rows[:, None] & columns[None]) and rows.sum() >= 6 and columns.sum() >= 8
    assert not hide(torch.zeros(9, 4, 12, 24, 32), 0.0, torch.Generator()).any()


def test_the_condition_is_the_first_frame_or_nothing():
    family, clip = VideoFamily(), torch.rand(2, 3, 3, 64, 80)
    told = torch.randn(2, 1, 32)
    embedding, latent, numbers = family.condition(told, clip, replace(SMALL, drop=0), torch.Generator().manual_seed(0))
    assert torch.equal(embedding, told) and (latent - family.codec.encode(clip[:, 0])).abs().mean() < 0.3
    assert ((numbers[:, 0] >= 6) & (numbers[:, 0] <= 30)).all() and torch.equal(numbers[:, 1], motion_bucket(clip))
    embedding, latent, _ = family.condition(told, clip, replace(SMALL, drop=1), torch.Generator().manual_seed(0))
    assert not embedding.any() and not latent.any()
    assert motion_bucket(torch.zeros(1, 4, 3, 8, 8)).item() == 0 == motion_bucket(torch.rand(1, 1, 3, 8, 8)).item()


@pytest.fixture
def data(tmp_path):
    """A still and a clip, as options."""
    (tmp_path / "clips").mkdir()
    encode_video(sample_clip("cup").frames[:12, :128, :160], 24, tmp_path / "clips" / "a.mp4")
    (tmp_path / "images").mkdir()
    Image.fromarray(sample_clip("box").frames[0][:128, :160]).save(tmp_path / "images" / "0.png")
    return ["--images", tmp_path / "images", "--clips", tmp_path / "clips", "--init", TINY, "--model", "tiny-video"]


def test_a_run_goes_on_where_it_was_and_its_model_segments(monkeypatch, capsys, data, tmp_path):
    options = [
        *data, *("--height", "64", "--width", "80", "--batch", "2", "--frames", "3", "--blocks", "0", "1"),
        *("--block-weights", ".5", ".5", "--relation-tokens", "40", "--log-every", "1", "--head-steps", "1", "--steps", "3"),
        *("--teacher-weight", ".4", "--correspondence-weight", ".5"),
    ]  # fmt: skip
    command(monkeypatch, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 2)
        assert "stopped at step 2" in refused(patch, capsys, tmp_path / "parts", *options)
    command(monkeypatch, tmp_path / "parts", *options)
    one, other = (weights(tmp_path / name / "model") for name in ("whole", "parts"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    rows = [row.split(",") for row in (tmp_path / "whole" / "log.csv").read_text().splitlines()]
    assert len(rows) == 4 and "nan" not in rows[1] and rows[1][:2] == ["1", "6"]
    sheet = Image.open(tmp_path / "whole" / "samples.png")
    assert sheet.size == (3 * 80, 6 * 64)
    written = [path.read_text() for path in (tmp_path / "whole" / "model").rglob("*.json")]
    assert len(written) == 6 and not any(str(tmp_path) in text or str(TINY) in text for text in written)
    backbone = load_backbone(tmp_path / "whole" / "model")
    assert backbone.coupled and VIDEO_UNET["block_out_channels"] == tuple(backbone.unet.config.block_out_channels)
    assert VidSeg(backbone)(sample_clip("cup").frames[:3, ::4, ::4]).labels.shape == (3, 60, 80)


def test_the_teacher_is_the_embedded_models_queries_of_clean_frames():
    frame = sample_clip("cup").frames[:1, :64, :80]
    backbone = load_backbone("tiny", device="cpu")
    images = backbone.images(frame, (64, 80))
    with backbone.tap(tuple(block + QUERY for block in backbone.model.blocks)) as taps:
        backbone.denoise(backbone.encode(images), 0)
    expected = torch.cat([taps[block + QUERY] for block in backbone.model.blocks], -1).transpose(1, 2).unflatten(2, (8, 10))
    found = Teacher(SMALL)(images)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=1).min() > 0.98  # bfloat16
    assert replace(SMALL, teacher_weight=0.4).target_weights == pytest.approx((0.3, 0.3, 0.4))


def test_weights_of_another_kind_are_refused(monkeypatch, capsys, data, tmp_path):
    VideoFamily().save(VideoFamily().create(), tmp_path / "video")
    with pytest.raises(InputError, match="differs from the embedded model in"):
        ImageFamily().load(tmp_path / "video")
    assert "--model nothing: expected one of tiny, tiny-video" in refused(
        monkeypatch, capsys, tmp_path / "out", *data[:-1], "nothing", "--steps", "1"
    )
