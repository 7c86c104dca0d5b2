"""The memory by hand is that of the pipeline, and it tells what is new."""

from dataclasses import replace

import numpy as np

from vidseg_core import ContextSettings, FeatureSettings, RefineSettings, Settings, VidSeg
from vidseg_core.workbook import memory

CONTEXT = ContextSettings(num_clusters=6, restarts=1)


def test_memory_is_that_of_the_pipeline(backbone, clip, features):
    """Without refinement, the pipeline's coarse clusters; what is remembered is at distance 0."""
    kept = {}
    for keeps in ("anchored", "window"):
        how = replace(CONTEXT, memory=keeps)
        stages = {"features": FeatureSettings(scales=(1.0,)), "context": how, "refine": RefineSettings(method="none")}
        whole = VidSeg(backbone, Settings(**stages, working_size=(96, 128), window=3))(clip.frames, keep=())
        kept[keeps] = memory.run_memory(features.context, CONTEXT, 3, keeps)
        assert (kept[keeps].labels == whole.votes[0].argmax(-1)).all()
        assert kept[keeps].distance[:3].max() < 0.005 and kept[keeps].distance[3:].min() > 0.05
    first = memory.run_memory(features.context, CONTEXT, 3, "first")
    assert all((first.labels[:3] == k.labels[:3]).all() for k in kept.values())


def test_stories(clip, features):
    half = features.context
    story = memory.cut_to(clip.frames[:3], half[:3], clip.frames[3:], half[3:])
    assert story.new[:3].sum() == 0 and story.new[3:].all() and len(story.frames) == 6
    late = memory.arrival(clip.frames, half, clip.labels, 2)
    explorer = memory.explore_memory({"cut": story, "late": late}, CONTEXT)
    curves = explorer.set(window=3).shown["curves"]
    assert np.isnan(curves["what is new"][:3]).all() and np.isfinite(curves["what is new"][3:]).all()
    assert np.isnan(curves["the rest"][3:]).all()
    assert np.isfinite(explorer.set(story="late").shown["curves"]["what is new"]).all()
