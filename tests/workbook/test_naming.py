"""Names by hand join segments, and what is saved is what the command line takes."""

import json

import numpy as np
import pytest

from vidseg_core import ContextSettings, Settings, VidSeg, read_mask
from vidseg_core.common import VOID
from vidseg_core.io.masks import read_names
from vidseg_core.workbook.naming import Naming


@pytest.fixture
def naming(backbone, clip, tmp_path):
    vidseg = VidSeg(backbone, Settings(context=ContextSettings(num_clusters=6), working_size=(96, 128)))
    return Naming(vidseg, next(vidseg.cells(clip.frames[:3])), tmp_path / "names", num_segments=4)


def test_names_join_segments_and_propagate(naming):
    a, b, *others = sorted({*naming.shown["names"]} - {VOID})
    before = naming.shown["maps"].copy()
    for segment in (a, b):
        naming.set(segment=segment)
        naming.name.value = "sky"
    assert naming.shown["names"][a] == "sky" and b not in naming.shown["names"]
    assert (naming.shown["maps"] == np.where(before == b, a, before)).all(), "in all frames"
    y, x = np.argwhere(before[0] == others[0])[0].tolist()
    naming.click("frame 0", x=8 * x + 4, y=8 * y + 4)
    assert naming.shown["chosen"] == others[0] and naming.name.value == ""
    naming.set(segment=a)
    assert naming.name.value == "sky"
    naming.name.value = ""
    naming.set(segment=b)
    naming.name.value = ""
    assert (naming.shown["maps"] == before).all(), "names that are taken back leave no trace"


def test_what_is_saved_is_what_the_command_line_takes(naming, backbone, clip):
    first, *others = sorted({*np.unique(naming.shown["maps"][0]).tolist()})
    naming.set(segment=first)
    naming.name.value = "void"
    naming.set(segment=others[0])
    naming.name.value = "thing"
    folder = naming.save()
    mask, names = read_mask(folder / "first_mask.png"), read_names(folder / "names.json")
    assert mask.shape == clip.frames.shape[1:3] and set(np.unique(mask)) == {*names, VOID} and "thing" in names.values()
    assert json.loads((folder / "names.json").read_text())["0"] == names[0] and "void" not in names.values()
    result = VidSeg(backbone, Settings(working_size=(96, 128)))(clip.frames[:2], first_mask=mask, names=names, keep=())
    assert "thing" in result.names.values()
