"""The kinds of values in settings that come from a file, which somebody may have edited."""

from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vidseg_core.common import InputError
from vidseg_core.settings import STAGES, Settings

WORDS = {int: "a whole number", float: "a number", str: "text", type(None): "null"}


def check_kinds(data: Any) -> Any:
    """The same, or InputError for a value that no field of this name can have; other names are left to `Settings.from_dict`."""
    for stage, kind in ((None, Settings), *STAGES.items()):
        hints, part = get_type_hints(kind), data if stage is None else data.get(stage) if isinstance(data, dict) else None
        for name, value in part.items() if isinstance(part, dict) else ():
            if name in hints and name not in STAGES and not _fits(value, hints[name]):
                path = name if stage is None else f"{stage}.{name}"
                raise InputError(f"{path} is {value!r}; give {' or '.join(_words(hints[name]))}")
    return data


def _fits(value: Any, hint: Any) -> bool:
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str)  # which of them is for `validation` to say
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, kinds[0]) for v in value)
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    return isinstance(value, {int: Integral, float: Real}.get(hint, hint)) and not isinstance(value, bool)


def _words(hint: Any) -> list[str]:
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [repr(choice) for choice in kinds]
    if origin is tuple:
        return [f"a list of {WORDS[kinds[0]].removeprefix('a ')}s"]
    return [word for kind in kinds for word in _words(kind)] if kinds else [WORDS[hint]]
