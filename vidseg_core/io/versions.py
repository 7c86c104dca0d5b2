"""Reads the settings that earlier versions wrote into run.json."""

from typing import Any

from vidseg_core.common import InputError
from vidseg_core.io.kinds import check_kinds

CONSTANTS = {"features": {"padding": 0}, "context": {"max_iterations": 100},
             "upsample": {"blur_size": 5, "blur_sigma": 3.0}}  # fmt: skip
"""What was a setting in version 0.1 and is a constant now."""
SINCE = {"features": {"scales": [1.0]}, "context": {"size_weight": 1.0, "births": 0},
         "upsample": {"difference": "two-sided", "edges": 0.0}}  # fmt: skip
"""What is a setting now, as version 0.1 did it."""
TRACKS = {
    "tracks": {"anchor": "none", "jump": "absolute", "on_jump": "cut", "precision": "subcell", "start": "uncovered",
               "collision": "similarity"},
    "reference": {"anchor": "frame0", "jump": "signed", "on_jump": "drop", "precision": "cell", "start": "frame0",
                  "collision": "last", "max_jump": 1, "majority": 0.0},
}  # fmt: skip
"""How tracks were found in version 0.1, by today's `refine.method`."""
SCORES = {
    "guided": {"response": "float", "mask_filter": "bilinear"},
    "reference": {"response": "jpeg", "mask_filter": "lanczos", "damping": 0.7, "peak": 1.0, "separation": None},
}  # fmt: skip
"""How responses were scored after the paper's schedule, by today's `upsample.strategy`."""
SCHEDULE = ("steps", "start_step", "blend_until", "guidance")


def current_settings(data: Any) -> Any:
    """What `Settings.from_dict` takes, from what version 0.1 wrote; anything else comes back as it is.

    Raises InputError for values of the wrong kind, and for a mixture of the paper's quirks that this version does not compute.
    """
    if not _is_version_01(data):
        return check_kinds(data)
    if "paper" in data:
        raise InputError("these settings mix fields of version 0.1 and, in paper, of a later one: give those of one version")
    data = {name: dict(part) if isinstance(part, dict) else part for name, part in data.items()}
    for part, constants in CONSTANTS.items():
        for name, value in constants.items():
            found = data.get(part, {}).pop(name, value)
            if found not in (value, None):
                raise InputError(f"{part}.{name} is {found} in these settings of version 0.1; now it is always {value}")
    refine, upsample = data.get("refine", {}), data.setdefault("upsample", {})
    if refine.get("method") == "tracks":
        _choose(refine, "method", "refine", TRACKS)
    for name in TRACKS["tracks"]:
        refine.pop(name, None)
    if upsample.get("strategy") == "reference":
        _choose(upsample, "strategy", "upsample", SCORES)
    elif any(upsample.get(name, value) != value for name, value in SCORES["guided"].items()):
        raise InputError("upsample has the paper's responses without its schedule; this version computes both or none")
    for name in (*SCORES["guided"], "mask_blur"):  # masks were blurred; votes are soft
        upsample.pop(name, None)
    for part, values in SINCE.items():
        for name, value in values.items():
            data.setdefault(part, {}).setdefault(name, value)
    data["paper"] = {name: upsample.pop(name) for name in SCHEDULE if name in upsample}
    return check_kinds(data)


def _is_version_01(data: Any) -> bool:
    """Whether something is there that only version 0.1 had; "reference" meant another thing there."""
    if not isinstance(data, dict):
        return False
    gone = {"refine": TRACKS["tracks"], "upsample": {*SCORES["guided"], *SCHEDULE, *CONSTANTS["upsample"]},
            "features": CONSTANTS["features"], "context": CONSTANTS["context"]}  # fmt: skip
    if not all(isinstance(data.get(part, {}), dict) for part in gone):
        return False  # `Settings.from_dict` says what is wrong
    return any(set(names) & set(data.get(part, {})) for part, names in gone.items())


def _choose(settings: dict[str, Any], switch: str, part: str, ways: dict[str, dict[str, Any]]) -> None:
    """In place: turn the switch to the one of `ways` that the settings describe, and drop what it implies."""
    for way, values in ways.items():
        if all(settings.get(name, value) == value for name, value in values.items()):
            settings[switch] = way
            for name in values:
                settings.pop(name, None)
            return
    raise InputError(f"{part} mixes the paper's quirks with other values, which this version does not compute: take one of "
                     f"{' and '.join(ways)} as {part}.{switch}")  # fmt: skip
