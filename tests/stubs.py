"""A pipeline that computes next to nothing, for tests whose subject is not the model: files, resuming, killing, tables."""

import json
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure

import vidseg_core.evaluation.baselines
import vidseg_core.evaluation.clips
import vidseg_core.io.results
import vidseg_core.models.fingerprint
import vidseg_core.models.loading
import vidseg_core.pipeline
import vidseg_core.scene
from vidseg_core import InputError, VidSeg
from vidseg_core.evaluation.baselines import METHODS, Method, Predicted
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.registry import find_model
from vidseg_core.pipeline import windows

TOKENS = 64
"""So many clusters can be made of a window."""


class StubScene:
    """What a window hands on: names, how many frames were seen, and the sum of their pixels, by which later labels shift."""

    def __init__(self, names, frames=0, total=0, lost=()):
        self.names, self.frames, self.total, self.lost, self.merges = names, frames, total, lost, None

    def state(self):
        """As `Scene.state`."""
        words = {"names": sorted(self.names.items()), "frames": self.frames, "total": self.total}
        return {"words": np.array(json.dumps(words))}

    @classmethod
    def from_state(cls, state, settings, device="cpu"):
        """As `Scene.from_state`."""
        words = json.loads(str(state["words"]))
        return cls(dict(words["names"]), words["frames"], words["total"])

    def after(self, frames):
        """This and another window."""
        return StubScene(self.names, self.frames + len(frames), self.total + int(frames.sum(dtype=np.int64)))


class StubVidSeg(VidSeg):
    """Labels are brightness, shifted by all that must not be lost: the seed, the number of the frame and the frames before."""

    def __init__(self, backbone, settings):
        self.backbone, self.settings = backbone, settings.resolve(backbone.model)

    def stream(self, frames, first_mask=None, names=None, progress=None, scene=None, masks=None):
        """As `VidSeg.stream`."""
        s = self.settings
        if s.context.num_clusters > TOKENS:
            raise InputError(f"{s.context.num_clusters} clusters cannot be made of {TOKENS} tokens")
        numbers = range(s.context.num_clusters) if first_mask is None else np.unique(first_mask).tolist()
        scene = scene or StubScene({n: (names or {}).get(n, f"segment {n}") for n in numbers})
        numbers = np.array(sorted(scene.names))
        for group in windows(frames, s.window):
            first = scene.frames
            shift = np.arange(first, first + len(group))[:, None, None] + scene.total + s.seed
            labels = numbers[(group.max(-1) // 32 + shift) % len(numbers)]
            for stage in ("features", "context", "refine", "upsample"):
                progress(stage, len(group))
            scene = scene.after(group)
            seconds = dict.fromkeys(("features", "context", "refine", "upsample"), 0.01)
            yield SimpleNamespace(start=first, labels=labels, scene=scene, seconds=seconds)


class StubMethod(Method):
    """A method for evaluations: the given classes, or five segments, by brightness and all frames before; cells and pixels."""

    stages = ("coarse", "full")

    def __init__(self, backbone, settings):
        self.settings = settings

    def stream(self, frames, first_mask=None, start=0, state=None):
        """As `Method.stream`."""
        state = state or {"total": np.zeros((), int), "numbers": np.arange(5) if first_mask is None else np.unique(first_mask)}
        for group in windows(frames, self.settings.window):
            numbers, shift = state["numbers"], state["total"] + np.arange(len(group))[:, None, None]
            labels = numbers[(group.max(-1) // 64 + shift) % len(numbers)]
            state = {"total": np.array(state["total"] + group.sum(dtype=np.int64)), "numbers": numbers}
            yield Predicted(start, {"coarse": labels[:, 4::8, 4::8], "full": labels}, state)
            start += len(group)


class StubBackbone(Backbone):
    """What `load_backbone` gives, without weights."""

    def __init__(self, model="tiny", device=None, dtype=None, offload=False):
        self.model, self.device = find_model(model), torch.device(device or "cpu")
        self.unet = SimpleNamespace(dtype=getattr(torch, dtype or "float32"))


def install(replace=setattr):
    """Put the stubs in the place of model, pipeline, scene and contact sheet, and add the method "stub". `replace` may be a
    monkeypatch's."""
    replace(vidseg_core.models.loading, "load_backbone", StubBackbone)
    replace(vidseg_core.pipeline, "VidSeg", StubVidSeg)
    replace(vidseg_core.scene, "Scene", StubScene)
    replace(vidseg_core.evaluation.baselines, "METHODS", {**METHODS, "stub": StubMethod})
    replace(vidseg_core.evaluation.clips, "_method", lru_cache(maxsize=1)(vidseg_core.evaluation.clips._method.__wrapped__))
    replace(vidseg_core.models.fingerprint, "fingerprint_parts", lambda backbone: "0123456789abcdef")
    replace(vidseg_core.io.results, "contact_sheet", lambda *_: Figure((1, 1)))
