"""Work in pieces: all of it is done, in order, and a full memory halves the piece once and for all."""

import warnings

import pytest
import torch

from vidseg_core import InputError, Settings
from vidseg_core.features import extract_features
from vidseg_core.memory import Pieces
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


def test_labels_do_not_depend_on_memory(backbone, images, clip, monkeypatch):
    """The UNet refuses more than five images; features and labels are those of a roomy device."""
    settings = Settings(working_size=(96, 128)).resolve(backbone.model)
    cells = torch.from_numpy(clip.labels[:, 4::8, 4::8].copy())
    features = extract_features(backbone, images, settings)
    labels = upsample(backbone, images, cells, (96, 128), settings)
    real = backbone.unet.forward

    def small(sample, *args, **kwargs):
        if len(sample) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(sample, *args, **kwargs)

    monkeypatch.setattr(backbone.unet, "forward", small)
    monkeypatch.setattr(backbone, "pieces", Pieces())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = extract_features(backbone, images, settings)
        assert (again.context - features.context).abs().max() < 1e-4
        assert (upsample(backbone, images, cells, (96, 128), settings) == labels).float().mean() > 0.9999
    assert sum("out of memory" in str(w.message) for w in said) == 1
