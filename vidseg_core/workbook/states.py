"""Which states of an explorer are drawn for a page without a kernel: a few dozen of often millions.

A state gives each control a value, as its place among all that the control can take. What is drawn is a list of grids; a grid
is the product of the values that it names, while the other controls keep the values that they have.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets

from vidseg_core.common import InputError

State = tuple[int, ...]
Grid = Mapping[str, Sequence[Any]]

MOST = 60
"""Pictures of an explorer, at most: each takes about half a second to draw and 10 kB."""
SOME = 42
"""Pictures of an explorer that declares no grid."""
POINTS = 24
"""Of them, those that show what a click chooses: that many points, or fewer in several frames."""
ALONE = 7
"""Values of a control that is moved while the others stay."""


@dataclass(frozen=True)
class Choice:
    """A control as a page offers it: all the values that it can take, and the text that stands for each."""

    label: str
    values: Sequence[Any]
    texts: Sequence[str]
    menu: bool = False

    @classmethod
    def of(cls, control: ipywidgets.Widget) -> "Choice":
        """All values of a slider, a menu or a check box; of any other control the present one alone."""
        label = control.description
        if isinstance(control, ipywidgets.Checkbox):
            return cls(label, (False, True), ("no", "yes"), menu=True)
        if hasattr(control, "options"):
            pairs = [option if isinstance(option, tuple) else (str(option), option) for option in control.options]
            texts, values = zip(*pairs, strict=True)
            return cls(label, values, texts, isinstance(control, ipywidgets.Dropdown))
        if hasattr(control, "min"):
            values = [control.min + n * control.step for n in range(round((control.max - control.min) / control.step) + 1)]
            return cls(label, values, [format(value, control.readout_format) for value in values])
        return cls(label, (control.value,), (str(control.value),))

    def place(self, value: Any) -> int:
        """Where a value stands; a number that is not among the values is taken for the nearest."""
        if value in self.values:
            return self.values.index(value)
        if not isinstance(value, int | float):
            raise InputError(f"{self.label!r} has no value {value!r}. Expected one of {', '.join(self.texts)}.")
        return min(range(len(self.values)), key=lambda n: abs(self.values[n] - value))


def declared_states(grids: Grid | Sequence[Grid], choices: Mapping[str, Choice], present: State) -> list[State]:
    """The states of grids of values. Raises InputError for an unknown control or value, and if there are more than `MOST`."""
    grids = [grids] if isinstance(grids, Mapping) else grids
    if unknown := sorted({name for grid in grids for name in grid} - set(choices)):
        raise InputError(f"There is no control {unknown[0]!r} to draw states of. Expected {', '.join(choices)}.")
    found = _product(
        [{n: [choices[n].place(v) for v in values] for n, values in grid.items()} for grid in grids], choices, present
    )
    if len(found) > MOST:
        raise InputError(f"{len(found)} states are declared. A page takes at most {MOST} pictures of an explorer.")
    return found


def default_states(choices: Mapping[str, Choice], present: State, clicked: Iterable[str]) -> list[State]:
    """All controls together, if that leaves each at least four values. Else the controls that a click sets (`clicked`) are
    combined with each other, and each of the rest is moved alone."""
    sizes, own = {name: len(choice.values) for name, choice in choices.items()}, dict(zip(choices, present, strict=True))
    counts = share_out(sizes, SOME)
    clicked = set(clicked)
    if not clicked and all(counts[name] >= min(4, size) for name, size in sizes.items()):
        return _product([{name: spread(sizes[name], counts[name], own[name]) for name in sizes}], choices, present)
    points = share_out({name: size for name, size in sizes.items() if name in clicked}, POINTS)
    grids = [{name: spread(sizes[name], count, own[name]) for name, count in points.items()}]
    rest = [name for name in sizes if points.get(name, 1) == 1 < sizes[name]]
    each = min(ALONE, (SOME - math.prod(points.values())) // max(1, len(rest)))
    return _product(grids + [{name: spread(sizes[name], each, own[name])} for name in rest], choices, present)


def share_out(sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """How many values each control gets, their product at most `most`: one more for the coarsest, again and again."""
    counts = dict.fromkeys(sizes, 1)
    while growing := [name for name in sizes if counts[name] < sizes[name]]:
        name = max(growing, key=lambda n: sizes[n] / counts[n])
        if math.prod((counts | {name: counts[name] + 1}).values()) > most:
            break
        counts[name] += 1
    return counts


def spread(size: int, count: int, own: int) -> list[int]:
    """The middles of `count` equal parts of `size` places, of which the one nearest to `own` becomes `own`."""
    count = min(size, count)
    places = [int((n + 0.5) * size / count) for n in range(count)]
    places[min(range(count), key=lambda n: abs(places[n] - own))] = own
    return places


def _product(grids: Iterable[Mapping[str, Sequence[int]]], choices: Mapping[str, Choice], present: State) -> list[State]:
    """The states of all grids, each once, the present one first."""
    axes = ([grid.get(name, [own]) for name, own in zip(choices, present, strict=True)] for grid in grids)
    return list(dict.fromkeys(itertools.chain([present], *(itertools.product(*a) for a in axes))))
