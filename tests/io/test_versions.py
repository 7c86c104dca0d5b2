"""Settings that version 0.1 wrote still load, and mean the same."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vidseg_core import InputError, Settings, reference_settings
from vidseg_core.io.versions import current_settings
from vidseg_core.models.registry import MODELS

WRITTEN = json.loads(Path(__file__).with_name("settings_0.1.json").read_text(encoding="utf-8"))
"""What `Settings.to_dict` of version 0.1 gave for its defaults and for the paper's."""


def as_before(settings):
    """What has another default since, or came since: as version 0.1 did it."""
    return replace(
        settings,
        features=replace(settings.features, scales=(1.0,)),
        context=replace(
            settings.context, num_segments=None, births=0, size_weight=1.0, max_context=settings.context.max_context and 4096
        ),
        refine=replace(settings.refine, radius=1, temperature=0.15),
        upsample=replace(
            settings.upsample,
            difference="two-sided",
            edges=0.0,
            peak=settings.upsample.peak if settings.upsample.strategy == "reference" else 0.99,
            strength=10.0 if settings.upsample.strength == MODELS["tiny"].strength else settings.upsample.strength,
        ),
        working_size=None,  # the sides of the clip
    )


@pytest.mark.parametrize("model", ["tiny", "sd21-base", "svd"])
def test_defaults_and_the_papers_settings_mean_what_they_meant(model):
    before = copy.deepcopy(WRITTEN)
    assert Settings.from_dict(current_settings(WRITTEN[f"{model} default"])) == as_before(Settings().resolve(MODELS[model]))
    assert Settings.from_dict(current_settings(WRITTEN[f"{model} reference"])) == as_before(reference_settings(model))
    assert before == WRITTEN, "what was read is left as it was"


@pytest.mark.parametrize("settings", [Settings(), reference_settings("svd")])
def test_todays_settings_are_left_alone(settings):
    assert current_settings(settings.to_dict()) == settings.to_dict()
    assert current_settings([1]) == [1] and current_settings({"upsample": {"strategy": "reference"}}) == {
        "upsample": {"strategy": "reference"}
    }


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("features", {"padding": 32}, "features.padding is 32"),
        ("context", {"max_iterations": 10}, "max_iterations is 10"),
        ("upsample", {"blur_sigma": 1.0}, "blur_sigma is 1.0"),
        ("refine", {"method": "tracks", "anchor": "frame0"}, "refine mixes"),
        ("upsample", {"strategy": "reference", "response": "jpeg", "damping": 0.0}, "upsample mixes"),
        ("upsample", {"response": "jpeg"}, "both or none"),
    ],
)
def test_what_is_not_computed_any_more_is_refused(part, changes, words):
    old = copy.deepcopy(WRITTEN["tiny default"])
    old[part] |= changes
    with pytest.raises(InputError, match=words):
        current_settings(old)


def test_tracks_and_the_guided_schedule_of_before():
    old = copy.deepcopy(WRITTEN["tiny default"])
    old["refine"] |= {"method": "tracks", "majority": 0.5}
    old["upsample"] |= {"strategy": "reference", "start_step": 20}
    settings = Settings.from_dict(current_settings(old))
    assert (settings.refine.method, settings.refine.majority) == ("tracks", 0.5)
    assert (settings.upsample.strategy, settings.paper.start_step) == ("guided", 20)


@pytest.mark.parametrize("part", ["features", "context", "refine", "upsample"])
@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_what_is_no_settings_is_refused_in_a_sentence(part, value):
    old = copy.deepcopy(WRITTEN["tiny default"]) | {part: value}
    with pytest.raises(InputError):
        Settings.from_dict(current_settings(old))
    with pytest.raises(InputError, match="paper, of a later one"):
        current_settings(WRITTEN["tiny default"] | {"paper": {"steps": 3}})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"seed": 1.0}, "seed is 1.0; give a whole number"),
        ({"seed": True}, "seed is True; give a whole number"),
        ({"window": "14"}, "window is '14'; give a whole number"),
        ({"working_size": [64.5, 48]}, r"working_size is \[64.5, 48\]; give a list of whole numbers or 'clip' or null"),
        ({"features": {"blocks": 5}}, "features.blocks is 5; give a list of texts or null"),
        ({"features": {"blocks": [5]}}, r"features.blocks is \[5\]; give"),
        ({"features": {"timestep": "low"}}, "features.timestep is 'low'; give a number or null"),
        ({"features": {"scales": ["a"]}}, r"features.scales is \['a'\]; give a list of numbers or null"),
        ({"condition": {"prompt": 5}}, "condition.prompt is 5; give text"),
        ({"upsample": {"strength": "x"}}, "upsample.strength is 'x'; give a number or null"),
        ({"context": {"memory": ["window"]}}, r"context.memory is \['window'\]; give 'anchored' or 'window'"),
        ({"paper": {"guidance": ["a", 2]}}, r"paper.guidance is \['a', 2\]; give a number or a list of numbers or null"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(data, words):
    """As somebody writes them who edits a run.json."""
    with pytest.raises(InputError, match=words):
        current_settings(data)


@pytest.mark.parametrize("name", MODELS)
def test_settings_of_every_kind_pass(name):
    for settings in (Settings().resolve(MODELS[name]), Settings(), replace(Settings(), working_size="clip")):
        data = json.loads(json.dumps(settings.to_dict()))
        assert current_settings(data) == data and Settings.from_dict(data) == settings
