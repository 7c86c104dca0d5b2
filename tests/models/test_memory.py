"""Work in pieces: all of it is done, in order, and a full memory halves the piece once and for all."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from full_size_memory import peak

from vidseg_core import ContextSettings, InputError, Settings, UpsampleSettings, VidSeg
from vidseg_core.context import Votes
from vidseg_core.features import extract_features
from vidseg_core.models.memory import Pieces
from vidseg_core.modulation import NoisyWindow
from vidseg_core.paper import predict_masks
from vidseg_core.upsample import upsample


def limited(most, done):
    """Work that fails when a piece holds more than `most` things."""

    def work(part):
        if part.stop - part.start > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(range(part.start, part.stop))
        return part

    return work


def test_pieces_cover_everything_in_order():
    done = []
    assert [p.stop - p.start for p in Pieces().run(10, 4, limited(99, done))] == [4, 4, 2] and done == list(range(10))


def test_a_full_memory_halves_the_piece_and_says_so_once():
    pieces, done = Pieces(), []
    with pytest.warns(UserWarning, match="halved") as said:
        list(pieces.run(14, 8, limited(3, done)))
        list(pieces.run(14, 8, limited(3, done)))
    assert done == list(range(14)) * 2 and pieces.limit == 2 and len(said) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("MPS backend out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])  # fmt: skip
def test_nothing_left_to_halve_is_refused(error):
    def work(part):
        raise error

    with pytest.warns(UserWarning), pytest.raises(InputError, match="--size"):
        list(Pieces().run(5, 4, work))


def test_other_errors_pass():
    def work(part):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Pieces().run(2, 2, work))


def full_beyond(most, forward):
    """A forward pass that runs out of memory with more than so many images (or, for a video model, windows)."""

    def small_device(sample, *args, **kwargs):
        if len(sample) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **kwargs)

    return small_device


def test_labels_do_not_depend_on_memory(backbone, images, clip, monkeypatch):
    """The UNet refuses more than five images; features and labels are those of a roomy device."""
    settings = Settings(working_size=(96, 128)).resolve(backbone.model)
    cells = torch.from_numpy(clip.labels[:3, 4::8, 4::8].copy())
    features = extract_features(backbone, images, settings)
    labels = upsample(backbone, clip.frames[:3], Votes.certain(cells), settings)
    monkeypatch.setattr(backbone.unet, "forward", full_beyond(5, backbone.unet.forward))
    monkeypatch.setattr(backbone, "pieces", Pieces())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = extract_features(backbone, images, settings)
        assert (again.context - features.context).abs().max() < 1e-4
        assert (upsample(backbone, clip.frames[:3], Votes.certain(cells), settings) == labels).float().mean() > 0.9999
    assert sum("out of memory" in str(w.message) for w in said) == 1


@pytest.fixture(scope="module")
def window(backbone, images):
    """Four frames of 64 x 64 pixels, noise and settings for the guided strategy."""
    s = Settings(upsample=UpsampleSettings(strategy="guided"), working_size=(64, 64)).resolve(backbone.model)
    latents = backbone.encode(images[:4, :, 16:80, 32:96])
    return NoisyWindow(latents, backbone.noise(latents, 0, True).expand_as(latents), None), s


def test_only_the_modulated_passes_of_the_reference_are_too_large(backbone, window, monkeypatch):
    """They hold more than the plain pass, whose record is still there; a piece of theirs is halved alone."""
    window, s = window
    cells = torch.arange(8).div(4, rounding_mode="floor").expand(4, 8, 8)
    whole = list(predict_masks(backbone, window, cells, s.upsample, s.paper))
    monkeypatch.setattr(backbone, "pieces", Pieces())
    real = backbone.replay
    monkeypatch.setattr(backbone, "replay", lambda record, rows: full_beyond(4, lambda r: real(record, r))(rows))
    with pytest.warns(UserWarning, match="halved"):
        pieces = list(predict_masks(backbone, window, cells, s.upsample, s.paper))
    assert max(len(p.group) for p in pieces) == 2  # twice as many images: guidance
    assert max(len(p.group) for p in whole) == 4
    assert torch.cat([p.group.frames for p in pieces]).equal(torch.cat([p.group.frames for p in whole]))
    for sign in ("plus", "minus"):
        ours, theirs = (torch.cat([getattr(p, sign) for p in predictions]) for predictions in (pieces, whole))
        assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize(("strategy", "most"), [("direct", 0), ("guided", 0), ("guided", 1)])
def test_a_window_of_a_video_model_is_not_divided(svd, monkeypatch, strategy, most):
    """The UNet refuses all windows, or more than one: then a pass with guidance is too large."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), dtype=np.uint8)
    how = {"context": ContextSettings(num_clusters=2), "upsample": UpsampleSettings(strategy=strategy)}
    settings = Settings(**how, working_size=(64, 128))
    monkeypatch.setattr(svd.unet, "forward", full_beyond(most, svd.unet.forward))
    monkeypatch.setattr(svd, "pieces", Pieces())
    with warnings.catch_warnings(), pytest.raises(InputError, match="shorter window"):
        warnings.simplefilter("ignore")
        VidSeg(svd, settings)(frames)


@pytest.mark.parametrize("part", ["encode", "condition", "decode_difference"])
def test_what_has_no_pieces_is_refused_in_the_same_words(backbone, clip, settings, monkeypatch, part):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    vidseg = VidSeg(backbone, settings)
    result = vidseg(clip.frames[:1])
    monkeypatch.setattr(backbone, part, full)
    with pytest.raises(InputError, match="--size"):
        vidseg(clip.frames[:1])
    with pytest.raises(InputError, match="--size"):
        vidseg.resegment(result, 2)


def test_a_mask_that_is_not_in_every_frame_takes_no_more_memory(backbone, window):
    """The attention recorded of all steps and layers is not copied for it."""
    window, s = window

    def taken(frames):
        cells = torch.zeros(4, 8, 8, dtype=torch.long)
        cells[:frames, 3:6, 3:6] = 1
        cells[frames:, 3:6, 3:6] = 2
        return peak(lambda: list(predict_masks(backbone, window, cells, s.upsample, s.paper)))

    assert taken(3) < 1.01 * taken(4)


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of glibc")
def test_memory_that_was_freed_is_taken_again():
    """Without it each of these tensors is 16,384 new pages."""
    code = """
import resource, torch
from vidseg_core.models.memory import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):  # the first round finds places
    before = faults()
    for _ in range(10):
        torch.ones(2**24)
print(faults() - before)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) < 2000
