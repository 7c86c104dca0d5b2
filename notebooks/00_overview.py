# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: notebooks///ipynb,notebooks///py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VidSeg in one page
#
# A diffusion model that was only ever trained to remove noise from images knows a great deal about what belongs together in
# them. VidSeg (Wang et al., CVPR 2025, [arXiv 2405.16947](https://arxiv.org/abs/2405.16947)) reads that knowledge out and
# segments a *video* with it. Nothing is trained or fine-tuned.
#
# **You will** load a clip of two seconds, segment it, look at what each of the four stages made of one frame, play the result,
# and change the number of segments with a slider.
#
# **You will learn** what the four stages are called, what goes in and comes out of each, and which of them costs time.
#
# **You need** nothing but this repository: the model is embedded, small (9 million parameters) and runs on a laptop's CPU. To
# use Stable Diffusion instead, change one word in the next cell (and have its weights, and a GPU).

# %%
import os

import numpy as np

from vidseg_core import ContextSettings, Settings, VidSeg, load_backbone, sample_clip
from vidseg_core.metrics import class_iou, confusion
from vidseg_core.viz import compare, show_frames, show_stages
from vidseg_core.widgets import explore_segments, play

FAST = os.environ.get("VIDSEG_FAST") == "1"  # CI sets it: fewer frames, the same steps
MODEL = "tiny"  # or "sd21-base"; see `python -m vidseg_core models`

# %% [markdown]
# ## A clip
# What is in it? A hand holds a dark cup before a white wall, and tilts it.

# %%
cup = sample_clip("cup")
frames = cup.frames[: 13 if FAST else 28]
print(f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} pixels, {frames.dtype}, RGB")
show_frames({f"frame {k}": frames[k] for k in np.linspace(0, len(frames) - 1, 4).astype(int)})

# %% [markdown]
# ## Segment it
# How little does it take? One call. Without any help the method finds segments, not classes: it can tell that the cup is one
# thing and the hand another, but not what they are called. K-means makes 20 clusters, and similar ones are merged until 8 remain.

# %%
backbone = load_backbone(MODEL)
vidseg = VidSeg(backbone, Settings(context=ContextSettings(num_clusters=20, num_segments=8)))
result = vidseg(frames)
print({stage: f"{seconds:.1f} s" for stage, seconds in result.timings.items()})

# %% [markdown]
# Notice which stage takes the time: the last one, which asks the model about every segment twice.
#
# ## What did each stage make of one frame?
# Read the panels in order.
#
# 1. **Features.** The frame is encoded, a little noise is added, and the model's UNet is asked to remove it. While it does, we
#    read the *queries* of its self-attention. Every cell of 8x8 pixels gets a vector; three directions of it are shown as colours.
# 2. **Scene context model.** K-means on the first window of frames finds what the scene consists of. From then on each cell of
#    every frame gets the label of its nearest neighbours among remembered cells, and the memory moves along with the clip.
# 3. **Correspondences.** Cells are followed from frame to frame, and the labels along a track vote. The map of shares shows
#    where the vote was unanimous (bright) and where the label is in doubt.
# 4. **Masked modulation.** A constant is added to the model's activations inside one coarse mask, then subtracted. Where the two
#    predictions differ, at the full resolution of the image, the model itself believes the mask to be.

# %%
n = len(frames) // 2
features = result.features.context[n].numpy()
show_stages(frames[n], features, result.coarse[n], result.refined[n], result.confidence[n], result.labels[n], result.names)

# %% [markdown]
# Notice that panels 2 and 3 are made of cells and panel 4 is not: the outline of the cup in the last panel was never in the coarse
# map. Notice also what goes wrong: parts of the wall near the objects become segments of their own.

# %%
h, w = result.refined.shape[1:]
assert (h, w) == (30, 40) or MODEL != "tiny"
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
# What is the right number? There is none, so it is a slider. The clusters are merged in a fixed order (Ward's), so that going from
# 8 to 7 joins two segments and leaves all others as they are, colours included. First as a picture, for those who read this
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
explorer.num_segments.value, explorer.frame.value = 4, 1
four = explorer.shown["segments"]
explorer.num_segments.value = 3
assert len(four) == 4 and len(explorer.shown["segments"]) == 3 and set(explorer.shown["segments"]) < set(four)
assert explorer.shown["labels"].shape == frames.shape[1:3] and explorer.status.value == ""

# %% [markdown]
# ## Names
# Can it say what is what? Yes, if someone says it once. This is the paper's protocol: a mask of the *first* frame gives its classes to
# the clusters, and the context model carries them through the clip. (All published VidSeg scores use it. It gives a good deal away.)

# %%
named = VidSeg(backbone)(frames, first_mask=cup.masks[0], names=cup.names, keep=())
last = len(frames) - 1
compare(frames[last], {"cells": named.refined[last], "pixels": named.labels[last]}, named.names)

# %% [markdown]
# Notice that the hand keeps its colour although the cup and the arm have moved since frame 0. How good is it? Two people would
# draw the outlines differently, but roughly: the share of the drawn cup and the found cup that they have in common.

# %%
drawn = [k for k in cup.masks if 0 < k < len(frames)]
scores = class_iou(sum(confusion(named.labels[k], cup.masks[k], 3) for k in drawn))
print({name: f"{score:.2f}" for name, score in zip(cup.names.values(), scores, strict=True)})
assert min(scores) > 0.5

# %% [markdown]
# ## Summary
# - **Features**: queries of a denoising UNet, one vector a cell.
# - **Context model**: K-means once, then k-NN against a memory that moves along.
# - **Correspondences**: tracks vote.
# - **Masked modulation**: +lambda and -lambda inside a mask; where the predictions differ is the mask, in pixels.
#
# The same from the command line: `python -m vidseg_core segment data/clips/cup.mp4 --segments 8`.
#
# ## Exercises
# 1. Use `sample_clip("box")`. Which number of segments separates box, hand and cloth? (Try 4 to 10 with the slider.)
# 2. Set `Settings(refine=RefineSettings(method="none"))` and compare `flicker` from `vidseg_core.metrics` with and without.
# 3. Segment a clip of your own: `from vidseg_core import read_frames; frames = read_frames("my.mp4", stop=48)`.
