"""The training of the embedded model: a run goes on exactly where it stopped, and what would spoil it is refused."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import checkpoint, targets
from tiny_training.images import Crop, cut, draw_crop, read_images, to_tensor
from tiny_training.losses import align_loss, border_loss, relation_loss
from tiny_training.settings import TrainSettings
from tiny_training.targets import Targets, sample_map
from tiny_training.trainer import Run, Trainer, learning_rate, start
from trainings import command, interrupted_after, refused, weights

from vidseg_core.common import InputError
from vidseg_core.io.samples import sample_clip
from vidseg_core.models.registry import data_folder

pytestmark = pytest.mark.training

TINY = data_folder() / "models" / "tiny"
SMALL = TrainSettings(steps=4, height=64, width=80, batch=2, blocks=(0, 1), block_weights=(0.5, 0.5), relation_tokens=40)
OPTIONS = [
    *("--steps", "4", "--height", "64", "--width", "80", "--batch", "2", "--blocks", "0", "1", "--block-weights", ".5", ".5"),
    *("--relation-tokens", "40", "--log-every", "1"),
]


@pytest.fixture
def folder(tmp_path):
    """Four pictures, 112x96, cut out of the sample clip."""
    path = tmp_path / "images"
    path.mkdir()
    for n, frame in enumerate(sample_clip("cup").frames[:48:12]):
        Image.fromarray(frame[60:156, 100:212]).save(path / f"{n}.png")
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(monkeypatch, capsys, folder, tmp_path, number):
    options = ["--images", folder, "--init", TINY, "--head-steps", "2", *OPTIONS]
    command(monkeypatch, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 3, number)
        assert "stopped at step 3" in refused(patch, capsys, tmp_path / "parts", *options)
    assert not (tmp_path / "parts" / "samples.png").exists()
    command(monkeypatch, tmp_path / "parts", *options)
    assert "resumed at step 3" in capsys.readouterr().out
    one, other, before = weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model"), weights(TINY)
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert any(not torch.equal(one[k], before[k]) for k in one), "nothing was learned"
    assert len((tmp_path / "parts" / "log.csv").read_text().splitlines()) == 5
    assert (tmp_path / "whole" / "samples.png").read_bytes() == (tmp_path / "parts" / "samples.png").read_bytes()


def test_asked_twice_it_ends_at_once(monkeypatch, folder, tmp_path):
    def step(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, tmp_path / "out", "--images", folder, *OPTIONS)
    assert ended.value.code == 130 and signal.getsignal(signal.SIGINT) is before


def test_the_head_learns_alone_at_first(monkeypatch, folder, tmp_path):
    command(monkeypatch, tmp_path / "out", "--images", folder, "--init", TINY, "--head-steps", "4", *OPTIONS)
    made, given = weights(tmp_path / "out" / "model"), weights(TINY)
    assert all(torch.equal(made[k], given[k]) for k in given)


def test_what_shaped_the_result_is_recorded(monkeypatch, folder, tmp_path):
    command(monkeypatch, tmp_path / "out", "--images", folder, "--lr", "0.001", *OPTIONS)
    about = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    assert (about["lr"], about["steps_done"], about["init"], about["threads"]) == (0.001, 4, None, 1)
    assert about["images"].startswith("4 images, ") and str(tmp_path) not in json.dumps(about)


def test_the_mean_with_other_weights_is_written_and_not_trained_on(monkeypatch, capsys, folder, tmp_path):
    options = [tmp_path / "out", "--images", folder, "--lr", "0.01", *OPTIONS]
    command(monkeypatch, *options)
    alone, given, state = (
        weights(tmp_path / "out" / "model"),
        weights(TINY),
        checkpoint.read_checkpoint(tmp_path / "out" / "checkpoint.pt"),
    )
    command(monkeypatch, *options, "--mean-with", TINY)  # the budget is used: nothing but the mean is new
    mean = weights(tmp_path / "out" / "model")
    for name in mean:
        torch.testing.assert_close(mean[name].float(), (alone[name].float() + given[name].float()) / 2, atol=1e-3, rtol=1e-2)
    assert any(not torch.equal(mean[name], alone[name]) for name in mean)
    again = checkpoint.read_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert all(torch.equal(again["average"][name], state["average"][name]) for name in again["average"])
    assert json.loads((tmp_path / "out" / "model" / "training.json").read_text())["mean_with"]
    command(monkeypatch, *options)
    assert all(torch.equal(v, alone[k]) for k, v in weights(tmp_path / "out" / "model").items())
    assert "no such folder" in refused(monkeypatch, capsys, *options, "--mean-with", tmp_path / "none")


def test_a_run_goes_on_only_as_it_began(monkeypatch, capsys, folder, tmp_path):
    options = ["--images", folder, *OPTIONS]
    command(monkeypatch, tmp_path / "out", *options)
    before = (tmp_path / "out" / "checkpoint.pt").read_bytes()
    for words, expected in (
        (["--lr", "0.1"], "--lr 0.0004"),
        (["--batch", "3"], "--batch 2"),
        (["--block-weights", ".1", ".9"], "--block-weights"),
        (["--init", TINY], "began with other init"),
    ):
        assert expected in refused(monkeypatch, capsys, tmp_path / "out", *options, *words)
    Image.new("RGB", (100, 100)).save(folder / "new.png")
    assert "began with other images" in refused(monkeypatch, capsys, tmp_path / "out", *options)
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == before
    (folder / "new.png").unlink()
    command(monkeypatch, tmp_path / "out", *options, "--steps", "5")  # a larger budget is no other run
    assert json.loads((tmp_path / "out" / "model" / "training.json").read_text())["steps_done"] == 5


def test_a_spoiled_step_is_not_saved(monkeypatch, capsys, folder, tmp_path):
    whole = Trainer.losses

    def losses(self, *batch):
        found = whole(self, *batch)
        return found | {"border": found["border"] * (math.nan if self.run.step == 2 else 1)}

    monkeypatch.setattr(Trainer, "losses", losses)
    message = refused(monkeypatch, capsys, tmp_path / "out", "--images", folder, *OPTIONS, "--save-every", "1e-9")
    assert "step 2: the border loss is nan" in message
    state = checkpoint.read_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert state["step"] == 2 and all(v.isfinite().all() for v in state["network"].values())


def test_a_full_disk_leaves_the_checkpoint_before(monkeypatch, capsys, folder, tmp_path):
    options = [tmp_path / "out", "--images", folder, *OPTIONS]
    command(monkeypatch, *options)
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    def save(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch says of a full disk

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        message = refused(patch, capsys, *options, "--steps", "6")
    assert "cannot be written" in message and "GB are free" in message
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == files
    command(monkeypatch, *options, "--steps", "6")


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    for name in (".model.old", ".model.new", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    def write(folder):
        folder.mkdir()
        (folder / "file").write_text("made")

    checkpoint.replace_folder(tmp_path / "model", write)
    assert (tmp_path / "model" / "file").read_text() == "made" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "model").rename(tmp_path / ".model.old")  # killed between the two renamings
    with pytest.raises(ZeroDivisionError):
        checkpoint.replace_folder(tmp_path / "model", lambda folder: write(folder) or 1 / 0)
    assert (tmp_path / "model" / "file").read_text() == "made" and len(list(tmp_path.iterdir())) == 1


def test_without_alignment_no_cnn_is_needed(monkeypatch, capsys, folder, tmp_path):
    monkeypatch.setattr(targets, "load_cnn", lambda: pytest.fail("the CNN was loaded"))
    options = [*OPTIONS, "--steps", "1", "--align-weight", "0", "--relation-weight", "0"]
    command(monkeypatch, tmp_path / "out", "--images", folder, *options)
    assert "align nan" in capsys.readouterr().out and not (tmp_path / "out" / "targets.pt").exists()


def test_samples_alone(monkeypatch, capsys, folder, tmp_path):
    out = tmp_path / "out"
    assert "there is neither" in refused(monkeypatch, capsys, out, "--steps", "0")
    command(monkeypatch, out, "--steps", "0", "--init", TINY, "--height", "64", "--width", "80")
    first = np.asarray(Image.open(out / "samples.png"))
    assert first.shape == (64, 4 * 80, 3) and [p.name for p in out.iterdir()] == ["samples.png"]
    command(monkeypatch, out, "--images", folder, *OPTIONS)
    trained = (out / "samples.png").read_bytes()
    (out / "samples.png").unlink()
    command(monkeypatch, out, *OPTIONS, "--steps", "0")
    assert (out / "samples.png").read_bytes() == trained, "not of the checkpoint's average"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": None}, "give a budget"),
        ({"steps": -5}, "--steps -5: expected 0 or more"),
        ({"minutes": -1.0}, "--minutes -1: expected more than 0"),
        ({"minutes": math.nan}, "--minutes nan"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
        ({"height": 32}, "--height 32: expected 64"),
        ({"width": 72}, "multiples of 16"),
        ({"seed": -1}, "--seed -1"),
        ({"scale_low": 0.0}, "--scale-low 0"),
        ({"scale_low": 2.0, "scale_high": 1.0}, "above --scale-high"),
        ({"ema": 1.0}, "--ema 1: expected 0 to 0.999999"),
        ({"enlarge": 0}, "--enlarge 0"),
        ({"relation_tokens": 1}, "--relation-tokens 1"),
        ({"blocks": (1, 0)}, "rising order"),
        ({"blocks": (1, 1)}, "rising order"),
        ({"blocks": (1, 99)}, "--blocks 99: expected 0 to 15"),
        ({"block_weights": (1.0,)}, "as many --block-weights"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed, words):
    SMALL.check()
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        replace(SMALL, **changed).check()


def test_folders_that_cannot_serve_are_refused(monkeypatch, capsys, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "no images" in refused(monkeypatch, capsys, tmp_path / "out", "--images", tmp_path / "empty", *OPTIONS)
    assert "no such folder" in refused(monkeypatch, capsys, tmp_path / "out", "--images", tmp_path / "none", *OPTIONS)
    assert "choose another OUT" in refused(monkeypatch, capsys, tmp_path / "file", "--images", folder, *OPTIONS)
    for option in ("--init", "--mean-with"):
        words = ["--images", folder, option, tmp_path / "empty", *OPTIONS]
        assert "holds no unet/config.json" in refused(monkeypatch, capsys, tmp_path / "late", *words)
    assert not (tmp_path / "late").exists(), "said only after the images"
    (tmp_path / "other" / "unet").mkdir(parents=True)
    config = json.loads((TINY / "unet" / "config.json").read_text()) | {"layers_per_block": 2}
    (tmp_path / "other" / "unet" / "config.json").write_text(json.dumps(config))
    other = ["--images", folder, "--init", tmp_path / "other", *OPTIONS]
    assert "differs from the embedded model in layers_per_block" in refused(monkeypatch, capsys, tmp_path / "out", *other)


def test_images_are_upright_and_of_a_useful_size(tmp_path):
    picture = Image.new("RGB", (400, 800), "red")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=turned)
    Image.new("L", (100, 90)).save(tmp_path / "grey.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    grey, large = read_images([tmp_path], SMALL)
    assert large.size == (384, 192) and grey.size == (100, 90) and grey.mode == "RGB"


@pytest.mark.parametrize(("name", "content"), [("broken.jpg", b"\xff\xd8\xff\xe0broken"), ("small.png", None)])
def test_an_image_that_cannot_serve_is_named(tmp_path, name, content):
    if content:
        (tmp_path / name).write_bytes(content)
    else:
        Image.new("RGB", (30, 90)).save(tmp_path / name)
    with pytest.raises(InputError, match=name):
        read_images([tmp_path], SMALL)


def test_crops_lie_in_their_images():
    sizes = [(80, 64), (81, 64), (50, 50), (40, 32), (192, 256), (43, 97), (1000, 64)]
    rng = np.random.default_rng(0)
    for number in range(2000):
        crop = draw_crop(sizes, SMALL, rng)
        (left, top, right, bottom), (width, height) = crop.box, sizes[crop.image]
        assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9, (number, crop)
        assert math.isclose((right - left) / (bottom - top), 80 / 64, rel_tol=1e-6)


def test_a_mirrored_crop_is_the_mirror_image():
    image = Image.fromarray(sample_clip("cup").frames[0][:96, :112])
    crop = Crop(0, (10.0, 5.0, 90.0, 69.0), False)
    plain, mirrored = (cut(image, replace(crop, mirrored=m), SMALL) for m in (False, True))
    torch.testing.assert_close(mirrored, plain.flip(-1))
    torch.testing.assert_close(plain, to_tensor(image)[:, 5:69, 10:90])


def test_targets_are_sampled_where_the_cells_are():
    """Features that hold the pixel on which they are centred, stride * (i + 1), give the centres of the crop's cells."""
    stride, count = 4, 40
    place = stride * (torch.arange(count) + 1.0)
    x, y = torch.broadcast_tensors(place[None], place[:, None])
    maps = torch.stack([x, y])[None]
    torch.testing.assert_close(sample_map(maps, torch.tensor([5.0, 37.5]), torch.tensor([9.0]), stride)[0, :, 0],
                               torch.tensor([[5.0, 37.5], [9.0, 9.0]]))  # fmt: skip
    for mirrored in (False, True):
        found = Targets([[maps]], [stride]).sample(Crop(0, (20.0, 30.0, 100.0, 94.0), mirrored), (8, 10))[0]
        across = 24 + 8 * torch.arange(10.0)
        torch.testing.assert_close(found[0, 0], across.flip(0) if mirrored else across)
        torch.testing.assert_close(found[1, :, 0], 34 + 8 * torch.arange(8.0))


def test_features_are_standardised_and_of_known_stride():
    images = [Image.fromarray(f[:100, :90]) for f in sample_clip("cup").frames[:3]]
    made = Targets.build(images, SMALL)
    assert made.channels == [8, 6] and made.strides == [2.0, 4.0]  # of images that the CNN sees enlarged twice
    for maps in made.maps:
        values = torch.cat([m.float().flatten(2)[0] for m in maps], 1)
        assert values.mean(1).abs().max() < 0.1 and (values.std(1) - 1).abs().max() < 0.15


def test_a_cache_of_other_images_is_not_used(monkeypatch, capsys, tmp_path):
    frames = sample_clip("cup").frames
    one, other = ([Image.fromarray(f[:64, :80]) for f in frames[n : n + 2]] for n in (0, 20))
    path = tmp_path / "targets.pt"
    made = Targets.cached(path, one, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(targets, "load_cnn", lambda: pytest.fail("made anew"))
        again = Targets.cached(path, one, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(made.maps[0], again.maps[0], strict=True))
    changed = Targets.cached(path, other, SMALL)
    assert "of other images" in capsys.readouterr().out and not torch.equal(changed.maps[0][0], made.maps[0][0])
    path.write_bytes(b"damaged")
    assert torch.equal(Targets.cached(path, other, SMALL).maps[0][0], changed.maps[0][0])
    assert "cannot be read" in capsys.readouterr().out
    with pytest.raises(InputError, match="before training began"):
        Targets.cached(path, one, SMALL, lambda: True)
    assert torch.equal(Targets.cached(path, other, SMALL).maps[0][0], changed.maps[0][0]), "the file was lost"


def test_the_learning_rate_rises_and_falls():
    run = Run(None, None, None, None, None, None)
    settings = TrainSettings(steps=1000, lr=1.0, warmup=100)
    rates = [learning_rate(replace(run, step=n), settings, False) for n in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[500] == pytest.approx(0.5) and rates[1000] == pytest.approx(0)
    assert np.argmax(rates) == 99 and learning_rate(replace(run, step=3), settings, True) == 1.0
    assert learning_rate(run, replace(settings, warmup=0), False) == 1.0


def test_losses_are_0_where_nothing_is_to_be_learned_and_1_where_nothing_is_known():
    features = [torch.randn(4, 24, 8, 10), torch.randn(4, 16, 8, 10)]
    sure, half, pick = torch.ones(4), torch.full((4,), 0.5), torch.arange(300)
    assert align_loss(torch.cat(features, 1), features, (0.7, 0.3), sure).abs() < 1e-6
    assert align_loss(-torch.cat(features, 1), features, (0.7, 0.3), half).item() == pytest.approx(1.0, abs=1e-5)
    assert relation_loss(3 * features[0], features[:1], (1.0,), sure, pick) < 1e-9
    unknowing = torch.eye(320, 400).reshape(4, 8, 10, 400).movedim(-1, 1)  # every token at right angles to every other
    assert relation_loss(unknowing, features[:1], (1.0,), sure, pick).item() == pytest.approx(1.0, abs=0.1)
    assert relation_loss(unknowing, features[:1], (1.0,), half, pick).item() == pytest.approx(1 / 4, abs=0.03)


def test_the_border_loss_sees_a_frame_and_nothing_else():
    inside = torch.randn(64, 4, 8, 10)
    framed = inside.clone()
    framed[:, :, 0] += 1
    assert border_loss(inside) < 0.1 < border_loss(framed)
    assert border_loss(framed).item() == pytest.approx(border_loss(framed.flip(2)).item(), rel=1e-4)
    even = torch.ones(64, 4, 8, 10) * torch.randn(64, 4, 1, 1)
    assert border_loss(even) < 1e-10


def test_queries_learn_at_their_own_rate():
    run = start(replace(SMALL, query_lr_factor=6.0), [8, 6], None)
    factors = {g["factor"]: sum(p.numel() for p in g["params"]) for g in run.optimizer.param_groups}
    assert factors[6.0] == 4 * 96 * 96 and factors[3.0] == sum(p.numel() for p in run.head.parameters())
    assert sum(factors.values()) - factors[3.0] == sum(p.numel() for p in run.network.parameters())


def test_the_real_cnn_has_the_strides_that_the_targets_count_on(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.undo()
    made = Targets.build([Image.fromarray(sample_clip("cup").frames[0][:100, :90])], TrainSettings())
    assert made.channels == [40, 112, 320] and made.strides == [4.0, 8.0, 16.0]
