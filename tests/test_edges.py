"""Scores that follow the frame's edges, against a fit in every square by a plain loop."""

import numpy as np
import torch

from vidseg_core.edges import Guide, box


def squares(shape, radius):
    """For each pixel the part of the square around it that is in the frame."""
    for y, x in np.ndindex(shape):
        yield (y, x), np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]


def test_scores_follow_linear_fits():
    """Half of the score gives way to its average; the mean slope of all fits around adds what the frame's colours say. The
    frames are half as large as the working size here: what is fitted needs no enlarging."""
    rng, radius, eps, (h, w) = np.random.default_rng(0), 2, 1e-2, (10, 11)
    frames, images, scores = (
        rng.integers(0, 256, (2, h, w, 3), dtype=np.uint8),
        rng.random((2, 3, 2 * h, 2 * w)),
        rng.random((2 * h, 2 * w)),
    )
    small, score = images[1].reshape(3, h, 2, w, 2).mean((2, 4)), scores.reshape(h, 2, w, 2).mean((1, 3))
    slopes, means, averages = np.zeros((h, w, 3)), np.zeros((h, w, 3)), np.zeros((h, w))
    for place, square in squares((h, w), radius):
        colours = np.stack([channel[square].ravel() for channel in small], 1)
        means[place], averages[place] = colours.mean(0), score[square].mean()
        covariance = np.cov(colours.T, bias=True) + eps * np.eye(3)
        slopes[place] = np.linalg.solve(covariance, ((colours - means[place]) * score[square].ravel()[:, None]).mean(0))
    expected = (score + averages) / 2
    for place, square in squares((h, w), radius):
        expected[place] += slopes[square].reshape(-1, 3).mean(0) @ (frames[1][place] / 255 - means[place])
    guide = Guide.of(frames, torch.from_numpy(images).float(), radius, eps)
    assert np.abs(guide.follow(1, torch.from_numpy(scores).float()).numpy() - expected).max() < 1e-5


def test_a_border_goes_where_the_colours_change():
    """A score that is wrong by two pixels comes to the edge of the frame, which is four times as fine; on one colour nothing
    tells where the border is, and the score is half averaged."""
    frame, scores = np.zeros((1, 80, 160, 3), np.uint8), torch.zeros(20, 40)
    frame[:, :, 81:, 0], scores[:, 22:] = 255, 1.0
    small = torch.nn.functional.interpolate(
        torch.from_numpy(frame).float().permute(0, 3, 1, 2) / 255, size=(20, 40), mode="area"
    )
    followed = Guide.of(frame, small, 3, 1e-4).follow(0, scores)
    assert followed.shape == (80, 160)
    assert (followed[:, 81:].mean(1) > followed[:, :81].mean(1) + 0.5).all()
    jump = (followed[:, 81] - followed[:, 80]).min()
    assert jump > 0.3 and jump > 3 * (followed[:, 82:100].diff(dim=1).abs().max()), "the steepest place is the frame's own edge"
    grey = torch.full((1, 3, 20, 40), 0.5)
    flat = Guide.of(np.full((1, 10, 20, 3), 128, np.uint8), grey, 6, 1e-4).follow(0, scores)
    small = scores.reshape(10, 2, 20, 2).mean((1, 3))
    assert (flat - (small + box(small[None, None], 6)[0, 0]) / 2).abs().max() < 1e-3
