"""The tree of clusters against SciPy and by hand, its cuts, and the cut that it suggests."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from vidseg_core.context import Clusters
from vidseg_core.merging import cut_merges, merge_order, natural_cut


def test_merging_is_wards_linkage_of_the_tokens():
    """SciPy's ward on every centroid repeated as often as it has tokens is the same tree."""
    rng = np.random.default_rng(2)
    centroids, sizes = rng.normal(size=(9, 4)), rng.integers(1, 40, 9)
    order, _ = merge_order(
        Clusters(torch.from_numpy(centroids).float(), torch.from_numpy(sizes), torch.zeros(1).long(), 0.0), 1.0
    )
    tree = linkage(np.repeat(centroids, sizes, axis=0), "ward")
    owner = np.repeat(np.arange(9), sizes)
    for num_segments in range(1, 10):
        theirs = fcluster(tree, num_segments, "maxclust")
        groups = {frozenset(owner[theirs == g].tolist()) for g in np.unique(theirs)}
        ours = cut_merges(order, num_segments)
        assert {frozenset(np.flatnonzero(ours == s).tolist()) for s in np.unique(ours)} == groups


def test_what_is_small_and_different_outlasts_what_is_large_and_alike():
    """Two halves of a wall, 400 tokens each and 1 apart, and a cup, 10 tokens, 4 away from the nearer half: Ward's cost, by
    hand, is 400 * 400 / 800 * 1 = 200 for the halves and 400 * 10 / 410 * 16 = 156 for half and cup."""
    centroids, sizes = torch.tensor([[0.0], [1.0], [-4.0]]), torch.tensor([400, 400, 10])
    clusters = Clusters(centroids, sizes, torch.zeros(1).long(), 0.0)
    assert merge_order(clusters, 1.0)[0][0].tolist() == [0, 2], "Ward: the cup goes first"
    assert merge_order(clusters, 0.25)[0][0].tolist() == [0, 1]


def test_cuts_are_nested_and_keep_numbers():
    rng = np.random.default_rng(3)
    order, _ = merge_order(
        Clusters(torch.from_numpy(rng.normal(size=(20, 4))).float(), torch.arange(1, 21), torch.zeros(1).long(), 0.0), 0.25
    )
    finer = cut_merges(order, None)
    assert finer.tolist() == list(range(20))
    for num_segments in range(19, 0, -1):
        coarser = cut_merges(order, num_segments)
        assert len(np.unique(coarser)) == num_segments
        assert all(len(np.unique(coarser[finer == s])) == 1 for s in np.unique(finer)), "a cut splits what a finer one joined"
        assert (coarser != finer).any() and set(coarser) < set(finer)
        finer = coarser


def test_costs_are_wards():
    """The same three: the cup goes to its half for 156.1; what is left is 410 tokens about -0.12 and 400 at 1."""
    clusters = Clusters(torch.tensor([[0.0], [1.0], [-4.0]]), torch.tensor([400, 400, 10]), torch.zeros(1).long(), 0.0)
    _, costs = merge_order(clusters, 1.0)
    assert costs == pytest.approx([400 * 10 / 410 * 16, 410 * 400 / 810 * (1 + 40 / 410) ** 2])


@pytest.mark.parametrize(("groups", "each"), [(5, 4), (6, 4), (8, 3)])
def test_the_tree_suggests_the_groups(groups, each):
    """Clusters in groups that are far from each other, against nothing within them."""
    rng = np.random.default_rng(groups)
    centres = np.eye(groups).repeat(each, axis=0) * 10 + rng.normal(0, 0.1, (groups * each, groups))
    clusters = Clusters(torch.from_numpy(centres).float(), torch.full((len(centres),), 50), torch.zeros(1).long(), 0.0)
    order, costs = merge_order(clusters, 0.25)
    assert natural_cut(costs) == groups
    assert (cut_merges(order, groups).reshape(groups, each) == cut_merges(order, groups).reshape(groups, each)[:, :1]).all()


@pytest.mark.parametrize(
    ("clusters", "suggested"), [(1, {1}), (4, {4}), (5, {5}), (6, {5}), (10, {5}), (20, {5, 6, 7, 8, 9, 10})]
)
def test_no_fewer_than_five_and_no_more_than_half(clusters, suggested):
    assert natural_cut(np.random.default_rng(0).random(clusters - 1)) in suggested
    assert natural_cut(np.zeros(clusters - 1)) in suggested, "all merges cost nothing"
