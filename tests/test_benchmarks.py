"""What the README's figures come from still runs; the figures themselves are made by hand, on an idle machine."""

import importlib
from pathlib import Path

import full_size_memory
import pytest

from vidseg_core.registry import MODELS

BENCHMARKS = sorted(p.stem for p in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", ["sd21-base", "svd"])
def test_memory_is_counted_at_full_size(name):
    """Two frames of 128x128: less than for the registry's figures, and weights as many as the registry says."""
    gb = full_size_memory.measure(name, 2, (128, 128))
    assert gb["weights"] > 2 * MODELS[name].parameters[0] / 1000
    for how, limit in zip(("direct", "reference"), MODELS[name].memory_gb, strict=True):
        assert 0 < gb[how] < limit - gb["weights"]
