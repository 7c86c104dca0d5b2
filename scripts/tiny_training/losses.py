"""What the training asks of the queries."""

import torch
from torch import Tensor
from torch.nn import functional as F


def align_loss(predicted: Tensor, targets: list[Tensor], weights: tuple[float, ...], certainty: Tensor) -> Tensor:
    """1 - cosine of [n, sum d, h, w] with each block's [n, d, h, w], weighted by block and by `certainty` [n]."""
    parts = predicted.float().split([t.shape[1] for t in targets], 1)
    losses = [w * (1 - F.cosine_similarity(p, t, dim=1)) for p, t, w in zip(parts, targets, weights, strict=True)]
    return (sum(losses) * certainty.view(-1, 1, 1)).mean()


def relation_loss(
    queries: Tensor, targets: list[Tensor], weights: tuple[float, ...], certainty: Tensor, pick: Tensor
) -> Tensor:
    """Mean squared difference of token-token cosines of queries and of features, over the tokens `pick` of the batch.

    In units of the variance of the features' cosine, which is the weighted mean over blocks. A pair counts by the product of
    its certainties: where all are 1, 1 is queries that know nothing; 0 is a perfect copy.
    """
    unit = F.normalize(tokens(queries)[pick], dim=1)
    with torch.no_grad():
        picked = [F.normalize(tokens(t)[pick], dim=1) for t in targets]
        wanted = sum(w * f @ f.T for f, w in zip(picked, weights, strict=True))
        sure = certainty.view(-1, 1, 1).expand(-1, *queries.shape[2:]).reshape(-1)[pick]
        scale = wanted.var().clamp(min=1e-6)  # features may be all the same: an image of one colour
    return ((unit @ unit.T - wanted).square() * (sure[:, None] * sure[None])).mean() / scale


def tokens(maps: Tensor) -> Tensor:
    """[n, d, h, w] -> [n*h*w, d]."""
    return maps.movedim(1, -1).flatten(0, 2)


def border_loss(queries: Tensor) -> Tensor:
    """Squared difference between the batch's mean query in the two outer rings, side by side, and three cells inside.

    In units of the queries' variance. In random crops of random images both places see the same pictures, so what differs
    is the padding of the convolutions.
    """
    mean, scale = queries.mean(0), queries.detach().var((0, 2, 3)).mean()
    terms = []
    for plane in (mean, mean.flip(1), mean.transpose(1, 2), mean.transpose(1, 2).flip(1)):
        inner = plane[:, 3:5].mean((1, 2))
        terms += [(plane[:, ring].mean(1) - inner).square().mean() / scale for ring in (0, 1)]
    return torch.stack(terms).mean()


def concept_loss(predicted: Tensor, features: Tensor) -> Tensor:
    """1 - cosine of [clips, d] with the mean over the cells of each clip's first frame; features are [clips * f, d, h, w]."""
    first = features.unflatten(0, (len(predicted), -1))[:, 0]
    return 1 - F.cosine_similarity(predicted.float(), first.mean((2, 3)), dim=1).mean()
