"""Settings: frozen, complete, JSON in and out, refused where they make no sense; the environment files agree."""

import json
import re
import tomllib
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import pytest

from vidseg_core import (
    ContextSettings,
    FeatureSettings,
    InputError,
    PaperSettings,
    RefineSettings,
    Settings,
    UpsampleSettings,
    reference_settings,
)
from vidseg_core.models.registry import MODELS, TINY

ROOT = Path(__file__).parents[1]


def test_resolving_leaves_nothing_open():
    """Every None that differs by model is filled; what was given stays."""
    for model in MODELS.values():
        resolved = Settings(upsample=UpsampleSettings(strength=7.0)).resolve(model)
        parts = (resolved.features, resolved.upsample, resolved.paper)
        open_fields = [k for part in parts for k, v in asdict(part).items() if v is None]
        assert not open_fields and resolved.upsample.strength == 7.0 and resolved.features.blocks == model.blocks


@pytest.mark.parametrize("settings", [Settings(), reference_settings("tiny"), Settings(working_size=(96, 128)).resolve(TINY)])
def test_json_in_and_out(settings):
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().seed = 1


def test_the_reference_is_what_field_says():
    s = reference_settings("sd21-base")
    assert (s.window, s.context.num_clusters, s.context.restarts, s.context.neighbours, s.context.max_context) == (
        14,
        20,
        10,
        4,
        None,
    )
    p = s.paper
    assert (p.steps, p.start_step, p.blend_until, p.guidance, s.upsample.strength) == (25, 22, 23, 5.0, 50.0)
    assert s.features.blocks == tuple(f"up_blocks.2.attentions.{n}" for n in range(3)) and s.features.timestep == 39
    assert s.features.match_blocks == ("up_blocks.2.attentions.1",) and s.features.combine == "mean"
    assert s.upsample.block == "up_blocks.2.attentions.1.transformer_blocks.0.attn2"
    assert (s.context.naming, s.context.memory, s.working_size) == ("clusters", "window", "clip")
    assert {s.features.schedule, s.refine.method, s.upsample.strategy} == {"reference"}
    assert {reference_settings(name).features.normalise for name in MODELS} == {"max"}
    video = reference_settings("svd")
    assert (video.paper.start_step, video.paper.blend_until, video.paper.guidance) == (17, 24, (1.0, 2.5))
    assert video.upsample.block == "up_blocks.2.attentions.2.transformer_blocks.0.attn1", "self-attention of output block 8"
    assert (s.condition.prompt, s.condition.fps, s.condition.motion_bucket, s.condition.noise_augmentation) == (
        "",
        14,
        127,
        0.02,
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ContextSettings(num_clusters=0), "num_clusters is 0"),
        (lambda: ContextSettings(num_clusters=4, num_segments=5), "5 segments.*4 clusters"),
        (lambda: FeatureSettings(chunk=0), "chunk is 0"),
        (lambda: RefineSettings(max_jump=-1), "max_jump is -1"),
        (lambda: ContextSettings(births=-1), "births is -1"),
        (lambda: ContextSettings(num_segments=True), "num_segments is True"),
        (lambda: UpsampleSettings(edges=float("inf")), "edges is inf"),
        (lambda: FeatureSettings(scales=(1.0, float("nan"))), "scales is"),
        (lambda: RefineSettings(reach=-1), "reach is -1"),
        (lambda: RefineSettings(temperature=0), "temperature is 0"),
        (lambda: ContextSettings(max_context=159), "160 tokens"),
        (lambda: ContextSettings(max_context=79, memory="window"), "80 tokens"),
        (lambda: RefineSettings(majority=1.5), "majority is 1.5"),
        (lambda: UpsampleSettings(damping=-0.1), "damping is -0.1"),
        (lambda: PaperSettings(start_step=25), "start_step is 25"),
    ],
)
def test_senseless_values_are_refused(make, words):
    part = make()
    name = type(part).__name__.removesuffix("Settings").lower().replace("feature", "features")
    with pytest.raises(InputError, match=words):
        Settings(**{name: part})


def test_unknown_names_and_choices_are_refused():
    with pytest.raises(InputError, match=r"'clusters'.*num_clusters"):
        Settings.from_dict({"context": {"clusters": 3}})
    with pytest.raises(InputError, match="frame"):
        Settings.from_dict({"working_size": "frame"})
    with pytest.raises(InputError, match="median"):
        Settings.from_dict({"features": {"combine": "median"}})
    for data in ({"refine": {"method": None}}, {"refine": {"method": ["none"]}}, {"upsample": {"strategy": ["direct"]}}):
        with pytest.raises(InputError, match=r"is not a choice|kind"):
            Settings.from_dict(data)
    for data in ([1], {"window": "14"}, {"features": None}):
        with pytest.raises(InputError, match=r"object|kind"):
            Settings.from_dict(data)


def test_conda_and_pip_agree():
    """environment.yml has the names and bounds of pyproject.toml, and constraints.txt satisfies them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(re.split("(?=>=)", d) for d in project["dependencies"] + project["optional-dependencies"]["test"])
    lines = re.findall(r"^  - ([a-z-]+)(>=[\d.]+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    conda = {{"pytorch": "torch", "matplotlib-base": "matplotlib"}.get(name, name): bound for name, bound in lines}
    assert conda.pop("python") == project["requires-python"] and conda == wanted
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    version = lambda text: tuple(map(int, re.findall(r"\d+", text)))  # noqa: E731
    for name, bound in wanted.items():
        assert name not in pins or version(pins[name]) >= version(bound), name
    assert replace(Settings(), seed=1) != Settings()
