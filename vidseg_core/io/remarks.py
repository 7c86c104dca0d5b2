"""What a run tells whoever watches it: what is not as usual with its input, its device or its segments."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vidseg_core.io.job import Job
from vidseg_core.models.registry import MODELS
from vidseg_core.settings import Settings

if TYPE_CHECKING:
    from vidseg_core.scene import Scene


def tell_input(job: Job) -> None:
    """What is not as usual with the clip, or with its masks."""
    for remark in job.clip.remarks:
        job.tell(f"{job.clip.source} is {remark}")
    taken = job.clip.indices
    for n in (n for n in job.masks if n and taken[n] != n):
        job.tell(f"mask {n} is of frame {taken[n]} of the clip: masks count the frames that are taken")
    classes = {n for mask in job.masks.values() for n in np.unique(mask).tolist()}
    if 0 in job.masks and len(classes) == 1:
        job.tell(f"the mask has class {classes.pop()} everywhere, and so will the whole clip")


def tell_device(job: Job, record: dict[str, Any]) -> None:
    """A real model takes hours where there is no GPU, and one that torch cannot use is no error; the embedded ones are fast."""
    if record["model"] in MODELS and MODELS[record["model"]].embedded:
        return
    hint = "; no GPU that torch can use was found, see pytorch.org for a build with CUDA"
    alone = record["device"] == "cpu" and job.device is None
    job.tell(f"{record['model']} on {record['device']}, {record['dtype']}{hint if alone else ''}")


def tell_scene(
    scene: "Scene", before: tuple[dict[int, str], tuple[int, ...]] | None, settings: Settings, frame: int, job: Job
) -> None:
    """What the first window settled, where it may not be what was meant, and what is new behind a later one; `before`: the
    names, and the classes without a cell, of the window before."""
    names, lost = before or ({}, ())
    given = {n for mask in job.masks.values() for n in np.unique(mask).tolist()} if job.masks else set()
    if gone := sorted(set(scene.lost) - set(lost)):
        gone = ", ".join(scene.names[n] for n in gone)
        job.tell(f"too small in its mask for a cell (or cluster) of its own: {gone}")
    if before is not None:
        for number in sorted(set(scene.names) - set(names) - given):
            job.tell(f"something new: from frame {frame} on it is {scene.names[number]!r} ({number})")
        return
    if scene.merges is not None and not isinstance(settings.context.num_segments, int):
        why = "at a jump in the cost of merging" if settings.context.num_segments else "one for each cluster"
        job.tell(f"{len(set(scene.segment.tolist()))} segments, {why}; --segments N makes N of them")
