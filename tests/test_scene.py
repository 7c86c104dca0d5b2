"""A scene that was saved is the scene: a stream goes on from it as if it had never stopped."""

import dataclasses
import io

import numpy as np
import pytest

from vidseg_core import ContextSettings, InputError, Settings, VidSeg
from vidseg_core.scene import Scene

SMALL = (96, 128)
QUICK = Settings(context=ContextSettings(num_clusters=6, max_context=300), working_size=SMALL, window=2)


def saved(scene):
    """The arrays, after a way through a file without pickle."""
    file = io.BytesIO()
    np.savez(file, **scene.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("given", [{"mask": True}, {"segments": 4, "names": {0: "this"}}, {}])
@pytest.mark.parametrize("done", [1, 2])
def test_a_stream_goes_on_where_it_stopped(backbone, clip, given, done):
    context = dataclasses.replace(QUICK.context, num_segments=given.get("segments"))
    vidseg = VidSeg(backbone, dataclasses.replace(QUICK, context=context))
    mask = clip.labels[0] if "mask" in given else None
    names = None
    if "names" in given:  # which numbers there are depends on the clusters
        names = {next(iter(next(vidseg.stream(clip.frames)).scene.names)): "this"}
    whole = list(vidseg.stream(clip.frames, mask, names))
    stream = vidseg.stream(clip.frames, mask, names)
    for _ in range(done):
        state = saved(next(stream).scene)
    scene = Scene.from_state(state, vidseg.settings)
    rest = list(vidseg.stream(clip.frames[2 * done :], scene=scene, start=2 * done))
    assert [r.start for r in rest] == [2 * n for n in range(done, 3)]
    for ours, theirs in zip(rest, whole[done:], strict=True):
        for name in ("coarse", "refined", "labels", "confidence"):
            assert (getattr(ours, name) == getattr(theirs, name)).all(), name
        assert ours.scene.names == theirs.scene.names and ours.scene.lost == theirs.scene.lost
    cut = [w.scene.cut(3).names if mask is None else None for w in (rest[-1], whole[-1])]
    assert cut[0] == cut[1]


def test_a_scene_of_something_else_is_refused(backbone, clip):
    state = saved(next(VidSeg(backbone, QUICK).stream(clip.frames)).scene)
    del state["tokens"]
    with pytest.raises(InputError, match=r"lacks 'tokens'.*start anew"):
        Scene.from_state(state, QUICK)
