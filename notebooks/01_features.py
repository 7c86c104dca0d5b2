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
# # 1 Features: what a diffusion UNet sees
#
# A diffusion model gets a noisy picture and has to say what is under the noise. For that it must know which parts of a picture belong together.
# VidSeg reads this knowledge while the model works (Wang et al., CVPR 2025, [arXiv 2405.16947](https://arxiv.org/abs/2405.16947), section 3.1). Here we do it by hand.

# %% tags=["hide-input"]
import os

import numpy as np
import torch
import vidseg_core as vs
from torch.nn import functional as F
from vidseg_core.features import QUERY, extract_features, working_images
from vidseg_core.workbook import features as explore
from vidseg_core.workbook.figures import pca_image, show_frames, show_table
from vidseg_core.workbook.widgets import Explorer, choice, levels, slider

FAST = os.environ.get("VIDSEG_FAST") == "1"  # fewer frames, for automatic tests
MODEL = "tiny"

# %%
cup = vs.sample_clip("cup")
numbers = list(cup.masks)[: 2 if FAST else 5]
frames = cup.frames[numbers]
show_frames({f"frame {n}": cup.frames[n] for n in numbers})

# %% [markdown]
# A hand tilts a cup. Each frame has a mask drawn by hand, so that we can check what we find. **Goal:** a vector for every cell of every frame, such that cells of the
# same thing have similar vectors.

# %% [markdown]
# ## Encode
#
# What does the network get instead of pixels? A *latent*: a smaller picture with more channels. Stable Diffusion computes it with an autoencoder, the embedded model with a fixed transform like JPEG's. One
# latent pixel stands for 8 x 8 pixels there, for 4 x 4 here.

# %%
backbone = vs.load_backbone(MODEL)
settings = vs.Settings().resolve(backbone.model)  # what suits this model
images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1  # -1 to 1
latents = backbone.codec.encode(images)
print(tuple(images.shape), "->", tuple(latents.shape))
grey = {f"channel {k}": latents[0, k].numpy() for k in (0, 1, 2, 6, 9)}
show_frames(grey, cmap="gray")

# %% [markdown]
# Notice the roles: channel 0 is brightness, 1 and 2 respond to edges, 6 and 9 are blue and red.

# %% tags=["test"]
assert torch.equal(images, working_images(backbone, frames, settings))
assert torch.equal(latents, backbone.encode(images))

# %% [markdown]
# ## Add noise
#
# How much? Training used 1,000 noise levels, numbered by a *timestep* $t$. $ᾱ_t$ is the picture's share of the variance (Ho et al. 2020). Relative to the picture, the noise then has the deviation
# $\sigma_t = \sqrt{(1-ᾱ_t)/ᾱ_t}$ (Karras et al. 2022, table 1).

# %%
config = backbone.scheduler
ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
betas = torch.linspace(*ends, 1000, dtype=torch.float64) ** 2
alphas = torch.cumprod(1 - betas, 0)
sigmas = ((1 - alphas) / alphas).sqrt().tolist()
{t: round(sigmas[t], 2) for t in (1, 20, 100, 400, 800)}

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.randn(1, *latents.shape[1:], generator=generator)


def add_noise(latents, t):
    return latents + sigmas[t] * noise


def picture(latents):
    pixels = backbone.codec.decode(latents)[0].permute(1, 2, 0)
    return (pixels.numpy() / 2 + 0.5).clip(0, 1)


# %%
LEVELS = (1, 20, 100, 400, 800)
noisy = {t: add_noise(latents, t) / (sigmas[t] ** 2 + 1) ** 0.5 for t in LEVELS}
show_frames({f"t = {t}": picture(z) for t, z in noisy.items()})

# %% [markdown]
# This is what the network sees (divided by $\sqrt{\sigma_t^2+1}$, so that its variance is always about 1). All frames get the *same* noise: where nothing changes from frame to frame, the features will not change either. Up to which level could *you* tell that
# there is a cup?

# %% tags=["test"]
assert all(sigmas[t] == backbone.sigma(t) for t in LEVELS)
assert torch.equal(noise, backbone.noise(latents, settings.seed, shared=True))

# %% [markdown]
# ## Queries
#
# In a self-attention layer every cell gathers information from all the others. It sends out a *query*, and listens to those cells whose *key* fits it. So cells that look for the same information have similar queries. Often they belong to the same thing, and that is what VidSeg uses.

# %% [markdown]
# ## One pass with a hook
#
# PyTorch calls a *hook* each time a layer has run. We register one on the layer that computes the queries of one self-attention block, run the UNet once, and take the hook away.

# %%
BLOCK, T = settings.features.match_blocks[0], settings.features.timestep
layer = backbone.unet.get_submodule(BLOCK + ".transformer_blocks.0.attn1.to_q")
kept = []
hook = layer.register_forward_hook(lambda layer, args, out: kept.append(out))
with torch.inference_mode():
    seen = add_noise(latents, T) / (sigmas[T] ** 2 + 1) ** 0.5
    prompt = backbone.prompt("").expand(len(seen), -1, -1)
    predicted = backbone.unet(seen, T, encoder_hidden_states=prompt).sample
hook.remove()
print(BLOCK, "at t =", T, tuple(kept[0].shape))

# %% [markdown]
# The network's own output is a guess of the noise. Subtract it, and we have the picture as the network believes it to be.

# %%
clean = add_noise(latents, T) - sigmas[T] * predicted
shown = {"frame": picture(latents), "with noise": picture(seen)}
show_frames(shown | {"noise removed": picture(clean)})

# %% tags=["test"]
assert torch.equal(clean, backbone.denoise(add_noise(latents, T), T))

# %% [markdown]
# But we want what the layer computed on the way: 1,200 vectors a frame, with 96 numbers each.
#
# ## From a list to a map
#
# The vectors are in reading order. As a grid of 30 x 40 *cells*, each 8 x 8 pixels of the frame:

# %%
queries = kept[0].unflatten(1, (30, 40))
grey = {f"number {k}": queries[0, ..., k].numpy() for k in (0, 1, 2, 3, 4)}
show_frames({"frame": frames[0]} | grey, cmap="gray")

# %% [markdown]
# Only the *direction* of the whole vector will count, so we give every vector the length 1. This is what stage 3 will compare from frame to frame.

# %%
match = F.normalize(queries, dim=-1)

# %% tags=["test"]
assert torch.equal(match, extract_features(backbone, images, settings).match)

# %% [markdown]
# ## PCA: 96 numbers as three colours
#
# Which three directions show most of the differences between the cells? Principal component analysis finds them: the eigenvectors of the covariance with the largest eigenvalues. They become red, green and blue.

# %%
flat = match.flatten(0, 2).double()
flat = flat - flat.mean(0)
_, directions = np.linalg.eigh((flat.T @ flat).numpy())  # ascending
three = flat.numpy() @ directions[:, [-1, -2, -3]]
low, high = np.percentile(three, (1, 99), axis=0)
colours = ((three - low) / (high - low)).clip(0, 1).reshape(-1, 30, 40, 3)
show_frames({f"frame {n}": c for n, c in zip(numbers, colours, strict=True)})

# %% [markdown]
# Which direction gets which colour is arbitrary, but *equal colours mean similar vectors*. Notice that the cup keeps its colour in all frames, although it moves.

# %% tags=["test"]
assert np.allclose(colours, pca_image(match.numpy()), atol=1e-4)  # rounding

# %% [markdown]
# ## Your own explorer
#
# How do noise level and layer change the picture? First the pass above, as a function of both.


# %%
def read(block, t, latents):
    layer = backbone.unet.get_submodule(block + QUERY)
    kept = []
    hook = layer.register_forward_hook(lambda *call: kept.append(call[-1]))
    clean = backbone.denoise(add_noise(latents, t), t)
    hook.remove()
    cells = kept[0].shape[1]
    rows = round((cells * 3 / 4) ** 0.5)  # the frames are 3 : 4
    return kept[0].unflatten(1, (rows, -1)), clean


# %% [markdown]
# Now a `draw` function: values of controls in, a figure and a dictionary of whatever you want to look at later out. `Explorer` draws again when a control moves.

# %%
usual = colours  # the picture above lends its colours


def draw(t, block, frame):
    here = slice(frame, frame + 1)
    raw, clean = read(block, t, latents[here])
    found = F.normalize(raw, dim=-1)
    shown = {"what the UNet gets": picture(add_noise(latents[here], t))}
    shown["what it makes of it"] = picture(clean)
    shown["queries"] = pca_image(found.numpy(), like=usual[here])[0]
    return show_frames(shown), {"queries": found[0]}


# %%
noise_explorer = Explorer(
    draw,
    t=levels("noise level t", 20, (1, 20, 50, 100, 200, 400, 800)),
    block=choice("block", BLOCK, explore.attention_blocks(backbone)),
    frame=slider("frame", 0, 0, len(frames) - 1),
)
noise_explorer

# %% [markdown]
# Drag the noise level. Notice that the queries change little up to t = 100; they blur. At t = 800 the hand is lost: they describe what the network imagines. So we read at low noise: the paper at t = 39, the embedded model at
# t = 20.

# %% [markdown]
# Then change the block. Most have cells of 16 x 16 pixels, too large for fingers. `down_blocks.1` has the sharpest outlines; it runs before the network has seen the whole picture.

# %% tags=["test"]
assert torch.equal(read(BLOCK, T, latents)[0], queries)
at = {t: noise_explorer.set(t=t).shown["queries"] for t in (20, 100, 800)}
near, far = ((at[t] - at[20]).abs().mean() for t in (100, 800))
print(f"mean change from t = 20 to 100: {near:.3f}, to 800: {far:.3f}")
assert near < 0.5 * far
_ = noise_explorer.set(t=20)

# %% [markdown]
# ## What is similar to this point?
#
# Take a cell of the cup in frame 0. Which cell of each later frame is most similar? The vectors have length 1, so the cosine of the angle between two of them is their product.

# %%
row, column = 12, 23
similarity = match @ match[0, row, column]  # [frames, 30, 40]
best = similarity.flatten(1).argmax(1)
print([divmod(int(k), 40) for k in best])
maps = zip(numbers, similarity.numpy(), strict=True)
show_frames({f"frame {n}": m for n, m in maps}, cmap="magma", vmin=0, vmax=1)

# %% [markdown]
# Bright is similar. Now **click** a point in a picture, or use the sliders. The circle is the cell that you asked for. A cross marks the most similar cell of each frame.

# %%
similar = explore.explore_similarity(backbone, frames, numbers)
similar.set(row=row, column=column)

# %% [markdown]
# Notice that the cross stays on the cup, mostly on the *same part*; in frame 24 on the lid. Things to click: the wall (far from the objects all is similar); the wall *beside the cup* (the strip along it lights up: a vector also describes what is two cells away; this makes extra segments along outlines); a fingertip.

# %% tags=["test"]
assert np.allclose(similar.shown["similarity"], similarity, atol=1e-5)
assert similar.shown["best"] == [divmod(int(k), 40) for k in best]
similar.click("0", x=185, y=100)  # pixels of the frame
assert similar.shown["source"] == (0, 100 * 30 // 240, 185 * 40 // 320)
assert similar.shown["source"][1:] == (similar.row.value, similar.column.value)
for k, (y, x) in enumerate(similar.shown["best"]):
    found = cup.masks[numbers[k]][8 * y + 4, 8 * x + 4]  # a cell's centre
    assert cup.names[found] == "cup", f"frame {numbers[k]}: {cup.names[found]}"

# %% [markdown]
# ## The features of the context
#
# Stage 2 takes a little more: the queries of *two* blocks side by side, and the cell's position as two more numbers with a small weight. So far-apart things that look alike are still a little different.

# %%
pair = [read(block, T, latents)[0] for block in settings.features.blocks]
y, x = torch.linspace(-1, 1, 30), torch.linspace(-1, 1, 40)
position = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)
position = settings.features.position * position.expand(
    len(pair[0]), -1, -1, -1
)
tokens = F.normalize(torch.cat(pair, -1), dim=-1)
context = torch.cat([tokens, position], -1)
colours = pca_image(context.numpy(), like=usual)
show_frames({"frame": frames[0], "context features": colours[0]})

# %% tags=["test"]
assert torch.equal(
    context, extract_features(backbone, images, settings).context
)

# %% [markdown]
# The pipeline does exactly this, on frames that are enlarged 1.5 times first: then there are 44 x 60 cells, which follow outlines better.

# %% [markdown]
# Which choices are the paper's? Its code reads the queries after guided steps, with noise of its own for each frame. It takes the mean over blocks, divides by the largest entry, and adds no position. One pass and shared noise are defaults of this package. Only `tiny` has blocks side by side, length 1, position and enlarged frames ([all differences](../docs/differences.md)).

# %% [markdown]
# ## Which block, which noise level?
#
# Let us measure, on a second clip: a hand turns a box over a pale cloth. The cells of frame 0 get their true class. Each cell of the later frames takes the class of its four nearest neighbours among them.

# %%
box = vs.sample_clip("box")
drawn = list(box.masks)[: 2 if FAST else 5]
masks = np.stack([box.masks[n] for n in drawn])
LEVELS = (20, 400) if FAST else (20, 100, 400)
blocks = explore.attention_blocks(backbone)
scores = explore.separation_table(
    backbone, box.frames[drawn], masks, len(box.names), LEVELS
)
columns = [f"t = {t}" for t in LEVELS]
show_table(scores.mean(-1), blocks, columns, "mean IoU over the classes")

# %% [markdown]
# The score is the intersection over union (1 is perfect); a box marks the best of each column. Notice that the blocks whose cells are 8 pixels wide win (`down_blocks.1`, `up_blocks.1`): thin fingers are lost in large cells.

# %% [markdown]
# At t = 20, which we use, the encoder's block is as good. As noise rises it falls behind, while the decoder's blocks hold out: they run after the network has seen the whole picture. VidSeg reads the decoder.

# %%
title = "IoU of each class at t = 20"
show_table(scores[:, 0], blocks, list(box.names.values()), title)

# %% [markdown]
# The hand is hard for every block. That is why we take the mean over *classes*: in a mean over pixels nobody would notice. (Stage 3 compares `attentions.0` although `attentions.1` names the hand better: it finds the true motion more often, as `vidseg_core/models/registry.py` notes.)

# %% tags=["test"]
mean = dict(zip(blocks, scores.mean(-1), strict=True))
ours = settings.features.blocks
best_at_20 = scores.mean(-1)[:, 0].max()
assert min(mean[b][0] for b in ours) > max(0.8, best_at_20 - 0.05)
assert max(mean, key=lambda b: mean[b][-1]) in ours, "noise is not borne best"

# %% [markdown]
# ## With Stable Diffusion
#
# Set `MODEL = "sd21-base"` in the first cell, on a machine with a GPU of 12 GB. Its cells and latents have other sizes, so the numbers 30 and 40 above, and the tests, are for `tiny` alone.

# %% [markdown]
# ## Summary
# - Encode a frame, add a little noise, run the UNet once.
# - A hook on a self-attention block reads its queries: one vector a cell.
# - Low noise, so that they describe this frame and not a guess at it.
# - Similar vectors find the same part of a thing in later frames, without training.

# %% [markdown]
# ## Exercises
# 1. Average the queries over four draws of noise, at t = 20 and 800. What changes?
# 2. Give each frame its own noise. Does the wall stay the same?
# 3. Could the features be displaced by one cell? Think of a test.
# 4. Make the table for the cup. Which block is best?
#
# Answers: [Solutions](solutions.ipynb).
