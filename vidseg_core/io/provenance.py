"""Everything that determines a result, and how two records of it differ: a run resumes only if nothing has changed.

A record is what `json.loads` gives: what is read back from a file is compared with what is wanted now.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vidseg_core.io.video import Clip
    from vidseg_core.models.backbone import Backbone
    from vidseg_core.settings import Settings

PACKAGES = ("vidseg-workbook", "torch", "diffusers", "transformers", "numpy", "pillow", "av")
WORDS = {"clip_sha256": "another clip or other frames of it", "first_mask_sha256": "another first mask",
         "later_masks_sha256": "other later masks", "weights": "other weights"}  # fmt: skip
"""What is said of hashes, which tell a reader nothing."""


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How `known` differs from `now`, in words; empty if it does not. What `now` does not name may be anything."""
    differing = [key for key, value in now.items() if known.get(key) != value]
    return "; ".join(WORDS.get(key) or _difference(key, known.get(key), now[key]) for key in differing)


def _difference(key: str, before: Any, now: Any) -> str:
    """The first thing in which two values differ, by its path."""
    while isinstance(before, dict) and isinstance(now, dict):
        inner = next(k for k in [*before, *now] if before.get(k) != now.get(k))
        key, before, now = f"{key}.{inner}", before.get(inner), now.get(inner)
    return f"{key} = {_short(before)}, not {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def run_record(backbone: "Backbone", settings: "Settings") -> dict[str, Any]:
    """Everything that determines a pipeline's result: settings, model and weights, versions, device, precision, threads."""
    import torch

    from vidseg_core.models.fingerprint import fingerprint_parts

    return {
        "settings": settings.to_dict(), "model": backbone.model.name, "device": str(backbone.device),
        "dtype": str(backbone.unet.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
        "weights": fingerprint_parts(backbone),
    }  # fmt: skip


def installed_version(package: str) -> str:
    """The version of an installed package, in words if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


def model_record(backbone: "Backbone") -> dict[str, str]:
    """A model as it computes here: weights, kind of device and precision; which of several GPUs it is plays no part."""
    from vidseg_core.models.fingerprint import fingerprint_parts

    dtype = str(backbone.unet.dtype).removeprefix("torch.")
    return {"weights": fingerprint_parts(backbone), "device": backbone.device.type, "dtype": dtype}


def clip_hash(clip: "Clip") -> str:
    """A hash of the files that a clip is read from, those of its frames only."""
    digest = hashlib.sha256()
    for path in (clip.files[n] for n in clip.indices) if clip.files else (clip.source,):
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def mask_hash(mask: np.ndarray) -> str:
    """A hash of a label map's shape and values."""
    return hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()
