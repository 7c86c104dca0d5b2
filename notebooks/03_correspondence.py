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
# Stage 2 labels every cell on its own, so now and then one is *blossom* in one frame
# and *leaf* in the next. Stage 3 finds the same spot in the frames around and lets all
# of them vote (paper, section 3.3).

# %% tags=["hide-input"]
import os

import numpy as np
import torch
import vidseg_core as vs
from vidseg_core.correspondence import most_similar, refine
from vidseg_core.features import Features
from vidseg_core.tracks import find_moves
from vidseg_core.workbook import correspondence as explore
from vidseg_core.workbook.features import at_centres
from vidseg_core.workbook.figures import compare, show_table
from vidseg_core.workbook.maps import show_maps
from vidseg_core.workbook.motion import Window, faster, stability, true_paths
from vidseg_core.workbook.widgets import Explorer, levels, slider

# %%
f = 8 if os.environ.get("VIDSEG_FAST") == "1" else 14  # frames; CI: fewer
clip = faster(vs.generated_clip(3 * f - 2), 3)  # every third frame
size = clip.frames.shape[1:3]
show_maps({f"frame {n}": clip.frames[n] for n in (0, 2, 4, 6)}, size)

# %% [markdown]
# A camera pans over a photograph; a blossom passes in front of a leaf. The clip is
# generated, so we know the class and the motion of every pixel. Stages 1 and 2 run as
# before, with the mask of frame 0. Stage 2 leaves *shares*: how many of a cell's votes
# each class got.

# %%
cells_8x8 = vs.FeatureSettings(scales=(1.0,))  # a cell is 8 x 8 pixels
vidseg = vs.VidSeg(vs.load_backbone("tiny"), vs.Settings(features=cells_8x8))
window = next(vidseg.cells(clip.frames, first_mask=clip.labels[0]))

shares = window.votes[0].astype(float)  # stage 2's votes, [f, h, w, classes]
match = window.features.match.numpy().astype(float)  # [f, h, w, channels]
_, h, w, classes = shares.shape
truth = at_centres(clip.labels, (h, w))
right = (shares.argmax(-1) == truth).mean()
print(f"{right:.1%} of the cells have their true class")

# %% [markdown]
# To have something to repair, we let 15 % of the cells, drawn anew in every frame, vote
# for a random class. **Question:** could you find the wrong cells in the middle without
# the frames before and after?

# %%
rng = np.random.default_rng(0)
coarse = shares.copy()
hit = rng.random((f, h, w)) < 0.15
coarse[hit] = np.eye(classes)[rng.integers(0, classes, hit.sum())]

labels = coarse.argmax(-1)
maps = {"stage 2": shares[3].argmax(-1), "disturbed": labels[3]}
compare(clip.frames[3], maps | {"the truth": truth[3]}, clip.names)

# %% [markdown]
# ## One hop
# Which cell of the next frame shows the same spot? `match` holds the queries of
# chapter 1. We give each the length 1; a product of two is then their cosine.
# **Question:** how many cells of frame 1 will resemble a cell of the blossom?

# %%
unit = match / np.linalg.norm(match, axis=-1, keepdims=True)
blossom = np.argwhere(truth[0] == 2).mean(0).round().astype(int)
row, column = blossom.tolist()

similarity = unit[1] @ unit[0, row, column]
pictures = {"frame 1": clip.frames[1], "similarity in frame 1": similarity}
places = [(8 * row + 4, 8 * column + 4), (row, column)]  # a pixel, a cell
show_maps(pictures, size, dict(zip(pictures, places, strict=True)))

# %% [markdown]
# Those in its middle, its rim no more than the leaf. The circle is the place that the
# cell had in frame 0; the blossom has moved on to the right. A second blossom elsewhere
# would resemble the cell as well. Things do not jump, so we search near the place only:
# among 5 x 5 cells.


# %%
def hop(frame, row, column, radius=2):
    """The most similar cell near this place in the next frame."""
    top, left = max(row - radius, 0), max(column - radius, 0)
    near = unit[frame + 1, top : row + radius + 1, left : column + radius + 1]
    best = int((near @ unit[frame, row, column]).argmax())
    return top + best // near.shape[1], left + best % near.shape[1]


print("from", (row, column), "to", hop(0, row, column))

# %% tags=["test"]
cosine, cell = most_similar(*torch.from_numpy(unit[:2, None]), 2)
hops = [hop(0, *divmod(n, w)) for n in range(h * w)]
same = [divmod(n, w) for n in cell.flatten().tolist()]
# two cells can be equally similar but for 1e-6; then the package's is nearer
assert np.mean([a == b for a, b in zip(hops, same, strict=True)]) > 0.995
to = torch.from_numpy(match[:2])
moves = find_moves(to, subcell=False)[0][0].numpy().astype(int)
far = hop(0, row, column, radius=h + w)
assert tuple(moves[row * w + column] + (row, column)) == far

# %% [markdown]
# ## A track
# Hop after hop makes a *track*. In the paper the cells of a track vote, and the
# most common label is written on all of them. **Question:** the circle is the
# track, the plus where the point really is. Will they stay together?

# %%
track = [(row, column)]
for frame in range(f - 1):
    track.append(hop(frame, *track[-1]))
track = np.array(track)

side = np.array(size) / (h, w)  # pixels of a cell
start = (track[:1] + 0.5) * side - 0.5
path = true_paths(clip, start, 0, f)[0]
seen = labels[np.arange(f), track[:, 0], track[:, 1]]
places = np.linspace(0, f - 1, 4).astype(int).tolist()
way = (track, path, seen, places, (h, w))
explore.show_track(clip.frames, *way, clip.names, majority=0.7)

# %% [markdown]
# Nearly: each hop ends on a whole cell, and what is rounded off adds up. Yet the track
# stays on the blossom. The bars show the labels along the track and their shares.

# %% [markdown]
# **By hand:** click any point in a frame. Below is the leaf, which the blossom hides
# later: where does its track go? (The package ends a track at a hop longer than
# `max_jump`: here two cells, by default one.)

# %%
known = Window(clip, window.features.match, labels)
two = vs.RefineSettings(method="tracks", max_jump=2)
follow = explore.explore_track(known, two)
leaf = np.argwhere(truth[0] == 1).mean(0).round().astype(int).tolist()
follow.set(row=leaf[0], column=leaf[1])

# %% tags=["test"]
middle = (blossom + 0.5) * side
follow.click("0", x=middle[1], y=middle[0])
assert clip.names[follow.shown["winner"]] == "blossom"
follow.set(method="reference")
cells = follow.shown["cells"]
assert (cells[1] == cells[0]).all(), "the first hop of the paper's code"
_ = follow.set(method="tracks", row=leaf[0], column=leaf[1])

# %% [markdown]
# A track asks one cell in each frame, so one wrong hop spoils all that follow, and
# it ends with the window. **Question:** can a cell ask several frames without
# following anything?

# %% [markdown]
# ## Correspondences of all cells
# Yes: a cell looks into each frame around it *directly*. We compare all cells of two
# frames at once, exclude those more than two rows or columns away, and keep the most
# similar. Of equally similar cells the nearer one counts.

# %%
y, x = np.indices((h, w)).reshape(2, -1)  # of each of the h * w cells
rows, columns = abs(y[:, None] - y), abs(x[:, None] - x)  # between two cells


def correspond(frame, other, radius=2):
    """For each cell the best one of another frame, and its cosine."""
    cosine = unit[frame].reshape(h * w, -1) @ unit[other].reshape(h * w, -1).T
    cosine[(rows > radius) | (columns > radius)] = -2  # below any
    best = (cosine - 1e-6 * (rows**2 + columns**2)).argmax(1)
    return best, cosine[np.arange(h * w), best]


# %% [markdown]
# How surely is each cell of frame 3 found again? A vote will count
# $\exp((\cos - 1) / T)$ with the *temperature* $T = 0.5$: 1 for an equal cell, less
# for a less similar one. **Question:** where are the dark cells?

# %%
weights = {}
for other in (1, 2, 4, 5):
    _, cosine = correspond(3, other)
    weights[f"vote of frame {other}"] = np.exp((cosine - 1) / 0.5).reshape(h, w)
show_maps(weights, size, high=1)

# %% [markdown]
# Near leaf and blossom: there a cell sees both sides of an outline, and what it sees
# changes as the thing moves over the ground. And, for frame 1, along the lower and left
# edge, which the pan had not yet brought into view. Every sky cell finds a match,
# because all sky looks alike.

# %% tags=["test"]
for radius in (0, 1, 2):
    cosine, cell = most_similar(*torch.from_numpy(unit[[3, 4], None]), radius)
    best, similar = correspond(3, 4, radius)
    assert (best == cell.flatten().numpy()).all()
    assert abs(similar - cosine.flatten().numpy()).max() < 1e-12

# %% [markdown]
# ## The vote
# Each cell adds to its own votes those of its correspondences in the two frames
# before and after, weighed by similarity. This is all of stage 3 (but at the start of
# a later window, the last two frames of the window before vote, too: exercise 6):


# %%
def vote(frame, radius=2, reach=2, temperature=0.5):
    """A frame's shares after the vote, [h, w, classes]."""
    votes = coarse[frame].reshape(h * w, -1).copy()  # its own
    for other in range(max(frame - reach, 0), min(frame + reach + 1, f)):
        if other != frame:
            cell, cosine = correspond(frame, other, radius)
            weight = np.exp((cosine - 1) / temperature)[:, None]
            votes += weight * coarse[other].reshape(h * w, -1)[cell]
    return (votes / votes.sum(1, keepdims=True)).reshape(h, w, -1)


# %% tags=["test"]
voted = np.stack([vote(frame) for frame in range(f)])
pair = Features(torch.from_numpy(match), torch.from_numpy(match))
package = refine(pair, torch.from_numpy(coarse), None, vs.RefineSettings())
assert abs(voted - package.numpy()).max() < 1e-10, "sums in another order"

# %% [markdown]
# **Question:** which of the wrong cells can four other frames repair, and which not?
# A plus marks a cell that the vote repaired, a cross one that it spoiled.


# %%
def show(frame, after):
    """Labels before and after the vote, repaired and spoiled cells."""
    now = after.argmax(-1)
    maps = {"before": labels[frame], "after": now, "the truth": truth[frame]}
    wrong = np.stack([labels[frame], now]) != truth[frame]
    winner = after.max(-1)
    what = (clip.frames[frame], maps, wrong, winner, clip.names)
    return explore.show_vote(*what)


show(3, vote(3))

# %% [markdown]
# Most random mistakes are repaired, on leaf and blossom too: after moving two cells a
# thing still covers part of its old place. What remains are a few stray cells, and
# cells at outlines. The last panel is the winner's share, low where a cell heard
# several labels.

# %% [markdown]
# ## By hand
# `Explorer` takes a function: slider values in, a figure and a dictionary out.


# %%
def draw(radius, reach, temperature):
    after = vote(3, radius, reach, temperature)
    good = (after.argmax(-1) == truth[3]).mean()
    return show(3, after), {"right": good, "share": after.max(-1)}


# %%
near = Explorer(
    draw,
    radius=slider("radius", 2, 0, 2),
    reach=slider("reach", 2, 0, 3),
    temperature=levels("temperature", 0.5, [0.02, 0.1, 0.5, 2.0]),
)
near

# %% [markdown]
# - **reach 0**: nothing is repaired; **3**: the stray cells are, too.
# - **temperature 0.02**: only nearly equal cells count, those of the sky, and most
#   mistakes stay; **2**: all count nearly alike, and more cells are spoiled.
# - **radius 0**: only the same place votes. It repairs as many here; but the winners'
#   shares fall around leaf and blossom.

# %% tags=["test"]
own = near.shown["right"]
alone = near.set(reach=0).shown["right"]
cold = near.set(reach=2, temperature=0.02).shown["right"]
_ = near.set(temperature=0.5)
assert alone == (labels[3] == truth[3]).mean() <= cold < own - 0.04
assert 0 < near.shown["share"].min() < near.shown["share"].max() <= 1

# %% [markdown]
# ## Who votes best?
# We compare the vote of the neighbours with votes along tracks, ours and those of the
# paper's code, on stage 2's own labels and on the disturbed ones. Two numbers: *right*
# cells, and *stable* ones: a cell keeps its label along its true motion. **Question:**
# can a vote make labels steadier but not righter?

# %%
features = Features(torch.from_numpy(match), torch.from_numpy(match))
methods = ("none", "neighbours", "tracks", "reference")
table = np.zeros((2, 2, 4))  # right and stable; as they are and disturbed
for r, votes in enumerate((shares, coarse)):
    for c, method in enumerate(methods):
        how = vs.RefineSettings(method=method)
        after = refine(features, torch.from_numpy(votes), None, how)
        found = after.argmax(-1).numpy()
        steady = stability(found, clip.flow, clip.visible).mean()
        table[:, r, c] = 100 * (found == truth).mean(), 100 * steady
table = table.reshape(4, 4)
kinds = ["right", "right, disturbed", "stable", "stable, disturbed"]
show_table(table, kinds, methods, "% of the cells", best="row")

# %% [markdown]
# Chance is repaired, best by the neighbours. Yet of stage 2's own mistakes no vote
# repairs much: most lie at outlines and stay from frame to frame. **A vote repairs what
# changes.**

# %% [markdown]
# The paper's tracks ("reference") even lose right cells: a track that slips over an
# outline carries its label along. Ours ("tracks") end at long hops, and only 70 % of
# the votes overrule a cell: undisturbed labels get steadier, and hardly righter.

# %% tags=["test"]
plain, neighbours, tracks, paper = table.T
assert neighbours[0] > plain[0] - 0.3 and neighbours[2] > plain[2]
assert neighbours[1] > max(plain[1] + 5, tracks[1] + 2, paper[1] + 2)
assert neighbours[3] > max(plain[3] + 10, tracks[3] + 5, paper[3] + 5)
assert tracks[0] > plain[0] - 0.8

# %% [markdown]
# ## Summary
# - In each frame up to two away, the most similar of 5 x 5 cells votes on a cell. (The
#   paper follows a track instead.)
# - What changes from frame to frame is repaired; what is wrong in all stays.
# - Shares go on to stage 4, not labels: a cell may stay in doubt.

# %% [markdown]
# ## Exercises
# Answers: [Solutions](solutions.ipynb).
# 1. When does the plus on the leaf vanish, and what does the track do then?
# 2. In the paper's code a hop maximises
#    $(q \cos(f_q, f_{q+1}) + \cos(f_q, f_0)) / (q + 1)$. What is the first hop, $q = 0$?

# %% [markdown]
# 3. Take every frame instead of every third. How much of the motion do hops in whole
#    cells see? And with `find_moves(match, subcell=True)`?
# 4. `max_jump` limits a track's hop, `majority` is what its winner needs. Which values
#    are best here, on disturbed and on undisturbed labels?

# %% [markdown]
# 5. Disturb 10, 30, 50, 70 and 90 % of the cells. When does the vote help most?
# 6. Cut the clip into two windows. `refine` takes an `Overlap`, the frames before its
#    window. What is it worth?
# 7. Where are tracks lost first: on the ground, inside a thing or near an outline?
