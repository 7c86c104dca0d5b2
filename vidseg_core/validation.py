"""Settings that make no sense are refused when they are made, with the value and what to give instead."""

from typing import Any, Literal, get_args, get_type_hints

from vidseg_core.common import InputError


def check(settings: Any) -> None:
    """Raises InputError for a `Settings` that no run could use."""
    for part in (settings.features, settings.context, settings.refine, settings.upsample, settings):
        _check_choices(part)
    _check_counts(settings)
    _check_ranges(settings)


def _check_counts(settings: Any) -> None:
    """What is counted is 1 or more, and fits into what it is part of."""
    positive = {
        "features.ensemble": settings.features.ensemble, "features.chunk": settings.features.chunk,
        "context.num_clusters": settings.context.num_clusters, "context.restarts": settings.context.restarts,
        "context.neighbours": settings.context.neighbours,
        "context.max_context": settings.context.max_context, "context.num_segments": settings.context.num_segments,
        "upsample.chunk": settings.upsample.chunk, "paper.steps": settings.paper.steps, "window": settings.window,
    }  # fmt: skip
    for name, value in positive.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it counts things, so give 1 or more")
    parts = 2 if settings.context.memory == "anchored" else 1
    least = parts * settings.context.num_clusters * settings.context.neighbours
    if settings.context.max_context is not None and settings.context.max_context < least:
        raise InputError(
            f"context.max_context is {settings.context.max_context}; {least} tokens must fit (K * k, twice if anchored), "
            "or labels vanish"
        )
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"seed is {settings.seed}; give 0 or more, below 2**63")
    if settings.context.num_clusters > 255:
        raise InputError(
            f"context.num_clusters is {settings.context.num_clusters}; masks hold numbers 0..254, so give at most 255"
        )
    if settings.context.num_segments is not None and settings.context.num_segments > settings.context.num_clusters:
        raise InputError(
            f"{settings.context.num_segments} segments cannot be cut from {settings.context.num_clusters} clusters; "
            "ask for fewer segments or more clusters"
        )


def _check_ranges(settings: Any) -> None:
    """Distances, shares and levels lie where they have a meaning."""
    if (settings.upsample.separation or 0) < 0:
        raise InputError(
            f"upsample.separation is {settings.upsample.separation}; give 0 or more cells, or None for each mask alone"
        )
    for name in ("max_jump", "radius", "reach"):
        if getattr(settings.refine, name) < 0:
            raise InputError(f"refine.{name} is {getattr(settings.refine, name)}; give 0 or more")
    if not settings.refine.temperature > 0:
        raise InputError(f"refine.temperature is {settings.refine.temperature}; give more than 0")
    if settings.upsample.mask_blur < 0:
        raise InputError(f"upsample.mask_blur is {settings.upsample.mask_blur}; give 0 (none) or more cells")
    shares = {"upsample.damping": settings.upsample.damping, "upsample.peak": settings.upsample.peak}
    for name, value in {**shares, "refine.majority": settings.refine.majority}.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; it is a share between 0 and 1")
    if not 0 <= (settings.paper.start_step or 0) < settings.paper.steps:
        raise InputError(f"paper.start_step is {settings.paper.start_step}; give one of 0..{settings.paper.steps - 1}")


def _check_choices(part: Any) -> None:
    for name, hint in get_type_hints(type(part)).items():
        for kind in (hint, *get_args(hint)):
            choices = get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()
            value = getattr(part, name)
            if choices and not (value is None or isinstance(value, tuple) or value in choices):
                raise InputError(f"{name}={value!r} is not a choice; take one of {', '.join(map(repr, choices))}")
