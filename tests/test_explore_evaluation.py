"""The evaluation notebook: clips, ways of naming, constructed labels, the explorer, and the ablation's tables."""

from dataclasses import replace

import numpy as np
import pytest

from vidseg_core import InputError, Settings
from vidseg_core.evaluation.baselines import make_method
from vidseg_core.evaluation.datasets import open_dataset
from vidseg_core.evaluation.labelled import Dataset, LabelledArrays
from vidseg_core.evaluation.metrics import VOID
from vidseg_core.workbook import ablation
from vidseg_core.workbook import evaluation as explore
from vidseg_core.workbook.pictures import evaluation as pictures

CLASSES = ("rest", "leaf", "blossom")
HEAD = "# python benchmarks/ablation.py\ngroup,row,scored,mIoU,mVC8,mIoU gain,mIoU gain error,against\n"
FULL = '"all stages, pixels",full,0.5,nan,0.02,0.01,modulation off: bilinear\n'


@pytest.fixture
def dataset(clip):
    labels = dict(enumerate(clip.labels))
    return Dataset("small", CLASSES, (LabelledArrays("small", clip.frames, labels, given_only=True),))


@pytest.fixture
def results(dataset):
    """Two methods without a model: the truth, and the truth with frame 3 called "rest" all over."""
    truth = np.stack(list(dataset.clips[0].labels.values()))
    spoilt = truth.copy()
    spoilt[3] = 0
    return {"small": {n: explore.Judged(dataset.clips[0], CLASSES, m, {}) for n, m in (("exact", truth), ("spoilt", spoilt))}}


def test_thin_keeps_labelled_frames():
    full, part = open_dataset("cup").clips[0], explore.thin(open_dataset("cup"), 20).clips[0]
    numbers = sorted({0, 20, 40} | set(full.labels))
    assert part.num_frames == len(numbers) and np.array_equal(part.images, full.images[numbers])
    for k, n in enumerate(numbers):
        assert (k in part.labels) == (n in full.labels)
        if n in full.labels:
            assert np.array_equal(part.labels[k], full.labels[n])


def test_judge_scores_what_the_method_says(backbone, dataset):
    settings = Settings(working_size=dataset.clips[0].size, window=4).resolve(backbone.model)
    method = make_method("colour", backbone, settings)
    judged = explore.judge(method, dataset, settings)
    assert np.array_equal(judged.labels, method(dataset.clips[0].images, dataset.clips[0].labels[0]))
    truth = np.stack([dataset.clips[0].labels[n] for n in judged.scored])
    assert judged.scored == [1, 2, 3, 4, 5], "frame 0 is given"
    assert judged.tally.scores()["accuracy"] == pytest.approx((judged.labels[1:] == truth).mean())
    assert list(judged.tallies) == list(method.stages)


def test_names_by_frame_0_cannot_name_what_is_not_in_it(backbone):
    made = explore.late_clip(2)
    clip = made.clips[0]
    small = replace(clip, images=clip.images[::4], labels={k: clip.labels[4 * k] for k in range(3)})
    ways = explore.name_in_ways(backbone, replace(made, clips=(small,)))
    tile = made.classes.index("tile")
    for name, way in ways.items():
        assert name == "no mask, Hungarian" or not (way.labels == tile).any(), name
    hungarian = ways["no mask, Hungarian"].labels
    assert (hungarian >= len(made.classes)).mean() > 0.2, "one cluster a class: the others have none"
    assert ways["cells, by frame 0"].tally.scores()["accuracy"] > 0.95


def test_pretenders(clip):
    labels = explore.pretenders(clip.labels, 3)
    assert np.array_equal(labels["the truth"], clip.labels) and not (labels["every name wrong"] == clip.labels).any()
    assert (labels["the mask of frame 0, held still"] == clip.labels[0]).all()
    scores = explore.score_maps(labels, LabelledArrays("c", clip.frames, dict(enumerate(clip.labels))), 3)
    assert scores["the truth"]["mIoU"] == 1 and scores["every name wrong"]["mIoU"] == 0
    lazy = scores["the largest class everywhere"]
    assert lazy["mIoU"] == pytest.approx(lazy["accuracy"] / 3) and lazy["F"] == 0 and lazy["stability"] == 1
    share = (labels["5 % of the pixels drawn anew"] != clip.labels).mean()
    assert share == pytest.approx(0.05 * 2 / 3, abs=0.005)


def test_worst_frames_come_first(results):
    (name, method, frame, share), second = explore.worst_frames(results, 5)
    truth = results["small"]["exact"].labels[3]
    assert (name, method, frame) == ("small", "spoilt", 3) and share == pytest.approx((truth == 0).mean())
    assert second[1] == "exact" and second[3] == 1
    entries = explore.gallery(results, 1)
    assert len(entries) == 1 and (entries[0][2] == 0).all() and np.array_equal(entries[0][3], truth)


def test_explorer_of_failures(results):
    explorer = explore.explore_failures(results)
    assert explorer.shown["frame"] == 5 and not explorer.shown["wrong"].any()
    before = explorer.picture.value
    explorer.set(method="spoilt").click("curve", 2.2, 50)
    assert explorer.shown["frame"] == 3 and explorer.picture.value != before
    assert np.array_equal(explorer.shown["wrong"], results["small"]["exact"].labels[3] != 0)
    curve = explorer.shown["curves"]["spoilt"]
    assert curve[:2] == curve[3:] == [1, 1] and curve[2] < 1
    assert explorer.set(metric="mIoU").shown["curves"]["spoilt"][2] < curve[2]
    explorer.click("curve", 99, 0)
    assert explorer.shown["frame"] == 5, "a click beyond the curve takes its end"


def test_errors_are_black_and_void_is_none(clip):
    truth = clip.labels[0].copy()
    truth[:10] = VOID
    labels = np.where(np.arange(truth.shape[1]) < 20, (clip.labels[0] + 1) % 3, clip.labels[0])
    picture = pictures.with_errors(clip.frames[0], labels, truth)
    black = (picture == 0).all(-1)
    assert black[10:, :20].all() and not black[:10].any() and black[:, 20:].mean() < 0.01


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
    axes = pictures.show_gains(tables, "mIoU", "").axes[0]
    point, (bar,) = axes.containers[0].lines[0], axes.containers[0].lines[2]
    assert point.get_xdata().tolist() == [2] and np.allclose(bar.get_segments()[0][:, 0], [1, 3])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all stages, pixels", "modulation off: bilinear"]
    assert "make it so" in pictures.show_gains({}, "mIoU", "missing: make it so").texts[0].get_text()
