"""Which states of an explorer are drawn beforehand."""

import math

import ipywidgets
import pytest

from vidseg_core import InputError
from vidseg_core.workbook.states import ALONE, POINTS, SOME, Choice, declared_states, default_states, share_out, spread
from vidseg_core.workbook.widgets import choice, levels, share, slider


def choices(**controls):
    return {name: Choice.of(control) for name, control in controls.items()}


def test_every_kind_of_control_says_what_it_can_take():
    assert Choice.of(slider("k", 3, 2, 5)) == Choice("k", [2, 3, 4, 5], ["2", "3", "4", "5"])
    fine = Choice.of(share("s", 0.5, step=0.25))
    assert fine.values == [0, 0.25, 0.5, 0.75, 1] and fine.texts[1] == "0.25"
    assert Choice.of(levels("t", 20, (1, 20))) == Choice("t", (1, 20), ("1", "20"))
    assert Choice.of(choice("m", 7, [("cup", 7), ("wall", 9)])) == Choice("m", (7, 9), ("cup", "wall"), menu=True)
    assert Choice.of(ipywidgets.Checkbox(description="c")).values == (False, True)
    assert Choice.of(ipywidgets.Text("a", description="name")).values == ("a",)


def test_a_value_has_a_place():
    assert Choice.of(slider("k", 3, 2, 5)).place(4) == 2 and Choice.of(slider("k", 3, 2, 5)).place(99) == 3
    assert Choice.of(share("s", 0.5)).place(0.3) == 6, "0.3 is not quite 6 * 0.05"
    with pytest.raises(InputError, match=r"'m' has no value 'c'\. Expected one of a, b"):
        Choice.of(choice("m", "a", ["a", "b"])).place("c")


def test_declared_grids_are_products_around_the_present_state():
    found = choices(k=slider("k", 3, 0, 9), t=levels("t", 20, (1, 20, 100)), m=choice("m", "a", ["a", "b"]))
    grids = [{"k": (0, 9), "t": (1, 100)}, {"m": ("a", "b")}]
    assert declared_states(grids, found, (3, 1, 0)) == [(3, 1, 0), (0, 0, 0), (0, 2, 0), (9, 0, 0), (9, 2, 0), (3, 1, 1)]
    assert declared_states({"m": ["b"]}, found, (3, 1, 0)) == [(3, 1, 0), (3, 1, 1)]


def test_wrong_declarations_are_refused():
    found = choices(k=slider("k", 3, 0, 99))
    with pytest.raises(InputError, match=r"no control 'q' to draw states of\. Expected k"):
        declared_states({"q": (1,)}, found, (3,))
    with pytest.raises(InputError, match=r"61 states are declared\. A page takes at most 60"):
        declared_states({"k": range(61)}, found, (3,))


def test_two_sliders_are_combined():
    found = choices(k=slider("k", 8, 1, 20), frame=slider("frame", 0, 0, 13))
    states = default_states(found, (7, 0), ())
    rows, columns = ({state[c] for state in states} for c in (0, 1))
    assert len(states) == len(rows) * len(columns) <= SOME and min(len(rows), len(columns)) >= 5
    assert states[0] == (7, 0)


def test_many_controls_are_moved_one_at_a_time():
    found = choices(a=slider("a", 0, 0, 99), b=slider("b", 50, 0, 99), c=choice("c", 1, [1, 2, 3]), d=slider("d", 9, 0, 99))
    states = default_states(found, (0, 50, 0, 9), ())
    assert all(sum(x != o for x, o in zip(s, states[0], strict=True)) <= 1 for s in states)
    assert len(states) == 1 + 3 * (ALONE - 1) + 2


def test_what_a_click_sets_is_combined_and_the_rest_moves_alone():
    found = choices(
        row=slider("row", 15, 0, 29),
        column=slider("column", 20, 0, 39),
        frame=slider("of", 0, 0, 4),
        block=choice("b", 0, [0, 1]),
    )
    states = default_states(found, (15, 20, 0, 0), ["row", "column", "frame"])
    points = {s[:2] for s in states}
    assert 20 <= len(points) <= POINTS and {s[2] for s in states if s[:2] == (15, 20)} == {0, 1, 2, 3, 4}
    assert (15, 20, 0, 1) in states and len(states) <= SOME


@pytest.mark.parametrize("most", [1, 7, 24, 60])
def test_shares_fit(most):
    counts = share_out({"a": 100, "b": 3, "c": 20}, most)
    assert math.prod(counts.values()) <= most and counts["b"] <= 3 and counts["a"] >= counts["c"] >= counts["b"]


@pytest.mark.parametrize(("size", "count", "own"), [(10, 4, 0), (10, 4, 9), (3, 9, 1), (100, 1, 42), (1, 5, 0), (7, 7, 3)])
def test_a_spread_is_even_and_has_the_own_place(size, count, own):
    places = spread(size, count, own)
    assert own in places and places == sorted(set(places)) and len(places) == min(size, count) and max(places) < size
