"""Arrays side by side."""

import numpy as np

from vidseg_core.workbook.maps import show_maps


def test_maps_stand_under_their_titles_and_a_cell_is_circled():
    maps = {str(n): np.full((3, 4), n / 4) for n in range(5)} | {"rgb": np.zeros((6, 8, 3))}
    figure = show_maps(maps, (30, 40), {"2": (0, 1)}, high=1)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == list(maps) and len(figure.axes) == 8
    assert [len(axes.lines) for axes in shown] == [0, 0, 2, 0, 0, 0]
    assert shown[2].lines[0].get_xydata().tolist() == [[15, 5]], "the centre of row 0, column 1 of 3 x 4 cells"
    assert shown[1].images[0].get_clim() == (0, 1) and shown[1].images[0].get_array().max() == 0.25
