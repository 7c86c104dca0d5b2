"""Stage 2 against scikit-learn, SciPy and plain loops."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier

from vidseg_core import ContextSettings, InputError
from vidseg_core.common import VOID
from vidseg_core.context import (
    SceneContext,
    kmeans,
    lloyd,
    name_cells,
    name_clusters,
    stratified_draw,
)
from vidseg_core.merging import cut_merges, merge_order, natural_cut


@pytest.fixture(scope="module")
def tokens():
    """Twelve overlapping Gaussian blobs in 8 dimensions."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.concatenate([rng.normal(rng.normal(0, 2, 8), 1, (100, 8)) for _ in range(12)])).float()


def test_lloyd_equals_scikit_learns(tokens):
    start = tokens[::100][:7].clone()
    ours = lloyd(tokens, start)
    theirs = KMeans(7, init=start.numpy(), n_init=1, max_iter=100, tol=1e-4, algorithm="lloyd").fit(tokens.numpy())
    assert (ours.centroids - torch.from_numpy(theirs.cluster_centers_)).abs().max() < 1e-3
    assert (ours.labels.numpy() == theirs.labels_).mean() > 0.999
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_kmeans_is_as_good_as_scikit_learns(tokens):
    ours = kmeans(tokens, ContextSettings(num_clusters=12), seed=1)
    theirs = min(KMeans(12, n_init=3, random_state=s).fit(tokens.numpy()).inertia_ for s in range(3))
    assert ours.inertia < 1.01 * theirs
    assert ours.sizes.sum() == len(tokens) and torch.equal(ours.sizes, torch.bincount(ours.labels, minlength=12))


def test_kmeans_is_deterministic_by_seed(tokens):
    once, again, other = (kmeans(tokens, ContextSettings(num_clusters=20, restarts=1), seed=s) for s in (3, 3, 4))
    assert torch.equal(once.labels, again.labels) and not torch.equal(once.labels, other.labels)


def test_kmeans_fills_empty_clusters():
    tokens = torch.cat([torch.zeros(50, 2), torch.tensor([[10.0, 0.0], [0.0, 10.0]])])
    found = lloyd(tokens, torch.tensor([[0.0, 0.0], [100.0, 100.0], [101.0, 101.0]]))
    assert sorted(found.sizes.tolist()) == [1, 1, 50] and found.inertia == 0


@pytest.mark.parametrize(("count", "num_clusters"), [(5, 6), (1, 2)])
def test_more_clusters_than_tokens_are_refused(count, num_clusters):
    with pytest.raises(InputError, match=f"{num_clusters} clusters cannot be made of {count} tokens"):
        kmeans(torch.zeros(count, 3), ContextSettings(num_clusters=num_clusters))


def test_one_cluster(tokens):
    found = kmeans(tokens, ContextSettings(num_clusters=1))
    assert (found.centroids[0] - tokens.mean(0)).abs().max() < 1e-5
    order, costs = merge_order(found, 0.25)
    assert order.shape == (0, 2) and cut_merges(order, None).tolist() == [0] and natural_cut(costs) == 1


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("neighbours", [1, 4, 5])
def test_knn_equals_scikit_learns(tokens, neighbours, weights):
    """Shares, and the labels that win: with many ties, where the smallest wins, and tokens that are in the context."""
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 5, len(tokens)))
    settings = ContextSettings(neighbours=neighbours, weights=weights, max_context=None)
    context = SceneContext.begin(tokens[:600], labels[:600], settings)
    shares = context.predict(tokens.reshape(1, 30, 40, 8)).reshape(1200, 5).numpy()
    knn = KNeighborsClassifier(neighbours, weights=weights).fit(tokens[:600].numpy(), labels[:600].numpy())
    assert (shares.argmax(1) == knn.predict(tokens.numpy())).all()
    assert np.abs(shares[600:] - knn.predict_proba(tokens[600:].numpy())).max() < 1e-4, (
        "those known have all votes in scikit-learn"
    )


def test_one_near_cell_outvotes_three_far_ones():
    """By distance 1/0.1 against 3/1; by count 1 against 3."""
    known = torch.tensor([[0.1, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    for weights, expected in (("distance", 7), ("uniform", 2)):
        context = SceneContext.begin(known, torch.tensor([7, 2, 2, 2]), ContextSettings(weights=weights, neighbours=4))
        assert context.predict(torch.zeros(1, 1, 1, 2)).argmax(-1).item() == expected


def test_context_is_replaced_by_the_last_window(tokens):
    maps, settings = tokens.reshape(4, 10, 30, 8), ContextSettings(memory="window", max_context=None)
    first = SceneContext.begin(maps[0].flatten(0, 1), torch.zeros(300, dtype=torch.long), settings, count=2)
    context = first.after(maps[1:], torch.ones(3, 10, 30, dtype=torch.long))
    assert torch.equal(context.tokens, maps[1:].flatten(0, 2)) and (context.predict(maps)[..., 1] == 1).all()
    assert torch.equal(first.tokens, maps[0].flatten(0, 1)) and (first.predict(maps)[..., 0] == 1).all(), (
        "the one before is as it was"
    )


def test_what_the_clip_began_with_stays_beside_the_last_window(tokens):
    maps = tokens.reshape(4, 10, 30, 8)
    settings = ContextSettings(num_clusters=3, neighbours=1)
    context = SceneContext.begin(maps[0].flatten(0, 1), torch.zeros(300, dtype=torch.long), settings, count=2)
    for window in (maps[1:], maps[2:]):
        context = context.after(window, torch.ones(window.shape[:3], dtype=torch.long))
        assert torch.equal(context.tokens[:300], maps[0].flatten(0, 1)), "frame 0 stays, as it was"
        assert context.labels.tolist() == [0] * 300 + [1] * 300, "as many tokens of the last window stand beside it"
    assert set(context.tokens[300:, 0].tolist()) <= set(maps[2:].flatten(0, 2)[:, 0].tolist())
    assert (context.predict(maps[:1]).argmax(-1) == 0).all()


def test_the_anchor_takes_at_most_half_of_the_context(tokens):
    settings = ContextSettings(num_clusters=3, max_context=100)
    context = SceneContext.begin(tokens, torch.zeros(1200, dtype=torch.long), settings)
    assert context.anchored == len(context.tokens) == 50
    context = context.after(tokens.reshape(4, 10, 30, 8), torch.ones(4, 10, 30, dtype=torch.long))
    assert context.labels.tolist() == [0] * 50 + [1] * 50


def test_without_an_anchor_the_beginning_is_forgotten(tokens):
    context = SceneContext.begin(tokens, torch.zeros(1200, dtype=torch.long), ContextSettings(memory="window"))
    context = context.after(tokens.reshape(4, 10, 30, 8), torch.ones(4, 10, 30, dtype=torch.long))
    assert context.anchored == 0 and context.labels.tolist() == [1] * 1200


def test_the_draw_is_bounded_stratified_and_seeded():
    labels = torch.tensor([0] * 9000 + [1] * 900 + [2] * 90 + [255] * 2)
    kept = stratified_draw(labels, 1000, least=4, seed=0)
    assert len(kept) == len(kept.unique()) == 1000
    counts = Counter(labels[kept].tolist())
    assert counts[255] == 2 and abs(counts[0] - 900) <= 2 and abs(counts[1] - 90) <= 2 and abs(counts[2] - 9) <= 2
    assert torch.equal(kept, stratified_draw(labels, 1000, 4, 0)) and not torch.equal(kept, stratified_draw(labels, 1000, 4, 1))


def test_a_rare_label_keeps_its_neighbours():
    labels = torch.tensor([0] * 100_000 + [7] * 5)
    counts = Counter(labels[stratified_draw(labels, 100, least=4, seed=0)].tolist())
    assert counts[7] >= 4 and sum(counts.values()) == 100


def test_clusters_take_the_majority_of_the_mask():
    """A plain loop over pixels, on a mask whose size is no multiple of the cells."""
    rng = np.random.default_rng(0)
    cells, mask = rng.integers(0, 6, (5, 7)), rng.choice([0, 1, 2, VOID], (33, 40))
    votes = [Counter() for _ in range(8)]
    for y, x in np.ndindex(mask.shape):
        if mask[y, x] != VOID:
            votes[cells[(2 * y + 1) * 5 // 66, (2 * x + 1) * 7 // 80]][mask[y, x]] += 1
    expected = [min(v, key=lambda c: (-v[c], c)) if v else VOID for v in votes]
    assert name_clusters(torch.from_numpy(cells), mask, 8).tolist() == expected
    assert expected[6] == VOID, "a cluster that is not in the first frame has no name"


def test_cells_take_the_majority_of_the_mask():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, VOID], (33, 40))
    mask[:14, :12] = VOID
    votes = {cell: Counter() for cell in np.ndindex(5, 7)}
    for y, x in np.ndindex(mask.shape):
        votes[(2 * y + 1) * 5 // 66, (2 * x + 1) * 7 // 80].update([mask[y, x]] if mask[y, x] != VOID else [])
    expected = [[min(v, key=lambda c: (-v[c], c)) if (v := votes[y, x]) else VOID for x in range(7)] for y in range(5)]
    assert name_cells(mask, (5, 7)).tolist() == expected and expected[0][0] == VOID


def test_a_cluster_of_void_stays_void():
    cells = torch.tensor([[0, 0, 1, 1]])
    mask = np.array([[VOID, VOID, VOID, 3]])
    assert name_clusters(cells, mask, 2).tolist() == [VOID, 3]
