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
# # 3 Correspondences: let frames vote
#
# The context model labels each cell alone. A cell that is in doubt may be *cup* in one frame and *hand* in the next. But we can follow a cell
# through the window, since similar queries find the same part of a thing again (`01_features`), and ask all the cells on its way what they are.
# They vote, and the winner is written back (Wang et al., CVPR 2025, section 3.3; the matching follows DIFT, Tang et al. 2023).
#
# There are two votes here. Along *tracks*, as in the paper: `RefineSettings(method="tracks")`, or `"reference"` for the paper's code as it is. And among *neighbours*: the correspondences of a cell
# in the frames near by, weighed by similarity. That is our default, and the last part of this notebook says why.
#
# **You will** follow cells by clicking on them, compare their tracks with the exact answer, disturb labels and let both votes repair them,
# and see where tracks fail.
#
# **You will learn** what a hop, a track and a vote are, what the jump threshold, the majority and the temperature do, and why
# a vote need not follow motion exactly to be of use.
#
# **You need** to know what the context model gives (`02_context_model`).

# %%
import os

import numpy as np

from vidseg_core import RefineSettings, Settings, generated_clip, load_backbone, reference_settings
from vidseg_core.workbook import correspondence as explore
from vidseg_core.workbook import neighbours
from vidseg_core.workbook.context import named_cells, read_features
from vidseg_core.workbook.figures import show_table
from vidseg_core.workbook.motion import Window, faster

FAST = os.environ.get("VIDSEG_FAST") == "1"  # CI sets it: fewer frames, the same steps
MODEL = "tiny"  # or "sd21-base" on a GPU; see the end of 01_features

# %% [markdown]
# ## A clip with the exact answer
# A camera pans over a photograph; a leaf and a blossom move, and the blossom passes in front of the leaf. As the clip is generated we know where each
# pixel goes, and whether it is hidden. We take every third frame, so that things move by more than a cell between two frames. Stages 1 and 2
# run as in the notebooks before: the mask of frame 0 gives its cells their classes.

# %%
FRAMES = 10 if FAST else 14
clip = faster(generated_clip(3 * FRAMES - 2), 3)
backbone = load_backbone(MODEL)
features = read_features(backbone, clip.frames)
coarse = named_cells(features, clip.labels[0], Settings())
window = Window(clip, features.match, coarse)
print(f"before any vote, {(coarse == window.truth).mean():.1%} of the cells have their true class")

# %% [markdown]
# ## A hop
# From frame $q$ to the next, a cell $i$ goes to the cell whose query points in the most similar direction:
#
# $$\mathrm{next}_q(i) = \arg\max_j\ \cos(f_q^{\,i}, f_{q+1}^{\,j}) \qquad\text{(default)}$$
#
# $$\mathrm{next}_q(i) = \arg\max_j\ \tfrac{q}{q+1}\cos(f_q^{\,i}, f_{q+1}^{\,j}) + \tfrac{1}{q+1}\cos(f_q^{\,i}, f_0^{\,j})
# \qquad\text{(the paper's code)}$$
#
# **Question:** what does the second rule give for the first hop, $q = 0$? (The first term vanishes, and nothing is as similar to $f_0^{\,i}$ as itself:
# the cell stays where it is.) How many hops are right?

# %%
along, paper = RefineSettings(method="tracks"), reference_settings(MODEL).refine
hops = {"ours": explore.judge_hops(window), "paper's code": explore.judge_hops(window, anchor=True, subcell=False)}
for name, judged in hops.items():
    print(f"{name}: {judged.within:.1%} within a cell of the truth, {judged.pace:.0%} of its pace")
assert hops["ours"].within > 0.8 and hops["ours"].pace > 0.6

# %% [markdown]
# Notice the *pace*: how much of the true motion the hops make. It matters when things move slowly. In the clip at its full rate, nothing moves half a
# cell between two frames, and the most similar *cell* is then nearly always the same cell: no motion, however long it lasts. So our tracks
# go to the top of the parabola through the best cell and its neighbours (`find_moves(..., subcell=True)`).

# %%
slow = generated_clip(6)
slow_features = read_features(backbone, slow.frames)
named = named_cells(slow_features, slow.labels[0], Settings())
slowly = Window(slow, slow_features.match, named)
pace = {subcell: explore.judge_hops(slowly, subcell=subcell).pace for subcell in (False, True)}
print(f"of the true pace: {pace[False]:.0%} in whole cells, {pace[True]:.0%} between cells")
assert pace[True] > 0.25 > pace[False]

# %% [markdown]
# ## Tracks
# Hops are chained to tracks. Each begins in a cell of frame 0, or later where no track passes, so that what comes into view has tracks too. (In the
# paper's code tracks begin in frame 0 alone.) **Question:** where will lines be smooth, and where will they tremble?

# %%
refined = window.refine(along)
explore.draw_tracks(window, along, (0, FRAMES // 2, FRAMES - 1))

# %% [markdown]
# Each line has the colour of the class that won its vote. On the building the tracks follow the camera. On the sky and the water they tremble: there, many
# cells look alike, and which of them is the *most* similar is chance. For the vote that does no harm: sky is sky. And of leaf and blossom hardly a
# track is left: they move by nearly two cells from frame to frame here, and a track may jump by one. More on that below.
#
# ## Follow a cell
# **Click** a point in any of the frames (or use the sliders). The circle is the track, the plus is where that point really is; no plus means that it is
# hidden. Below: the label of each cell on the way, and the count.

# %%
follow = explore.explore_track(window, along)
follow.still(row=14, column=10)

# %%
follow

# %% [markdown]
# Things to try: the middle of the blossom; the leaf, which the blossom hides later: where does the track go? The sky. Then set **tracks** to
# *the paper's code*: the first hop stays in place, always.

# %%
blossom = np.argwhere(clip.labels[0] == 2).mean(0)
follow.click("0", x=blossom[1], y=blossom[0])
print(f"winner: {clip.names[follow.shown['winner']]} with {follow.shown['share']:.0%} of the votes")
assert clip.names[follow.shown["winner"]] == "blossom" and follow.shown["share"] > 0.8
assert np.abs(follow.shown["cells"][1] - follow.shown["cells"][0]).max() <= along.max_jump
follow.set(method="reference")
print("the paper's code:", follow.shown["cells"].tolist())
assert (follow.shown["cells"][1] == follow.shown["cells"][0]).all(), "the first hop is the identity"
_ = follow.set(method="tracks")

# %% [markdown]
# ## The vote along tracks
# Along a track the most common label wins, if it has the *majority* asked for: 70 % by default (the paper: any). The threshold is there for
# tracks that slip over an outline: they have seen both sides, and should not carry one over to the other.
#
# The embedded model makes few mistakes on this clip, so we add some: in every frame, 15 % of the cells get a wrong label at random. **Question:** how many of
# them can a vote repair?

# %%
disturbed = Window(clip, features.match, neighbours.with_noise(coarse, 0.15))
vote = neighbours.explore_vote(disturbed, along)
vote.still()

# %% [markdown]
# A plus marks a cell that the vote repaired, a cross one that it spoiled. The last panel is the confidence: the winner's share, low where a track saw
# several labels. Now by hand. The slider to look at is **max. jump**: a hop of more cells than that ends its track. (All but **frame** run the whole
# stage again; on a busy machine that may take longer than half a second. What was seen is remembered.)

# %%
vote

# %% [markdown]
# - **max. jump 0**: every hop that moves is forbidden, and the tracks end at once: nothing is repaired. **1** (the paper's value) keeps the ground and loses
#   the blossom, which moves by up to two cells here. **2** keeps both. Larger values let wrong matches through.
# - **majority 0** repairs more of *this* disturbance, which is pure chance; on real mistakes, which sit at outlines, it spoils more (below).
# - **tracks "the paper's code"**: tracks begin in frame 0 only, and one that jumps too far is dropped as a whole: fewer votes. The two sliders then
#   change nothing.

# %%
results = [vote.set(max_jump=j, frame=FRAMES - 1).shown for j in range(3)]
after = [r["after"] for r in results]
print(f"right before: {results[0]['before']:.1%}")
print("after, for a jump of 0, 1, 2:", [f"{share:.1%}" for share in after])
assert after[0] < results[0]["before"] + 0.01 and after[2] > after[1] > results[0]["before"] + 0.04
assert results[2]["confidence"].min() > 0 and results[2]["confidence"].max() == 1
assert set(np.unique(results[2]["labels"])) <= set(np.unique(coarse))
_ = vote.set(max_jump=1)

# %% [markdown]
# ## Tracks, ours and the paper's, on real mistakes and on chance
# A row for the labels as the context model gave them and one for the disturbed ones; the share of right cells before the vote, after our tracks, after
# the paper's code (frame 0 in the score, whole cells, no absolute value in the jump filter, any majority), and after our tracks without the majority.

# %%
kinds = {"our tracks": along, "paper's code": paper, "majority 0": RefineSettings(method="tracks", majority=0.0)}
rows = {"as they are": window, "disturbed": disturbed}
table = neighbours.compare_votes(rows, kinds)
show_table(100 * table, list(rows), ["before", *kinds], "% of cells that are right", best="row")

# %% [markdown]
# Notice that with real mistakes there is nothing to win here: the embedded model's errors sit at outlines and are the same in every frame, so that the vote is unanimous and
# wrong, and a track that slips over an outline adds one. A vote repairs what *changes*. That is worth knowing before one expects wonders of this stage.

# %%
assert table[0, 1] >= table[0, 0] - 0.006 and table[0, 1] >= table[0, 2] - 0.002
assert table[1, 1] > table[1, 0] + 0.04
assert (refined.labels.numpy() == window.truth).mean() > 0.94

# %% [markdown]
# ## Where tracks fail, and why
# The exact answer again: of the tracks that start in frame 0 and whose point is still to be seen, how many are within a cell of it after so many hops?

# %%
shares = explore.failures(window, window.tracks(RefineSettings(method="tracks", max_jump=2)))
explore.show_failures(shares)

# %% [markdown]
# - **Near an outline** tracks are lost first: a cell there sees both sides, and when the ground moves on, half of what it saw has changed.
# - **The ground** moves by a fraction of a cell, and each hop makes a part of it only: tracks lag behind, a little more at each hop.
# - **Inside a thing** they hold out longest, until it is hidden: what the blossom covers has no right answer, and its track goes to
#   whatever looks similar.
#
# And still the vote works: a track that lags behind on the ground is still on the ground. What counts is the *label* under it, not the place.
# But a track asks one cell a frame, its errors add up from hop to hop, and it begins and ends with the window.

# %%
first = {name: share[0] for name, share in shares.items()}
assert first["inside a thing"] > first["near an outline"] and first["ground, far from things"] > 0.8
assert np.nanmean(shares["near an outline"][-3:]) < 0.5

# %% [markdown]
# ## Let the neighbours vote
# So our default does not follow anything. In the two frames before a cell and the two after it (`reach` 2) it looks for the most similar cell near
# the same place, among 5 x 5 (`radius` 2): the cell's *correspondence* there. These four and the cell itself vote. The more similar a correspondence, the more
# its votes count (as in label propagation, Jabri et al. 2020):
#
# $$\mathrm{votes}_i(l) = \mathrm{share}_i(l) + \sum_{t} \mathrm{share}_{j_t}(l)\, \exp\frac{\cos(f_i, f_{j_t}) - 1}{T},
# \qquad j_t = \operatorname*{arg\,max}_{j\,\in\,N_t(i)} \cos(f_i, f_j)$$
#
# with the *temperature* $T$ = 0.5. What a cell hands on is its *share* of votes for each label, as stage 2 left them; here all of them are for one label.
# **Question:** which of the disturbed cells will this repair that tracks did not?

# %%
ours = RefineSettings()
near = neighbours.explore_neighbours(disturbed, ours)
near.still()

# %% [markdown]
# Notice that hardly a random mistake is left, on leaf and blossom too: a thing that moves by two cells overlaps with itself, and nobody had to guess where it
# went. What remains are outlines.
#
# **By hand:** *temperature* 0.02: only what is nearly equal counts, most of all the cell itself, and mistakes stay. 1: all count alike, and corners and
# thin parts are outvoted. *reach* 0: nobody else is asked; *radius* 0: only the same place in the frames around. (Larger radius and reach ask more cells,
# and may take longer than half a second; what was seen is remembered.)

# %%
near

# %%
own = near.shown
print(
    f"right before {own['before']:.1%}, after {own['after']:.1%}; labels kept: {own['stability'][0]:.1%}, {own['stability'][1]:.1%}"
)
assert own["after"] > own["before"] + 0.08 and own["stability"][1] > own["stability"][0] + 0.15
assert set(np.unique(own["labels"])) <= set(np.unique(coarse)) and 0 < own["confidence"].min() < own["confidence"].max() <= 1
cold, still = near.set(temperature=0.02).shown["after"], near.set(temperature=0.5, reach=0).shown["after"]
print(f"temperature 0.02: {cold:.1%}, reach 0: {still:.1%}")
assert own["before"] <= cold < own["after"] - 0.05 and still == own["before"]
_ = near.set(reach=2)

# %% [markdown]
# ## Both votes, on real mistakes and on chance
# Two tables: the share of right cells, and the *label stability*, the share of cells that keep their label from one frame to the next along the true motion
# (flicker is the rest). **Question:** can a vote make labels steadier without making them righter?

# %%
both = {"neighbours": ours, "tracks": along, "paper's code": paper}
votes = neighbours.compare_votes(rows, both)
show_table(100 * votes, list(rows), ["before", *both], "% of cells that are right", best="row")

# %%
steady = neighbours.compare_stability(rows, both)
show_table(100 * steady, list(rows), ["before", *both], "% of cells that keep their label", best="row")

# %% [markdown]
# On real labels the neighbours make them steadier, and keep them as right as they were; tracks make them hardly steadier, and lose a little. Where chance
# has a hand in it, the neighbours repair far more. Real mistakes are not chance, and real things are thin: there, votes over space blur more than they mend. So
# the default has radius 0: it asks the same place in five frames (notebook 05 has the numbers).

# %%
assert votes[0, 1] > votes[0, 0] - 0.003 and votes[1, 1] > votes[1, 2:].max() + 0.02
assert steady[0, 1] > steady[0, 0] - 0.003 and steady[1, 1] > steady[1, 2:].max() + 0.05
shifted = np.roll(window.refine(ours).labels.numpy(), 1, axis=2)
assert (window.refine(ours).labels.numpy() == window.truth).mean() > (shifted == window.truth).mean() + 0.01

# %% [markdown]
# ## Across the seam of two windows
# A clip is read in windows. Where one ends, tracks end. The neighbours' vote goes on: the scene keeps the last frames of each window (`Scene.overlap`), and they vote
# on the first frames of the next. Here the clip is refined as two windows, with more of the labels disturbed (30 %). **Question:** which frames can gain?

# %%
worse = Window(clip, features.match, neighbours.with_noise(coarse, 0.3))
seams = {tail: neighbours.cut_in_two(worse, ours, tail) for tail in (False, True)}
for tail, (stable, good) in seams.items():
    print(
        f"{'with' if tail else 'without'} the last frames: {stable:.1%} keep their label over the seam, {good:.1%} right after it"
    )
assert seams[True][0] > seams[False][0] + 0.003 and seams[True][1] > seams[False][1] + 0.003

# %% [markdown]
# ## The hyperparameters of stage 3
# `RefineSettings` has them, each with its reason. "Paper" is the authors' code, [VidSeg_diffusion](https://github.com/QianWangX/VidSeg_diffusion).
#
# | setting | default | paper | what it does |
# |---|---|---|---|
# | `method` | neighbours | reference | who votes: neighbours, our "tracks", or those of the paper's code; "none" leaves this stage out |
# | `radius` | 2 | - | neighbours: cells to each side of its place where a correspondence is sought |
# | `reach` | 2 | - | neighbours: frames to each side, over seams too |
# | `temperature` | 0.5 | - | neighbours: the lower, the more similar a cell must be to count |
# | `max_jump` | 1 | 1 | "tracks": cells a track may move in one hop, along each axis |
# | `majority` | 0.7 | 0 | "tracks": share of the votes that overrules a cell |
#
# What else differs between our tracks (`tracks.py`) and those of the paper's code (`paper.py`):
#
# | | "tracks" | "reference" |
# |---|---|---|
# | a hop goes to the cell most similar to | the last one | the last one and, with weight 1/(q+1), the cells of frame 0 |
# | slow motion | counts (between cells) | is rounded away (whole cells) |
# | a jump of more than a cell | ends the track | drops the whole track, unless it goes up or to the left: there the absolute value was forgotten |
# | tracks begin | wherever no track passes | in frame 0 |
# | of two tracks on one cell | the more similar one writes | the last one writes |
#
# To look at the tracks of a run that you made: `vidseg_core.tracks.find_tracks(result.features.match, RefineSettings())`.

# %%
assert (ours.method, ours.radius, ours.reach, ours.temperature) == ("neighbours", 2, 2, 0.5)
assert (ours.max_jump, ours.majority) == (1, 0.7) and paper.method == "reference"

# %% [markdown]
# ## Summary
# - A hop goes to the most similar cell of the next frame; hops make tracks; labels along a track vote.
# - The jump filter throws away matches that are too far to be motion. How far that is depends on the motion and on the frame rate.
# - A vote repairs labels that change from frame to frame, and cannot repair an error that all frames share.
# - Tracks need not be exact: they have to stay on their thing.
# - Neighbours in space and time, weighed by similarity, need no tracks: they repair more, keep labels steadier, and vote across seams.
#
# ## Exercises
# 1. With `follow`, click the leaf in frame 0. In which frame does the plus vanish, and what does the track do then?
# 2. With `vote`: at which share of disturbed cells (`neighbours.with_noise(coarse, share)`) is the vote, with `max_jump=2`, of no more help?
# 3. With `near`, set radius and temperature to 2 and 1: what happens to the labels of the leaf's outline, and to the stability (`near.shown["stability"]`)?
# 4. Take every frame instead of every third (`generated_clip(14)`, without `faster`). Which max. jump is best then, and why?
#
# <details><summary>Answers</summary>
#
# 1. `follow.shown["truth"]` is NaN from that frame on: the last cell prints it. The track has ended by then (the leaf moves too fast for a jump of
#    one cell), or it goes to whatever looks similar.
# 2. The next cell tries: as long as right labels are the majority on a track, it helps; near one half no label has 70 % of the votes.
# 3. Corners are rounded, since the ground around them has more votes than the thing. The labels are as steady as before or steadier: stable is not right.
# 4. 1 is enough: nothing moves by more than half a cell, so that every longer hop is a mistake. `vote.shown["after"]` hardly changes above 1.
#
# </details>

# %%
gains = {}
for amount in (0.1, 0.3, 0.5, 0.7):
    noisy = Window(clip, features.match, neighbours.with_noise(coarse, amount))
    before, after = neighbours.compare_votes({"": noisy}, {"": RefineSettings(method="tracks", max_jump=2)})[0]
    gains[amount] = after - before
print({f"{amount:.0%} disturbed": f"{gain:+.1%}" for amount, gain in gains.items()})
assert gains[0.1] > 0.03 and gains[0.7] < 0.5 * gains[0.3]

# %%
leaf = np.argwhere(clip.labels[0] == 1).mean(0)
follow.click("0", x=leaf[1], y=leaf[0])
hidden = np.isnan(follow.shown["truth"][:, 0])
print(f"hidden from frame {hidden.argmax()} on; cells of the track:")
print(follow.shown["cells"].tolist())
assert hidden.any() and clip.names[follow.shown["winner"]] == "leaf"
