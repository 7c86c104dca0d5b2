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
# # 4 Masked modulation: from cells to pixels
# After three stages every *cell* of 8 x 8 pixels has votes. But the model, which
# denoises pixels, must know where *in* a cell the petal ends. Stage 4 asks it: disturb
# it inside one mask, and look which pixels change (paper, section 3.4).

# %% tags=["hide-input"]
import os
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import vidseg_core as vs
from scipy.ndimage import gaussian_filter, uniform_filter
from torch.nn.functional import interpolate
from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.edges import Guide
from vidseg_core.modulation import NoisyWindow, predict_masks
from vidseg_core.upsample import score_responses, upsample
from vidseg_core.workbook import upsampling as explore
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.figures import compare, show_table
from vidseg_core.workbook.maps import show_maps
from vidseg_core.workbook.widgets import Explorer, choice, levels, share

# %% tags=["hide-input"]
clip = vs.generated_clip(5 if os.environ.get("VIDSEG_FAST") == "1" else 14)
frame, truth, size = clip.frames[4], clip.labels[4], clip.frames.shape[1:3]
backbone = vs.load_backbone("tiny")
one_scale = vs.FeatureSettings(scales=(1.0,))  # cells of 8 x 8 pixels
plain = vs.UpsampleSettings(difference="two-sided", separation=None)
settings = vs.Settings(features=one_scale, upsample=plain)

# %%
vidseg = vs.VidSeg(backbone, settings)
window = next(vidseg.cells(clip.frames, first_mask=clip.labels[0]))
shares = window.votes[1][4]  # stage 3's votes on frame 4, [h, w, classes]
votes = Votes(torch.from_numpy(shares[None]), torch.arange(shares.shape[-1]))
cells, pixels = shares.argmax(-1), vidseg.enlarge(frame[None], votes)[0]
compare(frame, {"cells": cells, "pixels": pixels, "truth": truth}, clip.names)

# %% [markdown]
# Stages 1 to 3 ran as before, with the mask of frame 0; the *pixels* are what we will
# build. (`plain` in the first cell compares $+\lambda$ with $-\lambda$, as the paper
# does, one mask at a time. The default takes [short cuts](07_fast.ipynb). The paper
# runs three guided steps for each mask and sign.)

# %% [markdown]
# ## Two predictions
# We noise the frame's latent and let the UNet predict the clean one. On the way we
# change the output of one layer, a cross-attention to the empty prompt: $+\lambda$ in
# the cells of the mask, nothing elsewhere. Then $-\lambda$. (The layer has our grid of
# cells. By default stage 1 makes finer ones; their votes are averaged.)

# %%
own = vidseg.settings.upsample
print(f"{own.block} at t = {own.timestep}, λ = {own.strength}")
latent = backbone.encode(vidseg.images(frame[None]))
noise = backbone.noise(latent, seed=0, shared=True)
layer = backbone.unet.get_submodule(own.block)


# %%


def predict(shift, timestep=own.timestep):
    """The clean latent, with shift [h, w] added to the layer's output."""
    each = torch.from_numpy(shift).float().reshape(1, -1, 1)  # all channels
    hook = layer.register_forward_hook(lambda _, args, out: out + each)
    noisy = latent + backbone.sigma(timestep) * noise
    clean = backbone.denoise(noisy, timestep)
    hook.remove()
    return clean


# %% [markdown]
# The mask of the blossom, up and down. **Question:** will you see a difference
# between the two?

# %%
mask = cells == 2
plus = predict(own.strength * mask)
minus = predict(-own.strength * mask)


def picture(latent):
    """A latent as RGB in 0..1, [H, W, 3]."""
    rgb = backbone.decode(latent)[0].permute(1, 2, 0).numpy()
    return (rgb / 2 + 0.5).clip(0, 1)


both = {"prediction, +λ": picture(plus), "prediction, -λ": picture(minus)}
show_maps({"the mask": mask.astype(float)} | both, size)

# %% tags=["test"]
noisy_window = NoisyWindow(latent, noise, None)
found = list(predict_masks(backbone, noisy_window, votes.labels, own))
assert len(found) == 1 and found[0].group.owners[2, 0, 0] == 2
# in a batch of masks sums have another order
assert abs(found[0].plus[2] - plus[0]).max() < 1e-3
assert abs(found[0].minus[2] - minus[0]).max() < 1e-3
assert abs(plus - minus).max() > 0.1

# %% [markdown]
# ## The response
# One blossom is paler, the other darker, and nothing else changed. So we decode both,
# subtract, and measure the length of the difference over red, green and blue.
# **Question:** the mask was made of squares of 8 x 8 pixels. Is the response?


# %%
def respond(mask, strength=own.strength, timestep=own.timestep):
    """How much each pixel changes with the mask, [H, W]."""
    plus = predict(strength * mask, timestep)
    minus = predict(-strength * mask, timestep)
    difference = backbone.decode(plus) - backbone.decode(minus)
    return difference.norm(dim=1)[0].numpy()


present = np.unique(cells).tolist()
responses = {k: respond(cells == k) for k in present}
peak = {k: f"up to {r.max():.2f}" for k, r in responses.items()}
show_maps({f"{clip.names[k]}, {peak[k]}": responses[k] for k in present}, size)

# %% [markdown]
# Less so: it is rounder, though the blossom still has the mask's tip and its corner at
# the lower left. The layers behind the modulated one work on finer grids. (The small
# squares are those of the latent.) Notice that the mask of the rest makes the leaf
# respond as well: no mask can be judged alone.

# %% tags=["test"]
blossom = enlarge(mask, size)
assert responses[2][blossom].mean() > 5 * responses[2][~blossom].mean()
for k in present:
    assert enlarge(cells == k, size).flat[responses[k].argmax()]

# %% [markdown]
# ## One scale for all masks
# Each map above has its own scale: masks do not respond with equal strength. So we
# blur a little and divide by the mask's own *peak*: what one pixel in ten exceeds.


# %%
def scaled(response):
    """Blurred over 5 x 5 pixels; 1 is full strength."""
    blurred = gaussian_filter(response, 3, radius=2, mode="mirror")
    peak = np.sort(blurred.ravel())[-round(0.1 * blurred.size)]
    return (blurred / peak).clip(max=1)


show_maps({clip.names[k]: scaled(responses[k]) for k in present}, size, high=1)

# %% [markdown]
# ## The votes weigh it
# Leaf and blossom fill less than a tenth of the frame, so their peaks are low and even
# the sky glows in their maps. Stages 2 and 3 know better: each response is multiplied
# by the mask's *share of the votes*, enlarged smoothly. **Question:** what happens
# where nothing responds?


# %%
def smooth(maps, size=size):
    """Maps [n, h, w] enlarged bilinearly."""
    maps = torch.as_tensor(maps)[None]
    return interpolate(maps, size, mode="bilinear")[0].numpy()


def score(response, share, floor=2.0, damping=0.0):
    """What the mask claims at each pixel, 0..1; share: its votes [h, w]."""
    inside = smooth(share[None])[0]
    weight = inside + damping * (1 - inside)
    return (scaled(response) + floor) / (1 + floor) * weight


scores = {k: score(responses[k], shares[..., k]) for k in present}
show_maps({clip.names[k]: scores[k] for k in present}, size, high=1)

# %% [markdown]
# Where nothing responds, floor 2 keeps two thirds of the score, so the votes decide. In
# the paper there is no floor, and a pixel outside the mask counts 0.7 (`damping`),
# however far away it is. (Exercise 1 measures both.)

# %% tags=["test"]
stack = torch.from_numpy(np.stack([responses[k] for k in present]))
share_maps = votes.shares[0].permute(2, 0, 1)[present]
owners = torch.tensor(present)[:, None, None].expand(share_maps.shape)
package = score_responses(stack, share_maps, owners, own).numpy()
# float32 in another order
assert abs(package - np.stack([scores[k] for k in present])).max() < 1e-4

# %% [markdown]
# ## The frame's own edges
# A response is blurred, yet the frame itself shows where colours change. **This step is
# not in the paper.** In every small square we fit the score by a linear function of red,
# green and blue, as a *guided filter* does. First the squares' means and the covariance
# of their colours, at half the resolution:


# %%
def half(maps):
    """Means of 2 x 2 pixels."""
    *n, height, width = maps.shape
    return maps.reshape(*n, height // 2, 2, width // 2, 2).mean((-3, -1))


def box(maps):
    """Means of 5 x 5 pixels, at borders of those in the frame."""
    inside = uniform_filter(np.ones(maps.shape[-2:]), 5, mode="constant")
    filtered = uniform_filter(maps, 5, axes=(-2, -1), mode="constant")
    return filtered / inside


# %%
rgb = frame.transpose(2, 0, 1) / 255  # [3, H, W]
colours = half(rgb)
middle = box(colours)
products = box(colours[:, None] * colours)  # [3, 3, H/2, W/2]
spread = products - middle[:, None] * middle + 1e-3 * np.eye(3)[..., None, None]
inverse = np.linalg.inv(spread.transpose(2, 3, 0, 1))

# %% [markdown]
# Then the fit. Its slope says how the score changes with colour *within* a square;
# evaluated on the frame in full resolution it has the frame's edges. We smooth only
# half of the score: smoothing all of it would erase thin things.


# %%
def follow(score):
    """The score [H, W] with the frame's edges."""
    small = half(score)
    average = box(small)
    common = box(small * colours) - average * middle  # covariance with colours
    slope = box(np.einsum("yxab,byx->ayx", inverse, common))
    level = average / 2 - (slope * middle).sum(0)
    *slope, level = smooth(np.stack([*slope, level]))
    return (slope * rgb).sum(0) + level + score / 2


edged = {k: follow(scores[k]) for k in present}
zoom = np.s_[70:150, 80:187]  # the blossom, close up
closer = {"the frame": frame, "score": scores[2], "with edges": edged[2]}
show_maps({name: m[zoom] for name, m in closer.items()}, (80, 107), high=1)

# %% tags=["test"]
images = vidseg.images(frame[None]) / 2 + 0.5
guide = Guide.of(frame[None], images, 2, 1e-3)
package = guide.follow(0, torch.from_numpy(scores[2]).float()).numpy()
assert abs(package - edged[2]).max() < 1e-3, "float32 and float64"
assert abs(scores[2] - edged[2]).max() > 0.05

# %% [markdown]
# ## The largest score takes the pixel
# Here are the labels, by how much the winner leads the second, and the wrong pixels.
# **Question:** is the lead small where labels are wrong?


# %%
def segment(shares, edges=True):
    """All of stage 4: labels [H, W] and scores [n, H, W] of the votes."""
    cells = shares.argmax(-1)
    present = np.unique(cells)
    found = [score(respond(cells == k), shares[..., k]) for k in present]
    found = np.stack([follow(s) if edges else s for s in found])
    return present[found.argmax(0)], found


labels, found = segment(shares)
second, first = np.sort(found, 0)[-2:]
explore.show_confidence(frame, labels, first - second, labels != truth)

# %% tags=["test"]
package = upsample(backbone, frame[None], votes, vidseg.settings)[0].numpy()
# float32 and float64: two scores that are equal but for rounding
assert (labels != package).sum() <= 8, (labels != package).sum()
assert (labels == truth).mean() > 0.96
aside = [(np.roll(truth, 8, axis) == labels).mean() for axis in (0, 1)]
assert max(aside) < (labels == truth).mean(), "labels are displaced"
lead, wrong = first - second, labels != truth
assert lead[wrong].mean() < 0.7 * lead[~wrong].mean()
default = vs.UpsampleSettings(separation=None)
default = replace(settings, upsample=default).resolve(backbone.model)
one_sided = upsample(backbone, frame[None], votes, default)[0].numpy()
assert (one_sided == package).mean() > 0.995

# %% [markdown]
# Mostly: it is small along outlines. The black block at the blossom's lower left is a
# wrong cell of the mask: the response follows it, and only better votes can correct
# this. (For small λ the prediction is nearly linear in it: $+\lambda$ against *nothing*
# says almost the same for half the price. That is the default.)

# %% [markdown]
# ## By hand
# Click a thing in the first panel to choose its mask, or use the controls.

# %%
answer = lru_cache(64)(lambda k, strength: respond(cells == k, strength))


def draw(mask, strength, damping):
    up, down = (predict(sign * strength * (cells == mask)) for sign in (1, -1))
    found = {}
    for k in present:
        claim = score(answer(k, strength), shares[..., k], damping=damping)
        found[k] = follow(claim)
    labels = np.array(present)[np.argmax([*found.values()], 0)]
    seen = picture(up), picture(down), answer(mask, strength), found[mask]
    what = (frame, cells == mask, *seen, labels, clip.names)
    shown = {"response": seen[2], "labels": labels}
    return explore.show_modulation(*what), shown


# %%
modulation = Explorer(
    draw,
    lambda panel, x, y: {"mask": int(cells[int(y) // 8, int(x) // 8])},
    mask=choice("mask", 2, [(clip.names[k], k) for k in present]),
    strength=levels("λ", own.strength, [0.1, 3.0, own.strength, 300.0]),
    damping=share("damping", 0.0, 0.25),
)
modulation

# %% [markdown]
# - **λ = 0.1**: the response, on a scale of its own, is noisier; score and labels hardly
#   change. **λ = 300**: the predictions fall apart, and the response fills the mask's
#   cells; the votes still keep the labels.
# - **damping 0**: a label leaves its cells by about a cell at most; **1**: it goes
#   anywhere, and far halos win pixels.

# %% tags=["test"]
modulation.click("cells", x=130, y=135)
assert clip.names[modulation.mask.value] == "blossom"
strong = modulation.set(strength=3.0).shown["response"].max()
weak = modulation.set(strength=0.1).shown["response"].max()
assert 15 < strong / weak < 60, "for small λ the response is linear"
free = modulation.set(strength=own.strength, damping=1.0).shown["labels"]
_ = modulation.set(damping=0.0)
assert (modulation.shown["labels"] == labels).all()
assert (free == truth).mean() < (labels == truth).mean()

# %% [markdown]
# ## Is it worth it?
# Enlarging the votes bilinearly is cheap: no UNet at all. And it, too, can follow the
# frame's edges. **Question:** which of the two, modulation or edges, will move borders
# more? Wrong pixels are black.


# %%
def ways(shares):
    """Labels [H, W] of the votes, made in five ways."""
    blurred = smooth(shares.transpose(2, 0, 1))
    found = {"cells": enlarge(shares.argmax(-1), size)}
    found["bilinear"] = blurred.argmax(0)
    found["bilinear, edges"] = np.argmax([follow(s) for s in blurred], 0)
    found["modulation"] = segment(shares, edges=False)[0]
    found["both"] = segment(shares)[0]
    return found


maps = ways(shares)
smoothed = {name: maps[name] for name in maps if name != "cells"}
borders = explore.explore_borders(frame, smoothed, truth)
borders

# %% [markdown]
# In numbers, near true borders: once with the votes of stage 3, once with *exact*
# cells, the true class at each cell's centre: about the best that squares can be.

# %%
exact = np.eye(shares.shape[-1])[at_centres(truth[None], cells.shape)[0]]
near = explore.near_borders(truth, 8)
table = [
    [100 * (found == truth)[near].mean() for found in drawn.values()]
    for drawn in (maps, ways(exact.astype(np.float32)))
]
title = "% right within 8 pixels of a border"
show_table(np.array(table), ["stage 3", "exact"], [*maps], title, "row")

# %% [markdown]
# All ways beat squares, even exact ones. **The frame's edges move the borders, hardly
# modulation**: alone it is worth about as much as bilinear enlarging here, and both
# together no more than edges alone. (On real clips it adds a little:
# [chapter 5](05_evaluation.ipynb).) Real votes do better than exact cells: shares tell
# where in a cell the border runs.

# %% tags=["test"]
table = np.array(table)
assert (table[:, 1:] > table[:, :1] + 1).all()
assert (table[:, 2::2] > table[:, 1:4:2] + 1).all(), "edges help both"
assert abs(table[:, 3] - table[:, 1]).max() < 1.5
assert (table[0, 1:] > table[1, 1:] - 1).all()
assert (maps["both"] == labels).all()
borders.click("frame", x=125, y=110)
top, left, height, width = borders.shown["view"]
assert top <= 110 < top + height and left <= 125 < left + width

# %% [markdown]
# ## Summary
# - Add +λ, then −λ, inside a mask. The pixels that change show the mask at finer
#   resolution.
# - Responses are scaled and weighed by the votes; the largest score takes the pixel.
# - Here scores also follow the frame's edges, which sharpens outlines most. What the
#   votes have lost stays lost.

# %% [markdown]
# ## Exercises
# Answers: [Solutions](solutions.ipynb).
# 1. The paper has `damping` 0.7, `floor` 0 and `peak` 1. What is each worth here?
# 2. Which noise level gives the best borders: t = 20, 100 or 400?
# 3. Compare `edges` 0, 0.5 and 2. Where must following the frame's edges fail?
# 4. How many pixels change if you drop −λ (`difference="one-sided"`)?

# %% [markdown]
# 5. Modulate a later layer:
#    `up_blocks.1.attentions.1.transformer_blocks.0.attn2`. What becomes of the borders?
# 6. Take three frames of the clip instead of one. Is stage 4, edges and all, ahead of
#    bilinear enlarging in each of them?
