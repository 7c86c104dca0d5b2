"""Stage 1 against activations taken by hand, and the reference's guided schedule against a plain loop."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from refusals import refusal
from sklearn.neighbors import KNeighborsClassifier

from vidseg_core import FeatureSettings, Settings, reference_settings
from vidseg_core.features import append_position, extract_features, frame_features, normalise

SMALL = (96, 128)


def with_features(backbone, **changes):
    return Settings(features=FeatureSettings(**changes), working_size=SMALL).resolve(backbone.model)


def manual_queries(unet, x, timestep, condition):
    """Queries of both tapped blocks, from an unhooked copy of the attention's inputs: to_q's weight times what norm1 gives."""
    inputs, handles = {}, []
    for n in range(2):
        norm = unet.up_blocks[1].attentions[n].transformer_blocks[0].norm1
        handles.append(norm.register_forward_hook(lambda m, i, o, n=n: inputs.__setitem__(n, o)))
    with torch.inference_mode():
        output = unet(x, timestep, condition).sample
        weights = [unet.up_blocks[1].attentions[n].transformer_blocks[0].attn1.to_q.weight for n in range(2)]
        queries = [inputs[n] @ weights[n].T for n in range(2)]
    for handle in handles:
        handle.remove()
    return queries, output


@pytest.mark.parametrize(("how", "order"), [(None, 2), ("max", torch.inf)])
def test_features_are_the_queries(backbone, images, how, order):
    settings = with_features(backbone, position=0.0, noise="independent", normalise=how)
    features = extract_features(backbone, images, settings)
    sigma, latents = backbone.sigma(20), backbone.encode(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    x = (latents + sigma * noise) / (sigma**2 + 1) ** 0.5
    queries, _ = manual_queries(backbone.unet, x, 20, torch.zeros(6, 1, 32))
    expected, match = (q / q.norm(order, dim=-1, keepdim=True) for q in (torch.cat(queries, -1), queries[0]))
    assert (features.context - expected.reshape(6, 12, 16, 192)).abs().max() < 1e-4
    assert (features.match.flatten(1, 2) - match).abs().max() < 1e-4


def test_chunks_do_not_change_the_result(backbone, images):
    for noise in ("shared", "independent"):
        whole, parts = (extract_features(backbone, images, with_features(backbone, noise=noise, chunk=c)) for c in (6, 4))
        assert (whole.context - parts.context).abs().max() < 1e-4


def test_equal_frames_have_equal_features_under_shared_noise(backbone, images):
    twice = images[:1].expand(2, -1, -1, -1)
    shared, independent = (
        extract_features(backbone, twice, with_features(backbone, noise=n)) for n in ("shared", "independent")
    )
    assert (shared.match[0] - shared.match[1]).abs().max() < 1e-4
    assert (independent.match[0] - independent.match[1]).abs().max() > 1e-2


def test_ensemble_is_the_mean_over_seeds(backbone, images):
    settings = with_features(backbone, ensemble=2, position=0.0)
    both = extract_features(backbone, images[:1], settings).match
    single = [
        extract_features(backbone, images[:1], dataclasses.replace(with_features(backbone, position=0.0), seed=s)).match
        for s in (0, 1)
    ]
    # each was divided by its own length, so the mean agrees in direction, not in length
    cosine = torch.cosine_similarity(both, (single[0] + single[1]) / 2, dim=-1)
    assert cosine.min() > 0.995 and (both - single[0]).abs().max() > 1e-3


def test_mean_and_concat(backbone, images):
    assert extract_features(backbone, images[:1], with_features(backbone, combine="mean")).context.shape[-1] == 96 + 2
    assert extract_features(backbone, images[:1], with_features(backbone, combine="concat")).context.shape[-1] == 192 + 2


def test_normalise():
    tokens = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert normalise(tokens, "max").tolist() == [[0.75, -1.0], [0.0, 0.0]]
    assert torch.allclose(normalise(tokens, "l2"), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))


def test_position_channels():
    features = append_position(torch.zeros(2, 3, 5, 1), 0.5)
    assert features.shape == (2, 3, 5, 3)
    assert features[1, 0, :, 2].tolist() == [-0.5, -0.25, 0, 0.25, 0.5] and features[0, :, 4, 1].tolist() == [-0.5, 0, 0.5]
    assert append_position(features, 0.0) is features


def test_reference_features_follow_the_guided_schedule(backbone, images, monkeypatch):
    """FIELD: noise at step 22, guided Euler steps 22 and 23, queries of the conditional half at step 24, mean of the blocks."""
    settings = dataclasses.replace(reference_settings("tiny"), working_size=SMALL)
    embedding = torch.randn(1, 1, 32)
    monkeypatch.setattr(backbone, "prompt", lambda text: embedding)  # else both halves of the guidance batch are equal
    features = extract_features(backbone, images[:2], settings)
    scheduler = EulerDiscreteScheduler.from_config(backbone.scheduler, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    latents = backbone.encode(images[:2])
    x = latents + scheduler.sigmas[22] * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    condition = torch.cat([torch.zeros(2, 1, 32), backbone.prompt("").expand(2, -1, -1)])
    for step in (22, 23, 24):
        t = scheduler.timesteps[step]
        queries, output = manual_queries(backbone.unet, scheduler.scale_model_input(torch.cat([x, x]), t), t, condition)
        scheduler._step_index = step
        unconditional, conditional = output.chunk(2)
        x = scheduler.step(unconditional + 5 * (conditional - unconditional), t, x).prev_sample
        scheduler._step_index = None
    mean = (queries[0][2:] + queries[1][2:]) / 2
    expected = (mean / mean.abs().amax(-1, keepdim=True)).reshape(2, 12, 16, 96)
    assert (features.context - expected).abs().max() < 2e-3
    assert features.context.shape[-1] == 96, "the paper's features have no position"


def test_features_tell_the_generated_clips_classes_apart(backbone):
    """Nearest neighbours from frame 0's exact labels: measured 98.9 %."""
    from vidseg_core import generated_clip

    clip = generated_clip(num_frames=4)
    settings = Settings().resolve(backbone.model)
    context = extract_features(backbone, backbone.images(clip.frames, (240, 320)), settings).context.numpy()
    truth = clip.labels[:, 4::8, 4::8]
    knn = KNeighborsClassifier(4).fit(context[0].reshape(-1, context.shape[-1]), truth[0].ravel())
    right = knn.predict(context[3].reshape(-1, context.shape[-1])) == truth[3].ravel()
    assert np.mean(right) > 0.97


# finer cells


def test_scales_stand_side_by_side_on_the_grid_of_the_first(backbone, clip):
    """At 1.5 times the size there are 1.5 times the cells along each axis; the features of the clip's own size are enlarged."""
    settings = with_features(backbone, scales=(1.5, 1.0), position=0.2)
    plain, frames = with_features(backbone, position=0.0), clip.frames[:2]
    fine, coarse = (extract_features(backbone, backbone.images(frames, size), plain) for size in ((144, 192), SMALL))
    found = frame_features(backbone, frames, settings)
    assert found.context.shape == (2, 18, 24, 386) and found.match.shape == (2, 18, 24, 192)
    enlarged = torch.nn.functional.interpolate(coarse.match.permute(0, 3, 1, 2), size=(18, 24), mode="bilinear")
    expected = torch.cat([fine.match, enlarged.permute(0, 2, 3, 1)], -1) / 2**0.5
    assert (found.match - expected).abs().max() < 1e-5
    y, x = found.context[0, 0, 0, -2:].tolist()
    assert (y, x) == pytest.approx((-0.2, -0.2)) and (found.context[..., :192] - fine.context / 2**0.5).abs().max() < 1e-5


def test_one_scale_is_the_plain_pass(backbone, clip):
    settings = with_features(backbone, scales=(1.0,))
    expected = extract_features(backbone, backbone.images(clip.frames[:2], SMALL), settings)
    found = frame_features(backbone, clip.frames[:2], settings)
    assert torch.equal(found.context, expected.context) and torch.equal(found.match, expected.match)


def test_shifted_passes_are_interleaved(backbone, clip):
    """Cell (y, x) of twice the grid is cell (y // 2, x // 2) of a pass over frames that begin 2 pixels before or after."""
    settings, frames = with_features(backbone, scales=(1.0,), shifts=2, position=0.0), clip.frames[:1]
    found = frame_features(backbone, frames, settings).match
    assert found.shape == (1, 24, 32, 96)
    images = torch.nn.functional.pad(backbone.images(frames, SMALL), (2, 2, 2, 2), mode="replicate")
    plain = with_features(backbone, position=0.0)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = extract_features(backbone, images[:, :, 4 * y : 4 * y + 96, 4 * x : 4 * x + 128], plain).match
        assert (found[:, y::2, x::2] - part).abs().max() < 1e-4, (y, x)


def test_a_pass_ends_when_all_is_tapped(backbone, images):
    """The last block, at the highest resolution, is not run for features."""
    ran = []
    hook = backbone.unet.up_blocks[2].register_forward_hook(lambda *_: ran.append(1))
    extract_features(backbone, images[:1], with_features(backbone))
    assert not ran
    backbone.denoise(backbone.encode(images[:1]), 20)
    hook.remove()
    assert ran == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("schedule", ["direct", "reference"])
def test_features_that_are_no_numbers_are_refused(backbone, clip, value, schedule):
    """One token of one frame is enough: K-means and the neighbours would give all cells one label, and no word."""
    if schedule == "reference":
        settings = dataclasses.replace(reference_settings("tiny"), working_size=SMALL)
    else:
        settings = with_features(backbone)

    def overflow(module, inputs, output):
        output[-1, 3, 0] = value

    handles = [
        module.register_forward_hook(overflow) for name, module in backbone.unet.named_modules() if name.endswith("attn1.to_q")
    ]
    try:
        words = ("NaN", "float32", "--dtype float32", "bfloat16")
        refusal(*words, call=frame_features, backbone=backbone, frames=clip.frames[:2], settings=settings)
    finally:
        for handle in handles:
            handle.remove()
