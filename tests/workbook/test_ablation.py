"""The ablation's tables and their figure."""

import numpy as np
import pytest

from vidseg_core import InputError
from vidseg_core.workbook import ablation

HEAD = "# python benchmarks/ablation.py\ngroup,row,scored,mIoU,mVC8,mIoU gain,mIoU gain error,against\n"
FULL = '"all stages, pixels",full,0.5,nan,0.02,0.01,modulation off: bilinear\n'


def test_ablation_tables(tmp_path):
    assert ablation.read_ablations(tmp_path) == {}
    assert "camvid and davis" in ablation.availability({}) and ablation.COMMAND in ablation.availability({})
    (tmp_path / "ablation_davis.csv").write_text(
        HEAD + "stages," + FULL + "stages,modulation off: bilinear,bilinear,0.48,,,,\n"
    )
    tables = ablation.read_ablations(tmp_path)
    line = ablation.find_row(tables["davis"], "all stages, pixels")
    assert (line["mIoU"], line["mIoU gain"], line["against"]) == (0.5, 0.02, "modulation off: bilinear")
    assert np.isnan(ablation.find_row(tables["davis"], "modulation off: bilinear")["mIoU gain"])
    assert "of camvid:" in ablation.availability(tables) and "davis:" not in ablation.availability(tables)
    assert ablation.beside_published(tables).splitlines()[-1].endswith("| frame 0 | 50.0 | – |")
    with pytest.raises(InputError, match="no row 'K = 3'"):
        ablation.find_row(tables["davis"], "K = 3")
    (tmp_path / "ablation_camvid.csv").write_text("# nothing\na,b\n1,2\n")
    with pytest.raises(InputError, match="no table of the ablation"):
        ablation.read_ablations(tmp_path)


def test_gains_stand_where_the_table_says(tmp_path):
    (tmp_path / "ablation_davis.csv").write_text(
        HEAD + "stages," + FULL + "stages,modulation off: bilinear,bilinear,0.48,,,,\n"
    )
    tables = ablation.read_ablations(tmp_path)
    axes = ablation.show_gains(tables, "mIoU", "").axes[0]
    point, (bar,) = axes.containers[0].lines[0], axes.containers[0].lines[2]
    assert point.get_xdata().tolist() == [2] and np.allclose(bar.get_segments()[0][:, 0], [1, 3])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all stages, pixels", "modulation off: bilinear"]
    assert ablation.show_gains(tables, "mIoU", "", ("clusters",)).axes[0].containers == []
    assert "make it so" in ablation.show_gains({}, "mIoU", "missing: make it so").texts[0].get_text()
