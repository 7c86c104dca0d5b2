"""SD 2.1 and SVD at their true configurations with random weights: one window of two frames at 256x256 through all stages.

Opt-in (`make test-full`): 12 GB of memory, no network, some minutes. What it shows is that shapes, hooks, replay and memory
hold at full size; random weights have nothing to say about labels.
"""

import threading
import time

import numpy as np
import psutil
import pytest
import torch
from architectures import true_backbone

from vidseg_core import ContextSettings, Settings, UpsampleSettings, VidSeg


class Peak:
    """The largest resident set while the block ran, GB, sampled twenty times a second."""

    def __enter__(self):
        self.gigabytes, self.stop, process = 0.0, threading.Event(), psutil.Process()

        def watch():
            while not self.stop.wait(0.05):
                self.gigabytes = max(self.gigabytes, process.memory_info().rss / 1e9)

        threading.Thread(target=watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()


@pytest.fixture(scope="module", params=["sd21-base", "svd"])
def backbone(request):
    torch.manual_seed(0)
    return true_backbone(request.param)


@pytest.mark.parametrize(("strategy", "masks"), [("direct", 3), ("guided", 1)])
def test_a_window_runs_through_all_stages(backbone, strategy, masks, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    settings = Settings(
        context=ContextSettings(num_clusters=masks), upsample=UpsampleSettings(strategy=strategy), working_size=(256, 256)
    )
    started = time.perf_counter()
    with Peak() as peak:
        result = VidSeg(backbone, settings)(frames)
    seconds = time.perf_counter() - started
    assert result.labels.shape == (2, 256, 256) and result.refined.shape == (2, 16, 16)
    assert set(np.unique(result.labels)) <= set(range(masks))
    assert result.features.context.isfinite().all() and result.features.match.shape == (2, 16, 16, 640)
    parameters = sum(p.numel() for p in backbone.unet.parameters()) / 1e6
    assert parameters == pytest.approx(backbone.model.parameters[0], rel=0.01)
    stages = ", ".join(f"{stage} {t:.1f}" for stage, t in result.timings.items())
    with capsys.disabled():
        print(
            f"\n{backbone.model.name}: UNet {parameters:.0f} M, {strategy}, K={masks}: {seconds:.0f} s ({stages}), peak "
            f"{peak.gigabytes:.1f} GB of memory"
        )
