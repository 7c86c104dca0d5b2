"""Settings that make no sense are refused when they are made, with the value and what to give instead."""

import math
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vidseg_core.common import InputError

COUNTS = ("features.ensemble", "features.shifts", "features.chunk", "context.num_clusters", "context.restarts",
          "context.neighbours", "context.max_context", "context.num_segments", "upsample.chunk", "paper.steps",
          "window")  # fmt: skip
DISTANCES = ("refine.max_jump", "refine.radius", "refine.reach", "context.births", "upsample.separation", "upsample.floor",
             "upsample.edges", "paper.start_step")  # fmt: skip
WHOLE = (*COUNTS, "refine.radius", "refine.reach", "context.births", "upsample.separation", "paper.start_step")
SHARES = ("upsample.damping", "upsample.peak", "refine.majority", "context.size_weight")


def check(settings: Any) -> None:
    """Raises InputError for a `Settings` that no run could use."""
    for part in (settings.features, settings.context, settings.refine, settings.upsample, settings):
        _check_choices(part)
    _check_range(settings, COUNTS, 1, "it counts things, so give 1 or more")
    _check_range(settings, DISTANCES, 0, "give 0 or more")
    _check_range(settings, SHARES, 0, "it is a share between 0 and 1", highest=1)
    c, paper = settings.context, settings.paper
    if not settings.refine.temperature > 0:
        raise InputError(f"refine.temperature is {settings.refine.temperature}; give more than 0")
    if (paper.start_step or 0) >= paper.steps:
        raise InputError(f"paper.start_step is {paper.start_step}; give one of 0..{paper.steps - 1}")
    scales = settings.features.scales
    if scales is not None and not (isinstance(scales, tuple) and scales and all(0 < s < math.inf for s in scales)):
        raise InputError(f"features.scales is {settings.features.scales}; give one or more numbers above 0, such as (1.5, 1)")
    if isinstance(settings.working_size, tuple) and len(settings.working_size) != 2:
        raise InputError(f"working_size is {settings.working_size}; give (height, width)")
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"seed is {settings.seed}; give 0 or more, below 2**63")
    if c.num_clusters > 255:
        raise InputError(f"context.num_clusters is {c.num_clusters}; masks hold numbers 0..254, so give at most 255")
    if isinstance(c.num_segments, int) and c.num_segments > c.num_clusters:
        raise InputError(f"{c.num_segments} segments cannot be cut from {c.num_clusters} clusters; ask for fewer segments or "
                         "more clusters")  # fmt: skip
    least = c.num_clusters * c.neighbours * (2 if c.memory == "anchored" else 1)
    if c.max_context is not None and c.max_context < least:
        needed = f"{least} tokens must fit (K * k, twice if anchored), or labels vanish"
        raise InputError(f"context.max_context is {c.max_context}; {needed}")


def _check_range(settings: Any, names: tuple[str, ...], lowest: float, remedy: str, highest: float = float("inf")) -> None:
    for name in names:
        part, _, field = name.rpartition(".")
        value = getattr(getattr(settings, part) if part else settings, field)
        if value is None or (value == "auto" and name == "context.num_segments"):
            continue
        number = isinstance(value, Integral if name in WHOLE else Real) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and lowest <= value <= highest):
            raise InputError(f"{name} is {value!r}; {remedy}")


def _check_choices(part: Any) -> None:
    for name, hint in get_type_hints(type(part)).items():
        kinds, value = (hint, *get_args(hint)), getattr(part, name)
        choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
        others = tuple(k for k in (get_origin(kind) or kind for kind in kinds) if isinstance(k, type))
        if choices and value not in choices and not isinstance(value, others):
            raise InputError(f"{name}={value!r} is not a choice; take one of {', '.join(map(repr, choices))}")
