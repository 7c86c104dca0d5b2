"""Replay is exact, and the parts of a pass are listed in the order of running."""

from vidseg_core.workbook import fast


def test_replay_is_exact_and_late_parts_come_last(bench):
    assert fast.replay_error(bench) == 0
    parts = fast.time_of_parts(bench, repeats=1)
    flags = [before for *_, before in parts]
    assert flags == sorted(flags, reverse=True) and {True, False} == set(flags)
    assert parts[-1][0] == "conv_out" and any(name.endswith("attn2") and before for name, _, before in parts)
