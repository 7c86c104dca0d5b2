"""The README is short, its commands and code run, and its scores are measured; commands of all pages can be given."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import animate_overlay
import numpy as np
import pytest
import stubs
from document_rules import CODE, commands, documents
from PIL import Image

import vidseg_core
from vidseg_core import Settings, VidSeg, cli, sample_clip
from vidseg_core.io.masks import read_mask
from vidseg_core.io.overlay import encode_video

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def test_it_is_read_in_a_few_minutes():
    assert 500 < len(README.split()) <= 900
    assert len(tables(README)) <= 2


def test_its_code_is_not_cut_off():
    """The book shows about 80 characters of a line."""
    lines = [line for code in CODE.findall(README) for line in code.splitlines()]
    assert len(lines) > 30 and max(map(len, lines)) <= 80


def test_its_first_screen_says_what_was_not_run():
    first = README.split("## ")[0]
    assert "**Status.**" in first and "make gpu-check" in first and "docs/cup.webp" in first


def test_its_scores_are_those_of_the_tables():
    scores = set(re.findall(r"\d+\.\d\b", "".join(tables(README))))
    measured = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    assert len(scores) > 10 and scores <= set(re.findall(r"\d+\.\d\b", measured))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which the README's commands can be given: nothing that they write reaches the project."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run(checkout, monkeypatch, capsys):
    stubs.install(monkeypatch.setattr)
    given = [words for words in commands(README) if "CLIP" not in words]  # that is for the reader's own
    assert [words[0] for words in given] == ["segment", "segment", "export", "evaluate"]
    for words in given:
        assert cli.main([*words, *(["--method", "stub"] if words[0] == "evaluate" else [])]) == 0, capsys.readouterr().err


def test_its_code_runs(checkout, monkeypatch):
    cup, small = sample_clip("cup"), Settings(working_size=(48, 64))
    fewer = SimpleNamespace(frames=cup.frames[:28, ::4, ::4], masks={n: mask[::4, ::4] for n, mask in cup.masks.items()})
    monkeypatch.setattr(vidseg_core, "VidSeg", partial(VidSeg, settings=small), raising=False)
    monkeypatch.setattr(vidseg_core, "sample_clip", {"cup": fewer}.__getitem__, raising=False)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    masks = sorted((checkout / "outputs" / "cup-python" / "masks").iterdir())
    assert len(masks) == 28 and set(np.unique(read_mask(masks[27]))) <= set(np.unique(cup.masks[0]))


def is_accepted(words):
    """Whether a command and its options exist; a command named alone is asked for its help. Nothing is run."""
    try:
        cli._parser().parse_args([*words, *(["--help"] if len(words) == 1 else [])])
    except SystemExit as end:
        return end.code == 0
    return True


@pytest.mark.parametrize("words", [words for _, text in documents(ROOT) for words in commands(text)], ids=" ".join)
def test_a_command_of_any_page_can_be_given(words):
    assert is_accepted(words)


@pytest.mark.parametrize(
    ("text", "found", "accepted"),
    [
        ("Say `vidseg models` or", ["models"], True),
        ("so:\n\n    python -m vidseg_core segment c.mp4 \\\n        --clusters K  # few\n",
         ["segment", "c.mp4", "--clusters", "2"], True),
        ("`vidseg evaluate`", ["evaluate"], True),
        ("`vidseg segment --help`", ["segment", "--help"], True),
        ("`vidseg segmnet`", ["segmnet"], False),
        ("```\nvidseg segment c.mp4 --cluster-count 3\n```", ["segment", "c.mp4", "--cluster-count", "3"], False),
    ],
)  # fmt: skip
def test_commands_are_found_and_wrong_ones_seen(text, found, accepted):
    assert commands(text) == [found] and is_accepted(found) == accepted


def test_its_picture_shows_clip_and_overlay(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    for name in ("clip", "overlay"):
        encode_video(frames, 10, tmp_path / f"{name}.mp4")
    animate_overlay.animate(tmp_path / "clip.mp4", tmp_path / "overlay.mp4", tmp_path / "picture.webp")
    with Image.open(tmp_path / "picture.webp") as picture:
        assert (picture.n_frames, picture.size) == (3, (128, 48))
