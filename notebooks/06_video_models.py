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
# # 6 Video models: what else they see
#
# An image model sees each frame alone. A video model denoises the frames of a
# window together, and its layers look along time. The picture shows how much
# every cell of the *middle* frame looks at each frame; bright is much.

# %% tags=["hide-input"]
import os

import numpy as np
import torch
from torch.nn.functional import normalize
from vidseg_core import (
    Settings,
    VidSeg,
    generated_clip,
    load_backbone,
    sample_clip,
)
from vidseg_core.features import working_images
from vidseg_core.workbook import steadiness, temporal
from vidseg_core.workbook import video as explore
from vidseg_core.workbook.context import read_features
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.figures import compare, show_table
from vidseg_core.workbook.motion import faster

# %% tags=["hide-input"]
FAST = os.environ.get("VIDSEG_FAST") == "1"  # CI sets it: fewer frames
FRAMES = 7 if FAST else 14
MODEL = "tiny-video"  # or "svd" on a GPU
image, video = load_backbone("tiny"), load_backbone(MODEL)
clip = faster(generated_clip(3 * FRAMES - 2), 3)  # every third frame
seen = temporal.explore_time(video, clip.frames)
seen.still()

# %% [markdown]
# At the bottom are the weights of the marked point; the dotted line is where all
# frames would count alike. `tiny`, the image model of the notebooks before, has
# nothing of this. Does it help to segment?
#
# **You need** [1 Features](01_features.ipynb) to
# [3 Correspondences](03_correspondence.ipynb). **You will** build this map, take
# time away from the model, and destroy parts of frames.

# %% [markdown]
# ## What differs
#
# | | `tiny` | `tiny-video` |
# |---|---|---|
# | sees | one frame | a window, and its first frame again |
# | noise level | step 0 to 999 | any: its time is $\ln(\sigma)/4$ |
# | predicts | the noise | $v$, between noise and image |
# | layers | space | space, then time |
#
# Stable Video Diffusion is built like the right column and is eighty times as
# large.

# %%
for name, backbone in {"tiny": image, MODEL: video}.items():
    paths = [path for path, _ in backbone.unet.named_modules()]
    attend = sum(p.endswith("attn1") and "temporal" in p for p in paths)
    convolve = sum(p.endswith("temporal_res_block") for p in paths)
    millions = sum(p.numel() for p in backbone.unet.parameters()) / 1e6
    print(f"{name}: {millions:.1f} M parameters; along time {attend} layers of")
    print(f"    attention and {convolve} blocks of convolutions")

# %% [markdown]
# ## Attention over time, by hand
# A temporal layer sees the cells as short sentences: one cell through all frames.
# Its queries and keys say which frames attend to which. **Question:** should a
# moving thing look at frames near by, or at all of them?
#
# First a pass as stage 1 makes it, with a hook on one layer.

# %%
settings = Settings().resolve(video.model)
images = working_images(video, clip.frames, settings)
latents = video.encode(images)
condition = video.condition(images, settings.condition, settings.seed)
time = settings.features.timestep
noise = video.noise(latents, settings.seed, shared=True)
block = temporal.own_block(video)
with video.tap((block + ".to_q", block + ".to_k")) as taps:
    noisy = latents + video.sigma(time) * noise
    video.denoise(noisy, time, condition=condition)
query, key = taps[block + ".to_q"].float(), taps[block + ".to_k"].float()
print("cells, frames, channels:", *query.shape)

# %% [markdown]
# The rest is attention as in any transformer: split the channels into heads,
# multiply, divide by the root of a head's width, softmax over frames, mean over
# heads.

# %%
heads = video.unet.get_submodule(block).heads
query = query.unflatten(-1, (heads, -1)).transpose(1, 2)
key = key.unflatten(-1, (heads, -1)).transpose(1, 2)
scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
weights = scores.softmax(-1).mean(1)  # cells, of frame, in frame
grid = read_features(video, clip.frames[:1]).match.shape[1:3]
attention = weights.unflatten(0, grid).cpu().numpy()
print("rows, columns, of frame, in frame:", *attention.shape)

# %% tags=["test"]
known = temporal.temporal_attention(video, clip.frames)
assert np.abs(attention - known[block]).max() < 1e-5
assert np.allclose(attention.sum(-1), 1, atol=1e-3)

# %% [markdown]
# Now the question. For the ground, the leaf and the blossom: the mean weight of
# the frame itself and of frames 1, 2, 4 and 6 away, in percent.

# %%
classes = at_centres(clip.labels, grid)
places = np.arange(FRAMES)
away = np.abs(places[:, None] - places)
gaps, table = (0, 1, 2, 4, 6), []
for label in clip.names:
    rows = [attention[classes[n] == label, n].mean(0) for n in places]
    table.append([np.stack(rows)[away == gap].mean() for gap in gaps])
table, names = 100 * np.array(table), list(clip.names.values())
show_table(table, names, gaps, "weight in percent, by frames away", best="row")

# %%
itself, *_, far = table.mean(0)
print(f"all alike {100 / FRAMES:.1f}, itself {itself:.1f}, 6 away {far:.1f}")

# %% [markdown]
# Compare with "all alike". A frame that gets less than that, such as the frame
# itself, is not asked: the layer already has it, from the path around attention.
# A frame that gets more may show what this one lacks.

# %% [markdown]
# One number for a layer: the exponential of the entropy of its weights. It is 1
# if a cell looks at one frame, and the window's length if it looks at all alike.

# %%
for path, weights in temporal.temporal_attention(video, clip.frames).items():
    cells = f"{weights.shape[0]:2} x {weights.shape[1]:2} cells"
    name, frames = path.split(".temporal")[0], temporal.spread(weights)
    print(f"{name}: {cells}, looks at {frames:.1f} of {FRAMES} frames")

# %% [markdown]
# If a number is near the window's length, that layer nearly averages over the
# window. It cannot follow what moves: attention looks at the *same place* in all
# frames.
#
# **Click** a point, or move the sliders. (Here frames have the working size; the
# pipeline reads this model at 1.5 times that.)

# %%
seen

# %% tags=["test"]
assert np.allclose(seen.shown["weights"].sum(), 1, atol=1e-3)
assert all(1 < temporal.spread(a) <= FRAMES + 1e-3 for a in known.values())

# %% [markdown]
# ## A point on its way
# The clip is generated, so we know where each point goes. How similar do its
# features stay to themselves? **Click** a point of frame 0. (Gaps: it is hidden.)
# **Question:** whose curve is higher, and is that the better model?

# %%
both = {"tiny": image, MODEL: video}
read = {name: read_features(b, clip.frames) for name, b in both.items()}
match = {name: features.match for name, features in read.items()}
point = explore.explore_point(match, clip)
point

# %% [markdown]
# ## Is the motion found?
# High similarity alone is worth nothing: features that are the same everywhere
# have it. So we look for each cell two frames later, by its nearest neighbour, and
# compare with the true move.


# %%
def find(match: torch.Tensor, gap: int = 2) -> np.ndarray:
    unit, moves = normalize(match, dim=-1), []
    places = np.indices(match.shape[1:3]).reshape(2, -1).T
    for n in range(len(match) - gap):
        cosine = unit[n].flatten(0, 1) @ unit[n + gap].flatten(0, 1).T
        best = cosine.argmax(1).cpu().numpy()
        moves.append(places[best] - places)  # dy, dx in cells
    return np.stack(moves)


# %% [markdown]
# Moves that end near the truth, beside the answer "nothing moves":

# %%
truth = steadiness.true_moves(clip, FRAMES, match["tiny"].shape[1:3])
visible = np.isfinite(truth[..., 0])
answers = {name: find(m) for name, m in match.items()}
answers["nothing moves"] = np.zeros_like(truth)
for name, moves in answers.items():
    error = np.abs(moves - truth)[visible].max(-1)
    print(f"{name:14} {(error <= 1).mean():.0%} within one cell, ", end="")
    print(f"{(error <= 0.5).mean():.0%} within half a cell")

# %% tags=["test"]
moves = find(match["tiny"])[0]
expected = steadiness.find_moves(match["tiny"][[0, 2]], subcell=False)[0][0]
assert (moves == expected.numpy()).all()

# %% [markdown]
# Always ask what a guess scores. "Nothing moves" looks at no frame. With a
# tolerance of one cell, or from one frame to the next, it does well, because
# most moves are short. With half a cell over two frames it fails.
#
# The package also places each maximum between cells
# ([chapter 3](03_correspondence.ipynb)). With it:

# %%
judged = {name: steadiness.judge(f, clip) for name, f in read.items()}
judged["nothing moves"] = steadiness.judge_still(read["tiny"], clip)
columns = ["away", "found", "pace", "similar", "right", "kept"]


def show(judged: dict, title: str):
    table = [[getattr(j, c) for c in fields] for j in judged.values()]
    table = 100 * np.array(table)
    return show_table(table, list(judged), columns, title, lower=["away"])


fields = ["away", "found", "pace", "similarity", "right", "kept"]
show(judged, "along the true motion, in percent (of a cell)")

# %% [markdown]
# `away` is how far moves end from the truth: less is better. `found` is how many
# end within half a cell, `pace` their share of the true motion. `similar` is a
# point with itself one frame later, `right` and `kept` are labels of cells.

# %% [markdown]
# Read each column against its last row. `similar` and `kept` are high even for a
# guess. The first three say who saw the motion.

# %%
best = max(both, key=lambda name: judged[name].found)
a, b = (judged[name].found for name in both)
print(f"{best} finds more moves, by {abs(a - b):.1%} of all: one clip;")
print("five clips with errors: benchmarks/video_time.py")

# %% [markdown]
# ## Take time away
# Each temporal layer adds something to what comes in. If the last part of it gives
# zero, what comes in goes out, and the layer is silent. **Question:** which is
# worse, no layer or the frames in another order?

# %%
paths = [p for p, _ in video.unet.named_modules()]
paths = [p for p in paths if "temporal_tr" in p and p.endswith(".attn1")]
silence = dict.fromkeys(paths, torch.zeros_like)
with video.edit(silence):
    quiet = steadiness.judge(read_features(video, clip.frames), clip)
print(f"no attention over time: {quiet.found:.1%} found, ", end="")
print(f"with it {judged[MODEL].found:.1%}")

# %% tags=["test"]
assert set(silence) == set(temporal.without_time(video, "attention"))

# %% [markdown]
# The package can silence the convolutions over time, too, and show the frames in
# another order (the first stays first).

# %%
disturbed = steadiness.judge_time(video, clip, read[MODEL])
show(disturbed, "the video model without its sense of time")

# %% tags=["test"]
whole, mixed = disturbed["as it is"], disturbed["frames shuffled"]
assert np.allclose(quiet.found, disturbed["no attention over time"].found)
assert whole.found > mixed.found and whole.similarity > mixed.similarity
assert mixed.found < disturbed["no temporal layer"].found
assert whole.away < disturbed["no temporal layer"].away
assert disturbed["nothing moves"].found < 0.4

# %% [markdown]
# A wrong order is worse than none: layers then mix frames that have little in
# common. Compare the first row with "no temporal layer": moves end nearer to the
# truth with the layers, since fewer go far astray, yet few more are exact. If
# `similar` rises and `pace` falls, layers also blur features along time.

# %% [markdown]
# ## When a frame is lost
# Part of a frame is destroyed, as in a broken stream. An image model has nothing
# else to go by; a video model has the other frames. **Question:** how much can be
# lost before the video model loses it, too?

# %%
slow = generated_clip(FRAMES)
lost = explore.explore_hidden(both, slow, FRAMES)
lost

# %% [markdown]
# Again, what does a guess score? One class for all lost cells, the most common
# one; or the first mask, as if nothing had moved since.

# %%
middle = FRAMES // 2
spoiled = steadiness.hide(slow.frames, middle, 0.5)
part = steadiness.lost_cells(slow.frames, spoiled, middle, grid)
truth = at_centres(slow.labels, grid)[middle][part]
first = at_centres(slow.labels, grid)[0][part]
guess = {"one class": np.bincount(truth).max() / len(truth)}
guess["first mask"] = (first == truth).mean()
for name, right in (guess | lost.shown["right"]).items():
    print(f"{name:11} {right:.0%} of the lost cells are right")

# %% tags=["test"]
assert np.allclose(list(guess.values()), list(lost.shown["guess"].values()))
assert lost.shown["right"][MODEL] > lost.shown["right"]["tiny"]

# %% [markdown]
# `tiny` takes noise for a picture and does worse than a guess. The video model
# finds the ground, the leaf and the blossom roughly in their places. It learned
# that in training: parts of frames were hidden, and only the other frames
# could tell what is there.

# %% [markdown]
# ## The same stages, one word changed
# No stage asks which model it has. Here is the cup clip, first mask given, with
# either. **Question:** can you tell which is which?

# %%
cup = sample_clip("cup")
frames = cup.frames[: 2 if FAST else 14]
masks = {}
for name, backbone in both.items():
    segment = VidSeg(backbone)
    result = segment(frames, first_mask=cup.masks[0], names=cup.names)
    masks[name] = result.labels[-1]
compare(frames[-1], masks, cup.names)

# %%
same = (masks["tiny"] == masks[MODEL]).mean()
print(f"{same:.1%} of the pixels of the last frame have the same label")

# %% tags=["test"]
assert same > 0.95

# %% [markdown]
# ## Windows and their seams
# The image model does not know where a window ends. The video model does: its
# layers see one window at a time, and each window has a new first frame.
# **Question:** where in this curve is the seam?

# %%
long = generated_clip(2 * FRAMES)
halves = long.frames[:FRAMES], long.frames[FRAMES:]
curves = {}
for name, backbone in both.items():
    match = torch.cat([read_features(backbone, half).match for half in halves])
    curves[name] = steadiness.along_motion(match, long)
explore.show_seam(curves, [FRAMES])

# %%
for name, curve in curves.items():
    across, within = curve[FRAMES - 1], np.delete(curve, FRAMES - 1).mean()
    print(f"{name:11} across {across:.3f}, within a window {within:.3f}")

# %% tags=["test"]
within = {n: np.delete(c, FRAMES - 1).mean() for n, c in curves.items()}
drop = {name: within[name] - curves[name][FRAMES - 1] for name in both}
assert drop[MODEL] > drop["tiny"]

# %% [markdown]
# The curve of the video model falls at the seam, that of the image model does
# not. Stage 2 has to bridge this step: its context remembers cells of the window
# before, and of the first.

# %% [markdown]
# ## The first frame
# A video model gets the window's first frame as a condition. **Question:** what
# happens if it gets another clip's, or none?

# %%
told = {"its own": judged[MODEL]}
for name, first in {"another clip's": cup.frames[0], "none": None}.items():
    features = explore.conditioned(video, clip.frames, first)
    told[name] = steadiness.judge(features, clip)
show(told, "given this first frame")

# %% tags=["test"]
assert np.ptp([j.right for j in told.values()]) < 0.02
assert np.ptp([j.found for j in told.values()]) < 0.05

# %% [markdown]
# Hardly a difference: at this noise level the frames themselves are all there.
# The first frame matters when the model *generates*, from noise alone.

# %% [markdown]
# ## What it costs
# Seconds for the features of one window at the working size, and for a frame.

# %%
spent = {n: explore.seconds_a_window(b, clip.frames) for n, b in both.items()}
for name, seconds in spent.items():
    print(f"{name:11} {seconds:5.1f} s, {seconds / FRAMES:.2f} s a frame")

# %% tags=["test"]
assert spent[MODEL] > spent["tiny"]

# %% [markdown]
# ## Which one, then?
# - **Outlines, any clip, little time:** the image model.
# - **Frames that are broken:** the video model, which has the others.
# - **Frames far apart in time:** the image model; temporal layers blend what has
#   little in common.
#
# Scores of both, with errors, are on
# [the model's card](../data/models/tiny-video/README.md). For SVD they remain to
# be measured.

# %% [markdown]
# ## Summary
# - Layers over time look at the same place in all frames of a window.
# - High similarity proves nothing: compare with "nothing moves".
# - Frames in a wrong order are worse than no layers over time.
# - What one frame has lost, others can tell.
# - Features change at a seam of windows.

# %% [markdown]
# ## Exercises
# Answers: [Solutions](solutions.ipynb).
# 1. With `seen`, choose a block of low resolution. Does it look at fewer frames?
# 2. With `lost`, how much can be lost of frame 1, and of the last? Which frames
#    help?
# 3. Give `explore.explore_hidden` the fast `clip`. Why is less found?
# 4. Judge the moves over one frame, not two. What does "nothing moves" score?
