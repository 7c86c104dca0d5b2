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
# A diffusion model is trained to remove noise from images, and to do that well it has to know what belongs together in them. VidSeg
# (Wang et al., CVPR 2025, [arXiv 2405.16947](https://arxiv.org/abs/2405.16947)) reads that knowledge out of a model that
# exists already, and segments a *video* with it. For the segmentation nothing is trained or fine-tuned.
#
# **You will** load a clip of a second, segment it, look at what each of the four stages made of one frame, play the result, and change
# the number of segments with a slider.
#
# **You will learn** what the four stages are called, what goes into and comes out of each, and which of them costs time.
#
# **You need** nothing but this repository: a small model is embedded and runs on a laptop's CPU. It is a stand-in. Its features were
# aligned, when it was made, with those of an image classifier (`data/models/tiny/README.md` says how), so what you see here shows
# how the *method* works, not how much Stable Diffusion knows. For that, change one word in the next cell (and have its
# weights, and a GPU).

# %%
import os

import numpy as np

from vidseg_core import ContextSettings, Settings, VidSeg, load_backbone, sample_clip
from vidseg_core.evaluation.metrics import class_iou, confusion
from vidseg_core.models.registry import MODELS
from vidseg_core.models.weights import on_disk
from vidseg_core.workbook.figures import compare, show_frames, show_stages
from vidseg_core.workbook.widgets import explore_segments, play

FAST = os.environ.get("VIDSEG_FAST") == "1"  # CI sets it: fewer frames, the same steps
MODEL = "tiny"  # or "sd21-base", "svd", a folder that diffusers saved, a hub id

# %% [markdown]
# ## A clip
# What is in it? A hand holds a dark cup before a white wall, and tilts it.

# %%
cup = sample_clip("cup")
STEP = 12 if FAST else 1
frames = cup.frames[:28:STEP]
print(f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} pixels, {frames.dtype}, RGB")
show_frames({f"frame {STEP * k}": frames[k] for k in np.linspace(0, len(frames) - 1, 4).astype(int)})

# %% [markdown]
# ## A model
# Which models could you take? Change `MODEL` in the first cell and run the notebook again: everything below stays as it is. A model that is
# not on this machine is downloaded the first time. If that cannot be (no network, a licence to accept first, too little
# memory), `load_backbone` stops with one sentence that says what to do, and nothing else happens.

# %%
for name, model in MODELS.items():
    size = f"{model.download_gb(half=True):.1f} GB in half precision"
    print(f"{name:10} {model.family:6} {'is on this machine' if on_disk(model) else f'to be downloaded: {size}'}")
backbone = load_backbone(MODEL)

# %% [markdown]
# Notice the video model at the end: in it, the frames of a window see each other. The stages below do not know which kind they hold.
#
# ## Segment it
# How little does it take? One call. Without any help the method finds segments, not classes: it may tell that the cup is one thing
# and the hand another, but not what they are called. K-means makes 20 clusters, and similar ones are merged until 8 remain.

# %%
vidseg = VidSeg(backbone, Settings(context=ContextSettings(num_clusters=20, num_segments=8)))
result = vidseg(frames)
print({stage: f"{seconds:.1f} s" for stage, seconds in result.timings.items()})

# %% [markdown]
# Notice which stage takes the time: `upsample`, the last one. It runs a part of the model once for every segment, or for every group of
# segments that lie apart.
#
# ## What did each stage make of one frame?
# Read the panels in order.
#
# 1. **Features** (frames in; for each frame a map of vectors out, here 44 x 60 of them). The frame is encoded, a little noise is added,
#    and the model's UNet is asked to remove it. While it does, we read the *queries* of its self-attention. There is one for each
#    *cell*, a square of 8 x 8 pixels of the frame, which is enlarged 1.5 times for this stage. The panel shows their three main directions (PCA) as red, green and blue.
# 2. **Scene context model** (vectors in; for each cell votes out). K-means on the first window of 14 frames finds what the scene consists
#    of, and these cells with their labels are remembered. From then on, the four nearest
#    neighbours of a cell among the remembered ones vote on its label, a near one more than a far one. After each window the memory moves on: one half stays what the clip began with, the other
#    becomes that window. (In the paper all of it becomes that window.)
# 3. **Correspondences** (votes and vectors in; better votes out). In each of the frames just before and after, the cell near by that is most like this one adds
#    its votes, the more similar their vectors the stronger. (In the paper the cells along a *track* vote, which follows the cell
#    from frame to frame; `03_correspondence` compares the two.) The fifth panel shows the winner's share: bright where all
#    agreed, dark where the label is in doubt.
# 4. **Masked modulation** (votes of cells in; labels of pixels out). For one segment, or several that lie apart, a constant, lambda, is added to
#    the output of an attention layer in the segment's cells. With it and without it the UNet predicts the
#    image without its noise. The two predictions differ most where the layers that follow think that the segment is, and they
#    work at a finer resolution. Each pixel goes to the segment with the largest difference, relative to the peak of that segment's own, and weighed by its votes.

# %%
n = len(frames) // 2
features = result.features.context[n].numpy()
maps = result.coarse[n], result.refined[n], result.confidence[n], result.labels[n]
show_stages(frames[n], features, *maps, result.names)

# %% [markdown]
# Notice that the maps of stages 2 and 3 are made of cells and the last is not: it is smoother, and in places nearer to the cup. Notice
# also what goes wrong: strips of wall near the objects become segments of their own (the embedded model's features spread over
# two or three cells). A merged segment keeps the number of its largest part, which is why the numbers have gaps.

# %%
h, w = result.refined.shape[1:]
assert (h, w) == (44, 60) or MODEL != "tiny"
assert result.labels.shape == frames.shape[:3]
assert set(np.unique(result.labels)) <= set(np.unique(result.refined)), "stage 4 invents no segments"
assert 2 <= len(np.unique(result.labels)) <= 8

# %% [markdown]
# ## The video
# Do the segments stay with their objects? Play it.

# %%
video = play(result)
assert len(video.data) > 5000
video

# %% [markdown]
# ## How many segments?
# What is the right number? There is none, so it is a slider. The clusters are merged in a fixed order (hierarchically, by Ward's
# criterion), so that going from 8 to 7 joins two segments and leaves all others as they are, colours included. First as a picture, for those who read this
# without running it:

# %%
maps = {f"{k} segments": result.at(k)[1][n] for k in (2, 4, 8)}
compare(frames[n], maps, {})

# %% [markdown]
# Then by hand. The cells relabel at once; the pixels of the frame shown are computed anew, which takes about a second.

# %%
explorer = explore_segments(vidseg, result)
explorer

# %% [markdown]
# A slider can be moved by code too, and what it shows can be checked. (That is how this notebook is tested.)

# %%
explorer.set(num_segments=4, frame=1)
four = explorer.shown["segments"]
explorer.num_segments.value = 3
assert len(four) == 4 and len(explorer.shown["segments"]) == 3 and set(explorer.shown["segments"]) < set(four)
assert explorer.shown["labels"].shape == frames.shape[1:3]
assert explorer.status.value == ""
_ = explorer.set(num_segments=8, frame=0)

# %% [markdown]
# ## Names
# Can it say what is what? Yes, if someone says it once. This is the paper's protocol: a mask of the *first* frame says what its cells are, and the
# context model carries these classes through the clip. (All published VidSeg scores use it. The true first mask is an input,
# so the scores are flattered. In the paper not cells but clusters take the mask's classes; `02_context_model` compares the two.)

# %%
named = VidSeg(backbone)(frames, first_mask=cup.masks[0], names=cup.names, keep=())
last = len(frames) - 1
compare(frames[last], {"cells": named.refined[last], "pixels": named.labels[last]}, named.names)

# %% [markdown]
# Notice that cup and arm keep their colours although both have moved since frame 0, and what is lost: fingers, and the rim. How good is
# it? The usual measure is intersection over union (IoU): of all the pixels that are cup in the drawn mask or in ours, the share
# that is cup in both.

# %%
drawn = {k // STEP: mask for k, mask in cup.masks.items() if 0 < k < 28}
scores = class_iou(sum(confusion(named.labels[k], mask, len(cup.names)) for k, mask in drawn.items()))
print({name: f"{score:.2f}" for name, score in zip(cup.names.values(), scores, strict=True)})
assert min(scores) > 0.4

# %% [markdown]
# ## Summary
# - **Features**: queries of a denoising UNet, one vector a cell.
# - **Context model**: K-means once, or a mask, then k-NN against a memory that moves along and keeps its beginning.
# - **Correspondences**: cells that are near in space and time, and similar, vote.
# - **Masked modulation**: +lambda and -lambda inside a mask; where the two predictions differ is the mask, in pixels.
#
# The same from the command line, in the repository's folder: `python -m vidseg_core segment data/clips/cup.mp4 --segments 8`.
#
# ## Exercises
# 1. Use `sample_clip("box")`. Which number of segments separates box, hand and cloth? (Try 4 to 10 with the slider.)
# 2. `from vidseg_core.evaluation.metrics import flicker`: how many pixels change label from frame to frame, `flicker(result.labels)`? And how many
#    cells, `flicker(result.coarse)` against `flicker(result.refined)`? Which should be lower, and is it?
# 3. Segment a clip of your own: `from vidseg_core import read_frames; frames = read_frames("my.mp4", stop=48)`.
