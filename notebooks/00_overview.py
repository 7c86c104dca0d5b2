# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: notebooks///ipynb,notebooks///py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VidSeg in one page
#
# A diffusion model is trained to remove noise from images. To do that well, it has to know which parts of an image belong together. VidSeg
# (Wang et al., CVPR 2025, [arXiv 2405.16947](https://arxiv.org/abs/2405.16947)) reads this knowledge out of a pre-trained model and uses it to
# segment a video. It trains and fine-tunes nothing.

# %% tags=["hide-input"]
import os

import numpy as np
import vidseg_core as vs
from vidseg_core.common import enlarge
from vidseg_core.evaluation.metrics import class_iou, confusion
from vidseg_core.io.overlay import blend
from vidseg_core.workbook.figures import compare, pca_image, show_frames
from vidseg_core.workbook.widgets import explore_segments, play

FAST = os.environ.get("VIDSEG_FAST") == "1"  # fewer frames, for automatic tests

# %%
cup = vs.sample_clip("cup")
frames = cup.frames[: 28 : 12 if FAST else 1]
backbone = vs.load_backbone("tiny")
settings = vs.Settings(context=vs.ContextSettings(num_segments=8))
vidseg = vs.VidSeg(backbone, settings)
result = vidseg(frames)

last = len(frames) - 1
found = {n: blend(frames[n], result.labels[n]) for n in (0, last)}
before = {"frame 0": frames[0], "segments": found[0]}
show_frames(
    before | {f"frame {last}": frames[-1], "the same segments": found[last]}
)

# %% [markdown]
# ## One run
#
# A hand tilts a dark cup in front of a white wall. A model, a setting and a call find *segments*, not classes: they tell the cup from the
# hand, but not what they are called. Every colour is a segment, and the same segment keeps its colour through the clip.

# %% [markdown]
# Notice the strips of wall along the cup and the hand: they are segments of
# their own. The features of the embedded model are blurred over two or three cells. That is its most visible weakness.

# %% [markdown]
# `tiny` is a small model that comes with this repository and runs on a laptop. It stands in for Stable Diffusion: its features were
# aligned with those of an image classifier (`data/models/tiny/README.md`). It shows how the *method* works, not how good it is. With a GPU,
# write `"sd21-base"` instead. `python -m vidseg_core models` lists the choices.

# %% [markdown]
# ## Stage 1: features
#
# What does the network see? A little noise is added to the frame, and the model's UNet has to remove it. Meanwhile we read the *queries* of its
# self-attention: a vector for each *cell*, a square of about 5 x 5 pixels. The picture shows their three main directions as red, green and blue.

# %%
n = len(frames) // 2
queries = result.features.context[n].numpy()
print(queries.shape, "rows, columns, channels")
show_frames({"frame": frames[n], "queries": pca_image(queries[None])[0]})

# %% [markdown]
# Equal colours mean similar vectors. Notice that the cup is one colour although its surface has highlights and shadows. [Chapter 1](01_features.ipynb) builds this picture step by step.

# %% [markdown]
# ## Stage 2: the scene context model
#
# Which cells belong together, and how do they keep their label? K-means clusters the cells of the first window of 14 frames. Some of them are remembered with their labels: the *scene context*.
# Then each cell of each window asks its four nearest memories, and they vote. After each window, the memory is updated.


# %%
def over(labels):
    return blend(frames[n], enlarge(labels, frames.shape[1:3]))


show_frames({"frame": frames[n], "coarse labels": over(result.coarse[n])})

# %% [markdown]
# A label per cell. K-means made 20 clusters, and the most similar ones were merged until 8 segments were left. Notice the ragged outlines and single stray cells. [Chapter 2](02_context_model.ipynb) builds the memory and the vote.

# %% [markdown]
# ## Stage 3: correspondences
#
# Can the frames before and after help? In each of them, the cell that looks most like this one adds its votes; the more similar, the more they count. (In the paper, the cells along a
# *track* vote. [Chapter 3](03_correspondence.ipynb) compares the two.) On the right: the share of votes that the winner got.

# %%
refined = over(result.refined[n])
show_frames(
    {"refined labels": refined, "winner's share": result.confidence[n]},
    cmap="gray",
)

# %% [markdown]
# Notice two things. Most stray cells are gone. And the votes are divided where the label is in doubt: along the outlines.

# %% [markdown]
# ## Stage 4: masked modulation
#
# How do cells become pixels? Add a constant to the output of an attention layer, in the cells of one segment only, and let the UNet predict again. The pixels that
# change most belong to the segment: a finer resolution. Each pixel goes to the segment with the strongest response, weighed by the votes.

# %%
pixels = blend(frames[n], result.labels[n])
show_frames({"cells": refined, "pixels": pixels})

# %%
print({k: f"{seconds:.1f} s" for k, seconds in result.timings.items()})

# %% [markdown]
# The outlines are smoother, and mostly closer to the objects. This stage also takes longest, because part of the network runs again for the segments. [Chapter 4](04_upsampling.ipynb) builds it.

# %% tags=["test"]
h, w = result.refined.shape[1:]
assert (h, w) == (44, 60) and queries.shape[:2] == (h, w)
assert result.labels.shape == frames.shape[:3]
found = set(np.unique(result.labels))
assert found <= set(np.unique(result.refined)), "stage 4 invents no segments"
assert 2 <= len(found) <= 8

# %% [markdown]
# ## The video
# Do the segments stay with their objects? Play it.

# %%
video = play(result)
video

# %% [markdown]
# ## How many segments?
#
# There is no right number. Without one, the default `"auto"` stops merging where its cost jumps (chapter 2). The clusters merge in a fixed order, so going from 8 to 7 joins two segments and leaves all others, and their colours, as they are.

# %%
maps = {f"{k} segments": result.at(k)[1][n] for k in (2, 4, 8)}
compare(frames[n], maps, {})

# %% [markdown]
# Drag the slider. The cells change at once. The pixels of the frame on display are computed again, which takes about a second.

# %%
explorer = explore_segments(vidseg, result)
explorer

# %% tags=["test"]
assert len(video.data) > 5000
four = explorer.set(num_segments=4, frame=1).shown["segments"]
three = explorer.set(num_segments=3).shown["segments"]
assert len(four) == 4 and len(three) == 3 and set(three) < set(four)
assert explorer.shown["labels"].shape == frames.shape[1:3]
assert explorer.status.value == ""
_ = explorer.set(num_segments=8, frame=0)

# %% [markdown]
# ## Names
#
# Can it say what is what? Yes, if somebody says it once. A mask of the *first* frame says which class each of its cells has, and the memory carries these classes
# through the clip. This is how the paper evaluates, too; but it gives the mask's classes to clusters, not to cells.

# %%
mask, names = cup.masks[0], cup.names
named = vs.VidSeg(backbone)(frames, first_mask=mask, names=names, keep=())
told, found = blend(frames[0], mask), blend(frames[-1], named.labels[-1])
show_frames({"the mask of frame 0": told, f"frame {last}": found})

# %% [markdown]
# Notice that cup, arm and fingers keep their colours although all have moved. How good is it? The usual measure is *intersection
# over union* (IoU): of all pixels that are cup in the true mask or in ours, the share that is cup in both.

# %%
step = 12 if FAST else 1
true = {k // step: m for k, m in cup.masks.items() if 0 < k < 28}
counts = sum(confusion(named.labels[k], m, 3) for k, m in true.items())
dict(zip(names.values(), class_iou(counts).round(2).tolist(), strict=True))

# %% tags=["test"]
assert min(class_iou(counts)) > 0.4

# %% [markdown]
# ## Summary
# - **Features**: the queries of a UNet that removes noise, one vector a cell.
# - **Context model**: K-means once, then the nearest memories vote.
# - **Correspondences**: similar cells in the frames around vote too.
# - **Masked modulation**: change a segment inside the network, and see what responds.
#
# On the command line: `python -m vidseg_core segment data/clips/cup.mp4 --segments 8`

# %% [markdown]
# ## Exercises
# 1. Take `vs.sample_clip("box")`. Which number of segments separates box, hand and cloth?
# 2. `from vidseg_core.evaluation.metrics import flicker`. Compare `flicker(result.coarse)` with `flicker(result.refined)`. Which should be lower?
# 3. Segment a clip of your own: `frames = vs.read_frames("my.mp4", stop=48)`.
#
# Answers: [Solutions](solutions.ipynb).
