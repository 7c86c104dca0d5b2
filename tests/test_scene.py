"""A scene never changes, and a saved one is the scene: a stream goes on from it as if it had never stopped."""

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


def equal(ours, theirs):
    """Whether two windows have the same maps of cells and names."""
    maps = all((getattr(ours, name) == getattr(theirs, name)).all() for name in ("coarse", "refined", "confidence"))
    return maps and ours.start == theirs.start and ours.scene.names == theirs.scene.names


@pytest.mark.parametrize("given", [{"mask": True}, {"segments": 4, "names": {0: "this"}}, {}])
def test_a_stream_goes_on_from_any_window(backbone, clip, given):
    """Each window's scene is the state behind that window, also when the stream has gone on since. Stage 4 has no state."""
    context = dataclasses.replace(QUICK.context, num_segments=given.get("segments"))
    vidseg = VidSeg(backbone, dataclasses.replace(QUICK, context=context))
    mask = clip.labels[0] if "mask" in given else None
    names = None
    if "names" in given:  # which numbers there are depends on the clusters
        names = {next(iter(next(vidseg.cells(clip.frames)).scene.names)): "this"}
    whole = list(vidseg.cells(clip.frames, mask, names))
    assert [w.start for w in whole] == [0, 2, 4] and [w.scene.frames for w in whole] == [2, 4, 6]
    for n, window in enumerate(whole[:-1], 1):
        scene = Scene.from_state(saved(window.scene), vidseg.settings)
        rest = list(vidseg.cells(clip.frames[2 * n :], scene=scene))
        assert len(rest) == 3 - n and all(map(equal, rest, whole[n:]))
        assert rest[-1].scene.lost == whole[-1].scene.lost
        assert mask is not None or rest[-1].scene.cut(3).names == whole[-1].scene.cut(3).names


def test_a_window_leaves_the_scene_before_it_alone(backbone, clip):
    vidseg = VidSeg(backbone, QUICK)
    first = next(vidseg.cells(clip.frames[:2])).scene
    before = saved(first)
    after = next(vidseg.cells(clip.frames[2:4], scene=first)).scene
    assert all((before[name] == array).all() for name, array in saved(first).items())
    assert after is not first and (after.context.tokens[-1] != first.context.tokens[-1]).any()
    for thing in (first, first.context, first.overlap):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, dataclasses.fields(thing)[0].name, None)


def test_a_scene_has_its_mask_and_names(backbone, clip):
    vidseg = VidSeg(backbone, QUICK)
    scene = next(vidseg.cells(clip.frames[:2], clip.labels[0])).scene
    for given in ({"first_mask": clip.labels[0]}, {"names": {0: "this"}}):
        for enter in (vidseg.stream, vidseg.cells):
            with pytest.raises(InputError, match="leave them out"):
                enter(clip.frames[2:], scene=scene, **given)


def test_a_scene_of_something_else_is_refused(backbone, clip):
    state = saved(next(VidSeg(backbone, QUICK).cells(clip.frames)).scene)
    del state["tokens"]
    with pytest.raises(InputError, match=r"lacks 'tokens'.*start anew"):
        Scene.from_state(state, QUICK)
