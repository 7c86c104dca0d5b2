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
# # 7 Why it is fast
# The paper's stage 4 runs the UNet for every mask, for both signs, through three steps,
# and doubles each by guidance: some 240 passes for a frame with 20 masks. We need 5 to
# 7, and of each only the end. This chapter counts operations, so that its numbers are
# the same on every machine.

# %% tags=["hide-input"]
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import networkx
import numpy as np
import torch
import vidseg_core as vs
from scipy.ndimage import maximum_filter
from vidseg_core.common import enlarge
from vidseg_core.context import Votes
from vidseg_core.io.overlay import blend
from vidseg_core.modulation import colour, plan
from vidseg_core.workbook import fast
from vidseg_core.workbook.fast import operations
from vidseg_core.workbook.figures import show_table
from vidseg_core.workbook.maps import show_maps
from vidseg_core.workbook.upsampling import near_borders

# %%
FAST = os.environ.get("VIDSEG_FAST") == "1"  # CI: fewer masks, smaller frames
cup = vs.sample_clip("cup").frames[: 1 if FAST else 5]
backbone = vs.load_backbone("tiny")
latent = backbone.encode(backbone.images(cup[:1], (240, 320)))
layer = vs.Settings().resolve(backbone.model).upsample.block
parts = fast.operations_of_parts(backbone, latent, 100, layer)
fast.show_replay(parts, masks=20)

# %% [markdown]
# One pass of the UNet from left to right; a bar's width is its share of the
# operations. λ is added at the line, inside the block `up.1` (`up_blocks.1`).
# **Question:** twenty masks are twenty passes. Which bars differ from one mask to the
# next?

# %% [markdown]
# ## Replay
# Only the dark ones: all that runs *before* λ is added is the same for every mask. So
# we run it once and keep what each block returned.

# %%
unet, early = backbone.unet, ("conv_in", "mid_block", "up_blocks.0")
early += tuple(f"down_blocks.{n}" for n in range(len(unet.down_blocks)))
kept, hooks = {}, []
for name in early:

    def keep(module, args, output, name=name):
        kept[name] = output

    block = unet.get_submodule(name)
    hooks.append(block.register_forward_hook(keep))
whole = backbone.denoise(latent, 100)
for hook in hooks:
    hook.remove()
print(*kept, sep=", ")

# %% [markdown]
# In the next pass these blocks return what was kept, whatever they are given. The
# package's `record` and `replay` do the same, up to the very layer inside `up.1`.
# `operations` counts multiplications and additions.


# %%
counted = {"a whole pass": operations(lambda: backbone.denoise(latent, 100))}
for name in early:

    def constant(*args, name=name, **more):
        return kept[name]

    unet.get_submodule(name).forward = constant
again = backbone.denoise(latent, 100)
counted["replayed blocks"] = operations(lambda: backbone.denoise(latent, 100))
for name in early:
    del unet.get_submodule(name).forward  # the class's own again

# %% [markdown]
# The package goes further: within the modulated block it computes only what lies
# behind the layer.

# %%
with backbone.record(layer) as record:
    backbone.denoise(latent, 100)
with backbone.replay(record, torch.tensor([0])):
    replayed = backbone.denoise(latent, 100)
    less = operations(lambda: backbone.denoise(latent, 100))
counted["replayed to the layer"] = less
times = [counted["a whole pass"] / count for count in counted.values()]
columns = [f"{way}\n{count:.1f} billion" for way, count in counted.items()]
title = "times fewer operations for a mask"
show_table(np.array([times]), ["replay"], columns, title, "row")

# %% [markdown]
# Nothing is lost by it: the replayed passes give the same numbers, to the last bit.

# %% tags=["test"]
assert torch.equal(again, whole) and torch.equal(replayed, whole)
assert less < counted["replayed blocks"] < 0.6 * counted["a whole pass"]
assert torch.equal(backbone.denoise(latent, 100), whole), "restored"
before = [part.before for part in parts]
assert before == sorted(before, reverse=True)
total = sum(part.operations for part in parts)
assert abs(total - counted["a whole pass"]) < 1e-6

# %% [markdown]
# ## Masks that share a pass
# Twenty clusters of the cup clip, label-free. A mask answers mostly in its own cells,
# so masks that lie apart can be shifted *together*: each pixel's response then belongs
# to the nearest of them. **Question:** how many passes do 20 masks need, if
# neighbours must not share one?

# %%
k = 8 if FAST else 20
clusters = vs.ContextSettings(num_clusters=k, num_segments=None)
one_scale = vs.FeatureSettings(scales=(1.0,))
seen_as = (96, 128) if FAST else None  # None: the model's own size
settings = vs.Settings(
    features=one_scale, context=clusters, working_size=seen_as
)
vidseg = vs.VidSeg(backbone, settings)
window = next(vidseg.cells(cup))
frame, size = cup[0], cup.shape[1:3]
cells = window.refined[0]
painted = blend(frame, enlarge(cells, size))
show_maps({"frame": frame, f"{len(np.unique(cells))} masks": painted}, size)

# %% [markdown]
# This is the colouring of a map: countries that touch get different colours, and a few
# colours are enough for any map. First, which masks touch? We grow each by a cell on
# every side and look which others it then covers.

# %%
names = np.unique(cells)
masks = (cells == names[:, None, None]).astype(int)
grown = maximum_filter(masks, size=(1, 3, 3))
touch = np.einsum("kyx,lyx->kl", grown, masks) > 0
print(f"each mask touches {touch.sum(1).mean() - 1:.1f} others on average")

# %% [markdown]
# Then we colour the masks one by one, always the one whose neighbours already have
# most colours, with the first colour that is free (DSATUR).

# %%
colours = {}
while len(colours) < len(names):
    taken = {}
    for n in set(range(len(names))) - set(colours):
        taken[n] = {colours[m] for m in np.nonzero(touch[n])[0] if m in colours}
    most = max(taken, key=lambda n: (len(taken[n]), touch[n].sum()))
    colours[most] = min(set(range(len(names))) - taken[most])

passes = np.array([colours[n] for n in range(len(names))])
count = passes.max() + 1
of_cell = passes[np.searchsorted(names, cells)]
pictures = {f"{count} passes": of_cell.astype(float)}
pictures |= {f"pass {n}": (of_cell == n).astype(float) for n in range(3)}
show_maps(pictures, size)

# %% tags=["test"]
package = colour(torch.from_numpy(cells[None]), 1)
package = np.array([package[n] for n in names.tolist()])
for found in (passes, package):
    same = found[:, None] == found
    assert not (same & touch & ~np.eye(len(names), dtype=bool)).any()
# masks that are equally urgent may be coloured in another order
assert abs(package.max() - passes.max()) <= 1
graph = networkx.from_numpy_array(touch & ~np.eye(len(names), dtype=bool))
strategy = "saturation_largest_first"
library = networkx.greedy_color(graph, strategy=strategy)
assert max(library.values()) == package.max()
group = plan(torch.from_numpy(cells[None]), 1, coupled=False)
assert len(group) == package.max() + 1
own_cells = np.broadcast_to(cells, group.masks.shape)[group.masks.numpy()]
assert (group.owners[group.masks].numpy() == own_cells).all()

# %% [markdown]
# ## What does sharing change?
# The response of a pass near the middle between two of its masks is a mixture of both.
# **Question:** how far apart must masks be, that labels are as with each mask alone?
# Try *0 cells*, where all share one pass.

# %%
distances = (0, 1, None) if FAST else (0, 1, 2, 3, 4, 6, 8, None)
sure = Votes.certain(torch.from_numpy(cells[None]).long())
runs = fast.colourings(vidseg, frame, sure, distances)
colouring = fast.explore_colouring(frame, cells, runs)
colouring

# %% [markdown]
# One cell is enough: labels are as with each mask alone but for a few pixels, for a
# quarter of the passes. And the number of passes hardly grows with the number of
# masks, as maps need few colours.

# %% tags=["test"]
seen = {}
for name in colouring.separation.options:
    seen[name] = dict(colouring.set(separation=name).shown)
_ = colouring.set(separation="1 cell")
assert seen["0 cells"]["passes"] == 1
assert seen["each alone"]["passes"] == len(names)
assert seen["1 cell"]["passes"] == len(group) < 0.8 * len(names)
assert seen["1 cell"]["agreement"] > 0.97
assert seen["0 cells"]["agreement"] < seen["1 cell"]["agreement"]

# %% [markdown]
# ## From the paper's schedule to ours
# `strategy="guided"` is the paper's way: noise at step 22 of 25, then three steps,
# guided, for each mask and both signs. `"direct"` is one unguided step. Below each row
# changes one thing more. **Question:** which saves most?

# %%
direct = vs.UpsampleSettings(difference="two-sided", separation=None)
ways = {"the paper's schedule": replace(direct, strategy="guided")}
ways["one step, with replay"] = direct
ways["only +λ"] = replace(direct, difference="one-sided")
ways["shared passes"] = vs.UpsampleSettings()

# %%
spent = {}
for name, way in ways.items():
    run = vs.VidSeg(backbone, replace(settings, upsample=way)).enlarge
    spent[name] = operations(lambda run=run: run(frame[None], sure))
most = spent["the paper's schedule"]
numbers = np.array([[most / count] for count in spent.values()])
rows = [f"{way}: {count:,.0f} billion" for way, count in spent.items()]
title = f"operations of stage 4 for {len(names)} masks"
show_table(numbers, rows, ["times fewer"], title)

# %% tags=["test"]
paper, one_step, plus, shared = spent.values()
assert paper > 8 * one_step and one_step > 1.3 * plus > 1.5 * shared
assert paper > (15 if FAST else 40) * shared

# %% [markdown]
# For Stable Diffusion 2.1 at its true size `python benchmarks/bench.py counted` counts
# the same ladder: 42 times fewer operations of the UNet for 20 masks.
#
# ## And what is lost?
# The generated clip knows the truth. **Question:** does the paper's schedule find
# borders better?

# %%
clip = vs.generated_clip(5)
named = vs.VidSeg(backbone, replace(settings, context=vs.ContextSettings()))
window = next(named.cells(clip.frames, first_mask=clip.labels[0]))
shares = torch.from_numpy(window.votes[1][4:])
votes = Votes(shares, torch.arange(shares.shape[-1]))
truth = clip.labels[4]
near = near_borders(truth, 8)

# %%
ways = {"guided": ways["the paper's schedule"]}
ways["default"] = vs.UpsampleSettings()
ways["paper's code"] = vs.reference_settings("tiny").upsample
row = []
for way in ways.values():
    stage = vs.VidSeg(backbone, replace(settings, upsample=way))
    labels = stage.enlarge(clip.frames[4:5], votes)[0]
    row.append(100 * (labels == truth)[near].mean())
title = "% right within 8 pixels of a border"
show_table(np.array([row]), ["one frame"], [*ways], title, "row")

# %% [markdown]
# "guided" has the paper's passes and our scores; "paper's code" its scores too (8-bit
# differences that wrap around, JPEG). With the embedded model the schedule buys little.
# For Stable Diffusion the registry still chooses it, until both have been measured
# with real weights.

# %% tags=["test"]
guided, default, reference = row
assert abs(guided - default) < 3 and default > reference

# %% [markdown]
# ## More processes, more machines
# Windows of a clip depend on each other only through stages 2 and 3, which are quick.
# The UNet passes, nearly all of the work, need nothing of other windows: any worker
# can do them. **Question:** may the labels depend on how many workers there are?

# %%
small = replace(named.settings, window=4, working_size=(96, 128))
alone = vs.VidSeg(backbone, small)(clip.frames, clip.labels[0])
with ThreadPoolExecutor(2) as executor:
    crew = vs.VidSeg(backbone, small, executor=executor)
    spread = crew(clip.frames, clip.labels[0])
print("other pixels:", (alone.labels != spread.labels).sum())

# %% tags=["test"]
assert alone.labels.tobytes() == spread.labels.tobytes()

# %% [markdown]
# No: not a byte. Threads, the processes of one machine and those of a cluster go
# through this one door, an `Executor`. How to start them, and what happens if one
# stops: [docs/cluster.md](../docs/cluster.md).

# %% [markdown]
# ## Summary
# - What runs before the modulated layer is the same for all masks: run once, replayed.
# - Masks more than a cell apart share a pass: 20 masks need 5 to 7.
# - One unguided step instead of three guided ones, and one sign instead of two.
# - Workers share stages 1 and 4.

# %% [markdown]
# ## Exercises
# Answers: [Solutions](solutions.ipynb).
# 1. Modulate `up_blocks.1.attentions.1.transformer_blocks.0.attn2`, a later layer. What
#    share of a pass is left for each mask?
# 2. How many passes do 10, 20 and 40 clusters need?
# 3. Which of the paper's three steps is modulated, and which part of it could be
#    replayed?
