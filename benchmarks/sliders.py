"""How long each control of the workbook's explorers takes to redraw, the first time that a value is seen (seconds). Those
that a notebook's own cells draw (03: the vote, 04: the modulation) are not among them.

python benchmarks/sliders.py
"""

import tempfile

from vidseg_core import ContextSettings, RefineSettings, Settings, VidSeg, generated_clip, load_backbone, sample_clip
from vidseg_core.common import enlarge
from vidseg_core.workbook import context, correspondence, features, memory, motion, upsampling
from vidseg_core.workbook.naming import Naming
from vidseg_core.workbook.widgets import Explorer


def report(explorer: Explorer, name: str, **controls: list) -> None:
    """Set each control to its values, one after the other, and print what the drawings took."""
    for control, values in controls.items():
        seconds = [explorer.set(**{control: value}).seconds for value in values]
        print(f"{name:22} {control:13} {max(seconds):.2f}   ({', '.join(f'{s:.2f}' for s in seconds)})", flush=True)


def stage_1(backbone) -> None:
    cup = sample_clip("cup")
    numbers = list(cup.masks)
    explorer = features.explore_similarity(backbone, cup.frames[numbers], numbers)
    report(explorer, "01 similarity", row=[3, 9], column=[8, 22], frame=[1], block=["up_blocks.0.attentions.0"], timestep=[200])


def stage_2(backbone) -> None:
    cup, late = sample_clip("cup"), generated_clip(21, late=True)
    still = context.read_features(backbone, cup.frames[:14])
    explorer = context.explore_clusters(cup.frames[:14], still.context, ContextSettings())
    report(explorer, "02 clusters", num_segments=[7, 5, 3], frame=[4], seed=[1, 2], num_clusters=[10, 30, 40])
    moving = context.read_features(backbone, late.frames).context
    story = memory.arrival(late.frames, moving, late.labels, 3)
    explorer = memory.explore_memory({"arrival": story}, ContextSettings())
    report(explorer, "02 memory", frame=[9, 14], window=[7], neighbours=[8], keeps=["window"])
    vidseg = VidSeg(backbone)
    with tempfile.TemporaryDirectory() as folder:
        naming = Naming(vidseg, next(vidseg.cells(cup.frames[:14])), folder)
        report(naming, "02 naming", segment=[5, 9], num_segments=[6], frame=[4])


def stages_3_and_4(backbone) -> None:
    clip = motion.faster(generated_clip(40), 3)
    read = context.read_features(backbone, clip.frames)
    cells = context.named_cells(read, clip.labels[0], Settings())
    window = motion.Window(clip, read.match, cells)
    explorer = correspondence.explore_track(window, RefineSettings())
    report(explorer, "03 track", row=[4, 9], column=[8], frame=[5], majority=[0.3], method=["reference"])
    labels = enlarge(cells[1], clip.labels.shape[1:])
    explorer = upsampling.explore_borders(clip.frames[1], {"cells": labels}, clip.labels[1])
    report(explorer, "04 borders", row=[40], column=[100], width=[60])


if __name__ == "__main__":
    model = load_backbone("tiny")
    stage_1(model)
    stage_2(model)
    stages_3_and_4(model)
