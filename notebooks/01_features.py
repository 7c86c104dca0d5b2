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
# A diffusion model is shown a noisy picture and has to say what it looked like without the noise. To fill in what the noise hides it must
# know which parts of a picture belong together. VidSeg asks for that knowledge directly: it reads the *queries* of the UNet's
# self-attention while the UNet denoises a frame (Wang et al., CVPR 2025, [arXiv 2405.16947](https://arxiv.org/abs/2405.16947), section 3.1).
#
# **You will** turn the noise up and down, look into every attention block of the UNet, click a point and see what the network holds to be
# similar to it, now and later in the clip.
#
# **You will learn** why the features are read at low noise, why in the middle of the decoder, and what one vector per cell can and
# cannot tell apart.
#
# **You need** nothing but this repository (a GPU is of use only for larger models: see the end). It helps to have seen `00_overview`.
# The embedded model stands in for Stable Diffusion: its features were aligned to those of an image classifier
# (`data/models/tiny/README.md`), so it shows how the method works, not how good Stable Diffusion is.

# %%
import os

import numpy as np

from vidseg_core import Settings, load_backbone, sample_clip
from vidseg_core.workbook import features as explore
from vidseg_core.workbook.figures import show_frames, show_table

FAST = os.environ.get("VIDSEG_FAST") == "1"  # CI sets it: fewer frames, the same steps
MODEL = "tiny"  # or "sd21-base" on a GPU; see the end of this notebook

# %% [markdown]
# ## Five frames with a mask
# A hand tilts a cup. Five frames of the clip come with a mask that was drawn by hand, so that what we see can be checked.

# %%
cup = sample_clip("cup")
numbers = list(cup.masks)[: 2 if FAST else 5]
frames, masks = cup.frames[numbers], np.stack([cup.masks[n] for n in numbers])
backbone = load_backbone(MODEL)
settings = Settings().resolve(backbone.model).features
show_frames({f"frame {n}": frame for n, frame in zip(numbers, frames, strict=True)})

# %% [markdown]
# ## How much noise?
# A frame is encoded to a *latent* $z$, and noise $\epsilon$ of level $\sigma$ is added (written as in Karras et al. 2022, table 1):
#
# $$z_t = z + \sigma_t\,\epsilon, \qquad \sigma_t = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}, \qquad
# \hat z = z_t - \sigma_t\,\epsilon_\theta\!\left(z_t/\sqrt{\sigma_t^2+1},\ t\right)$$
#
# $\bar\alpha_t$ is the share of the picture that is left at the training *timestep* $t$ (Ho et al. 2020), from 0 (clean) to 999 (noise alone).
# $\epsilon_\theta$ is the UNet: it guesses the noise, and $\hat z$ is its estimate of the clean latent.
#
# **Question:** up to which noise level does the UNet still see a cup? And up to which do its *queries*?

# %%
MATCH = settings.match_blocks[0]
some = (1, 20, 400) if FAST else (1, 20, 100, 400, 800)
explore.show_noise_levels(backbone, frames[0], some, MATCH)

# %% [markdown]
# Above: what the UNet gets. In the middle: its estimate. Below: the queries of one block, 96 numbers a cell of 8 x 8 pixels, shown by their three
# main directions (PCA) as red, green and blue. Colours mean nothing by themselves; *equal colours* mean similar queries.
#
# Notice that the queries hardly change up to t = 100: they say *cup* long before you could. At t = 800 they describe what the network
# imagines, no longer this frame. Hence a low level: the paper's code reads at t = 39 (the last of its 25 steps), the embedded
# model at t = 20 (`registry.py`).
#
# ## By hand
# Drag the sliders. A new setting runs the UNet; an ensemble of 4 (the mean over four draws of noise) runs it four times, and is the
# one setting that may take longer than half a second. What was seen is remembered.

# %%
noise = explore.explore_noise(backbone, frames)
noise

# %% [markdown]
# Try three things. **Noise:** at t = 800, raise the ensemble to 4: does the cup come back? **Block:** `mid_block` has cells
# of 16 x 16 pixels: coarse, and broad regions. `down_blocks` come before the network has seen the whole
# picture: they follow light and texture. **Ensemble** at t = 20: hardly a difference, which is why its default is 1.
#
# Sliders can be moved by code too, and what they show can be checked. (That is how this notebook is tested.)

# %%
noise.set(timestep=20, block=MATCH, ensemble=1, frame=0)
low = noise.shown["queries"]
near, far = (noise.set(timestep=t).shown["queries"] for t in (100, 800))
change = [float(np.abs(q - low).mean()) for q in (near, far)]
print(f"mean change of a query from t = 20 to 100: {change[0]:.3f}, to 800: {change[1]:.3f}")
print(f"drawing the last picture took {noise.seconds:.2f} s")
assert low.shape[:2] == noise.shown["colours"].shape[:2] and change[0] < 0.5 * change[1]
assert noise.set(timestep=20).shown["sigma"] < 0.2 and np.array_equal(noise.shown["queries"], low)

# %% [markdown]
# ## What is similar to this point?
# Queries are compared by the cosine of the angle between them, 1 for the same direction. **Question:** take a cell of the cup in frame 0. Which
# cell of a later frame is the most similar? The cup will have tilted by then.

# %%
similar = explore.explore_similarity(backbone, frames, numbers)
similar.still(row=12, column=23)

# %% [markdown]
# The circle is the cell that was asked for, the crosses are the most similar cell of each frame. Notice that nobody told the network where
# the cup went, and that similarity is bright on the *same part* of the cup, not on all of it.
#
# **Click** a point in any picture below, or use the sliders (they do the same, and work wherever notebooks do). A new point is instant. A new block or
# noise level reads the queries of all these frames, a pass for each, which takes longer than half a second the first time.

# %%
similar

# %% [markdown]
# Things to click: the wall (all of it is similar); the wall *close to the cup* (a ring lights up around the cup: these queries
# know what is two cells away, which will cost us some segments later); a fingertip. Then change the block, and click again.

# %%
h, w = similar.shown["similarity"].shape[1:]
similar.click("0", x=185, y=100)  # pixels of the frame
assert similar.shown["source"] == (0, 100 * h // 240, 185 * w // 320)
assert similar.shown["source"] == (0, similar.row.value, similar.column.value)
for k, (row, column) in enumerate(similar.shown["best"]):
    found = masks[k, (2 * row + 1) * 120 // h, (2 * column + 1) * 160 // w]
    assert cup.names[found] == "cup", f"frame {numbers[k]}: on the {cup.names[found]}"
assert similar.shown["similarity"].max() <= 1 + 1e-5

# %% [markdown]
# ## Are the features where the things are?
# **Question:** a feature map could be displaced against the frame by a cell, and all pictures above would look fine. How would you notice? Between
# two neighbouring cells the queries change most where the mask has a border. So we shift the masks by one cell in each direction and
# correlate: the table should have its largest value in the middle.

# %%
here = explore.queries(backbone, frames, MATCH, settings.timestep)
table = explore.alignment(here, masks)
dy, dx = ([f"{axis} = {step}" for step in ("-1", "0", "+1")] for axis in ("dy", "dx"))
show_table(table, dy, dx, "correlation with the shifted masks", best="all")

# %%
assert table.argmax() == 4, "the features are displaced against the frames"

# %% [markdown]
# ## Which block, which noise level?
# A table settles it. We take another clip, whose things are harder to tell apart by colour: a hand turns a printed box over a pale cloth. The
# cells of frame 0 carry their true class; each cell of the later frames takes the class of its four nearest neighbours
# among them (k-NN, the same that the next notebook uses). The score is the intersection over union (IoU): of the pixels
# that are box in the mask or in ours, the share that is box in both; 1 is perfect. **Question:** which block would you choose?

# %%
box = sample_clip("box")
drawn = list(box.masks)[: 2 if FAST else 5]
box_masks = np.stack([box.masks[n] for n in drawn])
TIMESTEPS = (20, 400) if FAST else (20, 100, 400)
blocks = explore.attention_blocks(backbone)
scores = explore.separation_table(backbone, box.frames[drawn], box_masks, len(box.names), TIMESTEPS)
show_table(scores.mean(-1), blocks, [f"t = {t}" for t in TIMESTEPS], "mean IoU over the classes")

# %%
show_table(scores[:, 0], blocks, list(box.names.values()), "IoU of each class at t = 20")

# %% [markdown]
# The largest value of each column is framed. Notice three things. The blocks whose cells are 8 pixels wide (`down_blocks.1`, `up_blocks.1`)
# win over those with 16, since thin fingers are lost in large cells. Of these, the encoder's is as good or better without noise, and falls behind as noise rises, while
# the decoder's hold out: they come after the network has seen the whole picture. And the hand is hard for everyone: a mean
# over classes, not over pixels, is what shows a difference.

# %%
mean = dict(zip(blocks, scores.mean(-1), strict=True))
assert min(mean[b][0] for b in settings.blocks) > 0.8, "box, hand and cloth are not told apart"
assert min(mean[b][0] for b in settings.blocks) > scores.mean(-1)[:, 0].max() - 0.05, "a block with small cells is far better"
assert max(mean, key=lambda b: mean[b][-1]) in settings.blocks, "the decoder does not bear noise best"

# %% [markdown]
# ## The hyperparameters of stage 1
# `FeatureSettings` has them, each with its reason. "Paper" is the authors' code, [VidSeg_diffusion](https://github.com/QianWangX/VidSeg_diffusion).
#
# | setting | `tiny` | paper (Stable Diffusion 2.1) | what it does |
# |---|---|---|---|
# | `blocks` | the two of `up_blocks.1` | `up_blocks.2.attentions.0` to `2` | whose queries feed the context model |
# | `match_blocks` | the first of them | the middle one | whose queries the correspondences compare |
# | `timestep` | 20 | 39 | noise level |
# | `combine` | side by side | mean | how several blocks become one vector |
# | `normalise` | by the length | by the largest magnitude | makes bright and dark cells comparable |
# | `noise` | one for all frames | one for each | shared noise: equal pixels give equal queries |
# | `ensemble` | 1 | 1 | draws of noise that are averaged |
# | `scales` | 1.5 | 1 | times the working size at which the pipeline sees a frame: cells are finer (in this notebook it is 1) |
# | `shifts` | 1 | 1 | passes over displaced frames along each axis, interleaved: another way to finer cells |
# | `schedule` | one unguided pass | two guided steps before it | "reference" runs them too |
# | `position` | 0.15 | 0 | weight of (y, x) as two more channels: keeps far things apart |

# %%
print(settings)
own = settings.timestep, settings.ensemble, settings.noise, settings.normalise
assert own == (20, 1, "shared", "l2") or MODEL != "tiny"

# %% [markdown]
# ## On a GPU
# All notebooks run with Stable Diffusion instead of the embedded model. Set `MODEL = "sd21-base"` in the first cell: it is the model
# behind the paper's Stable Diffusion scores, and 512 x 512 pixels fit in 12 GB. (`python -m vidseg_core models` lists the others.)
#
# - **Your own machine:** install PyTorch with CUDA first (pytorch.org names the command), then `make lab`. The device is found by itself: CUDA, then
#   Apple's MPS, then the CPU.
# - **Google Colab:** choose Runtime, Change runtime type, a T4 GPU; then run these two lines in a cell, with the address of the repository that
#   you read this in, restart the session, and open the notebook:
#
#       !git clone REPOSITORY vidseg-workbook
#       %pip install ./vidseg-workbook
#
# The asserts about `tiny`'s scores are about `tiny`; with another model, read the tables instead.

# %%
print(
    f"this session: {MODEL} on {backbone.device}, {sum(p.numel() for p in backbone.unet.parameters()) / 1e6:.0f} million parameters"
)

# %% [markdown]
# ## Summary
# - A frame is noised slightly and denoised once; the queries of the decoder's self-attention, one vector a cell, are its features.
# - Low noise: the queries should describe this frame, not a guess at it.
# - The finest attention blocks separate best, and of these the decoder's bear noise; a ring of two cells around things is blurred.
# - Similar queries find the same part of a thing in later frames, without training. Notebook 3 builds tracks from this.
#
# ## Exercises
# 1. Repeat the table for the cup at t = 20 (`frames` and `masks` from above). Which block is best there, and what is different about this clip?
# 2. `explore.queries(..., noise="independent")` draws new noise for each frame. Are the queries of the wall, which does not move, then still the same
#    from frame to frame? Measure with `explore.steadiness(tokens, masks, 0)`.
# 3. With `similar`, find a cell of the hand whose best match in frame 24 is *not* on the hand. What do the wrong cells have in common?
#
# <details><summary>Answers</summary>
#
# 1. `down_blocks.1`, with `up_blocks.1` close behind: wall, cup and hand differ in plain colour, and the encoder sees colour best. The next cell checks it.
# 2. No: the next cell prints both numbers.
# 3. They lie on an outline. A query there describes both sides, and the wall beside the hand has changed to cup, or the other way round.
#
# </details>

# %%
of_cup = explore.separation_table(backbone, frames, masks, len(cup.names), (20,))[:, 0].mean(-1)
print(dict(zip(blocks, of_cup.round(2).tolist(), strict=True)))
assert blocks[of_cup.argmax()] == "down_blocks.1.attentions.0" or MODEL != "tiny"

# %%
steady = {}
for kind in ("shared", "independent"):
    tokens = explore.queries(backbone, frames, MATCH, settings.timestep, noise=kind)
    steady[kind] = explore.steadiness(tokens, masks, 0)
print({n: f"{value:.3f}" for n, value in steady.items()})
assert steady["shared"] > steady["independent"]
