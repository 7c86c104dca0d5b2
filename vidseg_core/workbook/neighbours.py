"""The vote of the neighbours by hand, and both votes against the exact answer."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

from vidseg_core.correspondence import neighbour_vote, refine
from vidseg_core.settings import RefineSettings
from vidseg_core.workbook.correspondence import Window
from vidseg_core.workbook.pictures.correspondence import show_vote
from vidseg_core.workbook.widgets import Drawn, Explorer, levels, slider


def compare_stability(windows: dict[str, Window], settings: dict[str, RefineSettings]) -> Float[np.ndarray, "w s"]:
    """Label stability, laid out as `compare_votes` does: the share of cells that keep their label from frame to frame, along
    the true motion."""
    rows = []
    for window in windows.values():
        after = [window.refine(s).labels.numpy() for s in settings.values()]
        rows.append([float(window.stable(labels).mean()) for labels in (window.coarse, *after)])
    return np.array(rows)


def cut_in_two(window: Window, settings: RefineSettings, tail: bool) -> tuple[float, float]:
    """The frames refined as two windows, the second knowing the last frames of the first only with `tail`: label stability
    over the seam, and the share of right cells in the first frame after it."""
    half, coarse = len(window.coarse) // 2, torch.from_numpy(window.coarse).long()
    first = refine(window.match[:half], coarse[:half], settings).labels
    before = (window.match[half - settings.reach : half], first[half - settings.reach :]) if tail else None
    labels = torch.cat([first, refine(window.match[half:], coarse[half:], settings, before).labels]).numpy()
    return float(window.stable(labels)[half - 1]), float((labels == window.truth)[half].mean())


def explore_neighbours(window: Window, settings: RefineSettings) -> Explorer:
    """The vote of the neighbours: radius, reach and temperature over its result.

    `shown` has "labels" and "confidence" [f, h, w], "before" and "after" (shares of right cells over the window) and
    "stability", the shares of cells that keep their label to the next frame (before, after).
    """
    truth, coarse = window.truth, torch.from_numpy(window.coarse).long()

    @lru_cache(maxsize=64)
    def run(**changes: object) -> tuple[np.ndarray, np.ndarray]:
        labels, confidence = neighbour_vote(window.match, coarse, replace(settings, **changes))
        return labels.numpy(), confidence.numpy()

    def draw(frame: int, **changes: object) -> Drawn:
        labels, confidence = run(**changes)
        maps = {"before the vote": window.coarse[frame], "after": labels[frame], "the truth": truth[frame]}
        both = np.stack([window.coarse[frame] != truth[frame], labels[frame] != truth[frame]])
        figure = show_vote(window.clip.frames[frame], maps, both, confidence[frame], window.clip.names)
        return figure, {
            "labels": labels, "confidence": confidence, "before": float((window.coarse == truth).mean()),
            "after": float((labels == truth).mean()),
            "stability": tuple(float(window.stable(m).mean()) for m in (window.coarse, labels)),
        }  # fmt: skip

    return Explorer(
        draw,
        radius=slider("radius", settings.radius, 0, 2),
        reach=slider("reach", settings.reach, 0, 3),
        temperature=levels("temperature", settings.temperature, sorted({0.02, 0.05, 0.1, 0.2, 0.5, 1.0, settings.temperature})),
        frame=slider("frame", len(window.coarse) - 1, 0, len(window.coarse) - 1, live=True),
    )
