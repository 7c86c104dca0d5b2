"""What to segment, and how: a clip, its masks and names, a model, settings."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vidseg_core.cluster.door import HERE, Workers
from vidseg_core.common import InputError
from vidseg_core.io.provenance import clip_hash, mask_hash
from vidseg_core.io.video import Clip
from vidseg_core.models.weights import resolve
from vidseg_core.settings import Settings

if TYPE_CHECKING:
    from vidseg_core.models.backbone import Backbone
    from vidseg_core.pipeline import VidSeg


class ModelError(InputError):
    """The fault is the model's, or that of settings which it can't run: no other clip would do."""


def say(line: str) -> None:
    """To whoever watches the run."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Job:
    """What to segment, and how. `model`, `device`, `dtype` and `offload` are those of `load_backbone`, `masks` and
    `names` those of `VidSeg`; `words` is how the input was named, for the record only. `threads`: how many torch computes with,
    in each process (None: its own choice); a run that goes on has those that it began with. `tell` takes remarks on the way.
    `workers` share the windows of this clip."""

    clip: Clip
    settings: Settings
    masks: dict[int, np.ndarray] = field(default_factory=dict)
    names: dict[int, str] | None = None
    model: str = "tiny"
    device: str | None = None
    dtype: str | None = None
    offload: bool = False
    words: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    tell: Callable[[str], None] = say
    workers: Workers = HERE

    def request(self) -> dict[str, Any]:
        """What decides the masks, as far as it is known before the model is loaded, ready for JSON."""
        model, indices = resolve(self.model), self.clip.indices
        hashes = {str(n): mask_hash(mask) for n, mask in sorted(self.masks.items())}
        return {
            "clip_sha256": clip_hash(self.clip), "frames": [indices[0], indices[-1], indices.step],
            "first_mask_sha256": hashes.pop("0", None), "later_masks_sha256": hashes or None,
            "given_names": None if self.names is None else {str(n): name for n, name in sorted(self.names.items())},
            "model": model.name, "settings": self.settings.resolve(model).to_dict(),
        }  # fmt: skip

    def load(self, threads: int | None) -> "VidSeg":
        """The pipeline, computing with so many threads (None: torch's choice). Raises ModelError."""
        # torch and diffusers take seconds to import: not before the input is checked
        import torch

        from vidseg_core.models.loading import load_backbone
        from vidseg_core.pipeline import VidSeg

        if threads is not None:
            torch.set_num_threads(threads)  # sums are rounded in the order of the threads
        try:
            return VidSeg(_kept_model(load_backbone, self.model, self.device, self.dtype, self.offload), self.settings)
        except InputError as error:
            raise ModelError(str(error)) from error


@lru_cache(maxsize=1)
def _kept_model(load: Callable[..., "Backbone"], *how: Any) -> "Backbone":
    """A process keeps its model from clip to clip."""
    return load(*how)


def models_loaded() -> int:
    """How many models this process has loaded for jobs."""
    return _kept_model.cache_info().misses
