"""Pictures: colours mean the same everywhere, overlays and figures show what they should."""

import numpy as np
import pytest

from vidseg_core.io.masks import PALETTE
from vidseg_core.io.overlay import Drawing, blend, panel
from vidseg_core.workbook.figures import compare, mark, pca_image, show_frames, show_table


def test_pca_image_separates_what_features_separate():
    features = np.random.default_rng(0).normal(0, 0.1, (2, 8, 8, 16))
    features[:, :, 4:, 0] += 5
    image = pca_image(features)
    assert image.shape == (2, 8, 8, 3) and image.min() >= 0 and image.max() <= 1
    assert abs(image[:, :, 4:, 0].mean() - image[:, :, :4, 0].mean()) > 0.7
    assert np.isfinite(pca_image(np.zeros((1, 4, 4, 5)))).all()


def test_pca_image_keeps_the_colours_of_another():
    """Channels that were swapped and turned round come back; a coarser map is matched to a finer one."""
    features = np.random.default_rng(0).normal(0, [5, 3, 2, 0.1], (1, 8, 12, 4))
    image = pca_image(features)
    other = image[..., [2, 0, 1]] * [1, -1, -1] + [0, 1, 1]
    assert np.allclose(pca_image(features, like=other), other)
    fine = np.repeat(np.repeat(other, 2, axis=1), 2, axis=2)
    assert np.allclose(pca_image(features, like=fine), other)
    assert np.isfinite(pca_image(np.zeros((1, 8, 12, 4)), like=image)).all()


def test_marks_stand_on_their_cell():
    figure = Drawing(figsize=(2, 2))
    axes = figure.subplots()
    panel(axes, np.zeros((40, 60)), "", name="a")
    mark(axes, 3, 7, (10, 15), (40, 60))
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[30, 14]]] * 2 and axes.get_gid() == "a"


def test_tables_frame_the_best_of_a_column():
    figure = show_table(np.array([[0.1, 0.9], [0.5, 0.2]]), ["a", "b"], ["x", "y"], "scores")
    framed = [text.get_text() for text in figure.axes[0].texts if text.get_bbox_patch() is not None]
    assert sorted(framed) == ["0.50", "0.90"]


def test_tables_frame_the_least_where_less_is_better():
    """Such a column has no shades, and does not spoil those of the others."""
    figure = show_table(np.array([[140, 0.9], [97, 0.2]]), ["a", "b"], ["away", "y"], "scores", lower=["away"])
    framed = [text.get_text() for text in figure.axes[0].texts if text.get_bbox_patch() is not None]
    assert sorted(framed) == ["0.90", "97.00"]
    (shades,) = figure.axes[0].images
    assert np.ma.getmaskarray(shades.get_array())[:, 0].all() and shades.norm.vmax < 3


def test_a_table_is_as_wide_as_its_title():
    title = "operations of stage 4 for 20 masks, of a clip"
    figure = show_table(np.ones((2, 1)), ["a", "b"], ["x"], title)
    figure.draw_without_rendering()
    (text,) = [t for t in figure.texts if t.get_text() == title]
    box = text.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_figures_name_what_they_show():
    frame, labels = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.int16)
    labels[:, 16:] = 7
    cells = labels[::8, ::8]
    figure = compare(frame, {"cells": cells, "pixels": labels}, {0: "wall", 7: "cup"})
    assert titles(figure) == ["cells", "pixels"] and legend(figure) == ["wall", "cup"]
    shown = figure.axes[0].images[0].get_array()
    assert np.array_equal(shown[3, 3], blend(frame, labels)[3, 3]) and np.array_equal(shown[3, 30], blend(frame, labels)[3, 30])


def test_pictures_side_by_side_have_one_size():
    figure = show_frames({"frame": np.zeros((24, 32, 3), np.uint8), "map": np.zeros((3, 4))}, cmap="gray")
    assert (
        titles(figure) == ["frame", "map"]
        and [tuple(axes.images[0].get_extent()) for axes in figure.axes] == [(0, 32, 24, 0)] * 2
    )
    assert figure.axes[1].images[0].get_cmap().name == "gray"


@pytest.mark.parametrize("number", [0, 7, 19, 40])
def test_a_segment_has_its_colour_in_every_picture(number):
    frame, labels = np.zeros((16, 16, 3), np.uint8), np.full((16, 16), number)
    assert blend(frame, labels, 1.0)[8, 8] == pytest.approx(PALETTE[number], abs=1)
    figure = compare(frame, {"a": labels}, {})
    assert np.allclose(figure.legends[0].legend_handles[0].get_facecolor()[:3], PALETTE[number] / 255)
