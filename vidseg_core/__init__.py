"""VidSeg: training-free video semantic segmentation with diffusion models (Wang et al., CVPR 2025, arXiv 2405.16947)."""

import importlib
from typing import Any

HOMES = {
    "common": ("InputError",),
    "settings": ("ConditionSettings", "ContextSettings", "FeatureSettings", "PaperSettings", "RefineSettings", "Settings",
                 "UpsampleSettings"),
    "paper": ("reference_settings",),
    "models.backbone": ("Backbone",),
    "models.loading": ("load_backbone",),
    "pipeline": ("Segmentation", "VidSeg", "WindowResult"),
    "io.video": ("open_clip", "read_frames"),
    "io.masks": ("read_mask",),
    "io.results": ("save_segmentation",),
    "io.samples": ("generated_clip", "sample_clip"),
}  # fmt: skip
"""What is offered, by the module that has it. A module is loaded when one of its names is asked for: torch and diffusers take
seconds, and a reader of masks needs neither."""
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vidseg_core.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
