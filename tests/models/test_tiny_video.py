"""The embedded video model: it loads offline, segments a real clip, and its temporal layers earn their keep."""

import numpy as np
import pytest

from vidseg_core import Settings, VidSeg, generated_clip, load_backbone, sample_clip
from vidseg_core.cli import main
from vidseg_core.evaluation.metrics import confusion, mean_iou
from vidseg_core.io.masks import read_mask
from vidseg_core.models.registry import TINY_VIDEO, data_folder
from vidseg_core.workbook.context import named_cells, read_features
from vidseg_core.workbook.motion import faster
from vidseg_core.workbook.steadiness import hide, judge, judge_lost, lost_cells, shuffled
from vidseg_core.workbook.temporal import without_time


@pytest.fixture(scope="module")
def video():
    return load_backbone("tiny-video", device="cpu")


def test_it_is_small_and_what_the_registry_says(video):
    weights = list((data_folder() / "models" / "tiny-video").rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) < 40e6
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (video.unet, video.image_encoder.network)]
    assert millions == pytest.approx(TINY_VIDEO.parameters, abs=0.06)
    assert video.coupled and video.scheduler["prediction_type"] == TINY_VIDEO.prediction


@pytest.mark.slow
def test_a_real_clip_against_hand_drawn_masks(video):
    """Every third frame from one drawn mask to the next."""
    clip = sample_clip("cup")
    result = VidSeg(video)(clip.frames[:13:3], first_mask=clip.masks[0], names=clip.names, keep=())
    score = mean_iou(confusion(result.labels[-1:], clip.masks[12][None], len(clip.names)))
    assert score > 0.9, score


@pytest.mark.slow
def test_moves_end_further_from_the_truth_without_temporal_layers_or_in_another_order(video):
    """Measured on 14 frames of five clips by `benchmarks/video_time.py`."""
    clip = faster(generated_clip(22), 3)
    whole, mixed = (judge(read(video, clip.frames), clip) for read in (read_features, shuffled))
    with video.edit(without_time(video, "all")):
        alone = judge(read_features(video, clip.frames), clip)
    assert whole.away < alone.away - 0.02 and whole.away < mixed.away - 0.02, (whole.away, alone.away, mixed.away)
    assert whole.found > mixed.found + 0.01 and whole.similarity > mixed.similarity + 0.01 and whole.right > 0.97


@pytest.mark.slow
def test_temporal_layers_see_what_is_lost(video):
    """Measured there, too. "One class for all" scores 1 / 3 by class."""
    clip, middle = generated_clip(8), 4
    spoiled = hide(clip.frames, middle, 0.5)

    def right() -> float:
        cells = named_cells(read_features(video, spoiled), clip.labels[0], Settings())[middle]
        return judge_lost(cells, clip.labels[middle], lost_cells(clip.frames, spoiled, middle, cells.shape)).by_class

    whole = right()
    with video.edit(without_time(video, "all")):
        assert whole > max(right(), 1 / 3) + 0.1


@pytest.mark.slow
def test_the_command_line_takes_it(tmp_path, capsys):
    clip = str(data_folder() / "clips" / "cup.mp4")
    words = ["--model", "tiny-video", "--size", "128x96", "--frames", "0:3", "--window", "2", "--segments", "3"]
    assert main(["segment", clip, "--out", str(tmp_path / "a"), *words]) == 0
    again = ["--settings", str(tmp_path / "a" / "run.json"), "--model", "tiny-video", "--frames", "0:3"]
    assert main(["segment", clip, "--out", str(tmp_path / "b"), *again]) == 0
    masks = [read_mask(tmp_path / run / "masks" / "00002.png") for run in "ab"]
    assert np.array_equal(*masks) and masks[0].shape == (240, 320)
