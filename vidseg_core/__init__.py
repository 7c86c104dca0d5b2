"""VidSeg: training-free video semantic segmentation with diffusion models (Wang et al., CVPR 2025, arXiv 2405.16947)."""

from vidseg_core.common import InputError
from vidseg_core.io.masks import read_mask
from vidseg_core.io.samples import generated_clip, sample_clip
from vidseg_core.io.video import open_clip, read_frames
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.loading import load_backbone
from vidseg_core.pipeline import Segmentation, VidSeg, WindowResult
from vidseg_core.settings import (
    ConditionSettings,
    ContextSettings,
    FeatureSettings,
    RefineSettings,
    Settings,
    UpsampleSettings,
)

__all__ = [
    "Backbone", "ConditionSettings", "ContextSettings", "FeatureSettings", "InputError", "RefineSettings", "Segmentation",
    "Settings", "UpsampleSettings", "VidSeg", "WindowResult", "generated_clip", "load_backbone", "open_clip", "read_frames",
    "read_mask", "sample_clip",
]  # fmt: skip
