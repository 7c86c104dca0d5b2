"""VidSeg: training-free video semantic segmentation with diffusion models (Wang et al., CVPR 2025, arXiv 2405.16947)."""

from vidseg_core.backbone import Backbone
from vidseg_core.errors import InputError
from vidseg_core.loading import load_backbone
from vidseg_core.pipeline import Segmentation, VidSeg, WindowResult
from vidseg_core.results import read_mask
from vidseg_core.samples import generated_clip, sample_clip
from vidseg_core.settings import (
    ConditionSettings,
    ContextSettings,
    FeatureSettings,
    RefineSettings,
    Settings,
    UpsampleSettings,
)
from vidseg_core.video import open_clip, read_frames

__all__ = [
    "Backbone", "ConditionSettings", "ContextSettings", "FeatureSettings", "InputError", "RefineSettings", "Segmentation",
    "Settings", "UpsampleSettings", "VidSeg", "WindowResult", "generated_clip", "load_backbone", "open_clip", "read_frames",
    "read_mask", "sample_clip",
]  # fmt: skip
