"""A stage of the method in another process, which makes the same backbone again."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from vidseg_core.common import InputError

if TYPE_CHECKING:
    from vidseg_core.models.backbone import Backbone

ONE_AT_A_TIME = Lock()
"""A network that is looked into holds what one pass computes, so the threads of a worker take turns."""


@dataclass(frozen=True)
class Recipe:
    """`load(*arguments)` makes a backbone; both can be sent to another process."""

    load: Callable[..., "Backbone"]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Errand:
    """What a worker is sent for: a stage of the pipeline that `pipeline` makes of the backbone of `recipe`, whose weights have
    this fingerprint, computed with so many `threads` as at home: sums are rounded in the order of the threads."""

    recipe: Recipe
    weights: str
    pipeline: Callable[["Backbone"], Any]
    threads: int
    stage: str = ""

    @classmethod
    def of(cls, backbone: "Backbone", pipeline: Callable[["Backbone"], Any]) -> "Errand":
        """Raises InputError for a backbone that nobody can make again."""
        from vidseg_core.models.fingerprint import fingerprint_parts

        if backbone.recipe is None:
            raise InputError(
                f"workers cannot make this backbone ({backbone.model.name}) again, as load_backbone did not make it: save the "
                "model as a folder and load it from there, or do without workers"
            )
        return cls(backbone.recipe, fingerprint_parts(backbone), pipeline, torch.get_num_threads())

    @property
    def __name__(self) -> str:
        return self.stage

    def __call__(self, *arguments: Any) -> tuple[Any, float]:
        """What the stage gives, in main memory, and its seconds."""
        with ONE_AT_A_TIME:
            torch.set_num_threads(self.threads)
            value, seconds = self.pipeline(same_backbone(self.recipe, self.weights)).compute(self.stage, *arguments)
            return placed(value, "cpu"), seconds


@lru_cache(maxsize=1)
def same_backbone(recipe: Recipe, weights: str) -> "Backbone":
    """The backbone of a recipe; a process makes it once, and keeps the last. Raises InputError if its weights are others."""
    from vidseg_core.models.fingerprint import fingerprint_parts

    backbone = recipe.load(*recipe.arguments)
    if (found := fingerprint_parts(backbone)) != weights:
        raise InputError(
            f"a worker finds other weights for {backbone.model.name} ({found}, not {weights}): all machines must see the same "
            "files, and a model that was changed after it was loaded has to be saved and loaded again"
        )
    return backbone


def placed(value: Any, device: torch.device | str) -> Any:
    """The tensors of a dataclass on a device; anything else as it is."""
    if not is_dataclass(value):
        return value
    return type(value)(*(getattr(value, part.name).to(device) for part in fields(value)))
