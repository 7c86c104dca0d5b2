"""What the tests of both trainings share: a small CNN, the command, an interruption."""

import os
import signal

import pytest
import torch
import train_tiny
from safetensors.torch import load_file
from tiny_training.trainer import Trainer
from torch import nn


class SmallNet(nn.Module):
    """As much of EfficientNet as the targets use: a stem and two blocks, strides 4 and 8, padded on the right and below."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self._bn0, self._swish = nn.Identity(), nn.SiLU()
        self._conv_stem = nn.Conv2d(3, 8, 2, 2)
        self._blocks = nn.ModuleList([nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 6, 2, 2)])
        self._conv_stem.weight.data *= 30  # features are standardised: deviations shall be far from nothing


def command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["train_tiny.py", *map(str, words)])
    return train_tiny.main()


def refused(monkeypatch, capsys, *words):
    """The message of a command that must end with status 2."""
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, *words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def interrupted_after(monkeypatch, count, number=signal.SIGINT):
    """Let the process get a signal in the midst of its step `count`."""
    whole = Trainer.step

    def step(self):
        if self.run.step == count - 1:
            os.kill(os.getpid(), number)
        return whole(self)

    monkeypatch.setattr(Trainer, "step", step)
