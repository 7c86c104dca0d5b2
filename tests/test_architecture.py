"""The house rules: which way imports go, how long the method is, and that what the text names exists. Each rule can fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from document_rules import (
    missing_anchors,
    missing_names,
    missing_notebooks,
    missing_paths,
    missing_targets,
    too_long_for_a_page,
)  # fmt: skip
from source_rules import imports_upwards, text_without_encoding, too_large

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vidseg_core"
HEAVY = ("matplotlib", "sklearn", "av")
LOADED = "import sys; {}; print(*[name for name in sys.argv[1:] if name in sys.modules])"


def write(folder: Path, files: dict[str, str]) -> Path:
    """A made-up package, given by its modules' paths without their suffix, and what they say."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def loaded_by(statement: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has loaded after a statement."""
    command = [sys.executable, "-c", LOADED.format(statement), *HEAVY]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()


# ---- imports

MODULES = [
    "__init__", "__main__", "cli", "common", "settings", "scene", "models/registry", "io/video", "io/files",
    "cluster/door", "evaluation/metrics", "workbook/widgets",
]  # fmt: skip


def test_imports_go_one_way():
    assert imports_upwards(PACKAGE) == []


def test_the_package_is_light_to_import():
    assert loaded_by("import vidseg_core") == []


def test_a_heavy_import_would_be_seen():
    assert loaded_by("import av, sklearn") == ["sklearn", "av"]


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("common", "from vidseg_core.settings import Settings"),
        ("settings", "import vidseg_core.models.registry"),
        ("models/hooks", "from vidseg_core import scene"),
        ("models/hooks", "from ..scene import Scene"),
        ("models/hooks", "from .. import scene"),
        ("scene", "from vidseg_core.io.video import read_frames"),
        ("scene", "from vidseg_core import Settings"),
        ("scene", "def f():\n    from vidseg_core.io import video"),
        ("scene", "if True:\n    from vidseg_core.io import video"),
        ("scene", "if TYPE_CHECKING:\n    pass\nelse:\n    from vidseg_core.io import video"),
        ("io/video", "from vidseg_core.evaluation.metrics import mean_iou"),
        ("scene", "from vidseg_core.cluster.door import Workers"),
        ("cluster/door", "from vidseg_core.evaluation.metrics import mean_iou"),
        ("evaluation/metrics", "from vidseg_core.workbook import widgets"),
        ("workbook/widgets", "from vidseg_core.cli import main"),
        ("__init__", "from vidseg_core.evaluation import metrics"),
        ("models/__init__", "from vidseg_core.scene import Scene"),
        ("cli", "import vidseg_core.__main__"),
    ],
)
def test_an_import_upwards_is_found(tmp_path, module, statement):
    package = write(tmp_path / "vidseg_core", dict.fromkeys(MODULES, ""))
    (found,) = imports_upwards(write(package, {module: statement}))
    assert found.startswith(f"{module}.py:")


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        (
            "scene",
            "from vidseg_core.models.registry import MODELS\nfrom vidseg_core import common\nfrom .settings import Settings",
        ),
        ("scene", "if TYPE_CHECKING:\n    from vidseg_core.io import video"),
        ("scene", "if typing.TYPE_CHECKING:\n    from vidseg_core.io import video"),
        ("io/video", "from .. import scene\nfrom . import files\nimport vidseg_core_of_others.evaluation"),
        ("evaluation/metrics", "from vidseg_core import VidSeg"),
        ("evaluation/metrics", "from vidseg_core.cluster.door import Workers"),
        ("cluster/door", "from vidseg_core import common, scene\nfrom vidseg_core.io import video"),
        ("cli", "def f():\n    import vidseg_core.__main__"),
    ],
)
def test_an_import_downwards_is_none(tmp_path, module, statement):
    package = write(tmp_path / "vidseg_core", dict.fromkeys(MODULES, ""))
    assert imports_upwards(write(package, {module: statement})) == []


# ---- sizes


def test_the_method_is_read_in_an_afternoon():
    assert too_large(PACKAGE) == []


LONG = "x = 1\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({f"m{n}": "" for n in range(16)}, []),
        ({f"m{n}": "" for n in range(19)}, ["19 files"]),
        ({f"m{n}": LONG * 241 for n in range(10)}, ["2410 lines"]),
        ({f"io/m{n}": LONG * 250 for n in range(20)} | {"a": LONG * 250}, []),
        ({"a": LONG * 251}, ["a.py: 251 lines"]),
        ({"a": "def f():\n" + "    x = 1\n" * 39}, []),
        ({"a": "def f():\n" + "    x = 1\n" * 40}, ["a.py:1 f: 41 lines"]),
        ({"a": 'def f():\n    """One.\n\n    Two."""\n' + "    x = 1\n" * 39}, []),
        ({"a": "class A:\n    async def f(self):\n" + "        x = 1\n" * 40}, ["a.py:2 f: 41 lines"]),
        ({"a": "class A:\n    def f(self, a, b, c, d, e, f): ..."}, []),
        ({"a": "def f(a, b, /, c, *d, e, f=1, **g): ..."}, ["a.py:1 f: 7 parameters"]),
        ({"io/a": LONG * 251}, ["io/a.py: 251 lines"]),
        ({"io/a": "def f(a, b, c, d, e, f, g):\n" + "    x = 1\n" * 40}, ["io/a.py:1 f: 41 lines"]),
    ],
)
def test_what_is_too_large_is_found(tmp_path, files, found):
    assert too_large(write(tmp_path, files)) == found


# ---- text files


def test_text_is_utf8_on_every_machine():
    assert text_without_encoding(PACKAGE) == []


@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        ("path.read_text()", True), ("path.read_text(encoding='utf-8')", False), ("path.write_text(text, **UTF8)", False),
        ("open(name)", True), ("open(name, 'w')", True), ("open(name, 'rb')", False), ("path.open()", True),
        ("path.open('w')", True), ("path.open('r+b')", False), ("Image.open(path)", False), ("av.open(str(path), 'w')", False),
    ],
)  # fmt: skip
def test_text_in_another_encoding_is_found(tmp_path, statement, seen):
    assert bool(text_without_encoding(write(tmp_path, {"a": statement}))) == seen


# ---- what the text names


RULES = (missing_paths, missing_anchors, missing_notebooks, missing_targets, missing_names)


@pytest.mark.parametrize("rule", RULES)
def test_what_the_text_names_exists(rule):
    assert rule(ROOT) == []


@pytest.fixture
def project(tmp_path):
    """A project of one module, one clip, one page and one notebook whose text is given."""
    video = "from os import path\nLIMIT = 3\nclass Clip:\n    fps: float\n    def frames(self): ..."
    reexport = "from vidseg_core.io.video import Clip"
    write(tmp_path, {"vidseg_core/io/video": video, "vidseg_core/__init__": reexport, "notebooks/00_overview": ""})
    for name in ("data/clips/cup.mp4", "data/README.md", "docs/page.md", "outputs/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "docs" / "page.md").write_text("# A page\n\n## Part\n")
    (tmp_path / "Makefile").write_text("test: unit\nunit:\n\tpytest\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "README.md",
            "`vidseg_core/io/video.py` `video.py`, `data/clips/*.mp4`; `data/clips/NAME.mp4` `cat data/clips/cup.mp4`",
        ),
        ("README.md", "[a](docs/page.md) ![b](data/clips/cup.mp4) [c](docs/page.md#part) [d](https://x.org/a.py#b)"),
        ("README.md", "## What `x` is, and why\n\n[a](#what-x-is-and-why)"),
        ("README.md", "`outputs/cup` `masks/00000.png` `results.md` `and/or` `/etc/passwd` `x.y`\n\n    run outputs/b 1/2"),
        ("README.md", "`00_overview` `make test`\n\n    make unit  # or make none\n\nmake it so"),
        ("README.md", "vidseg_core.io vidseg_core.io.video.LIMIT `vidseg_core.io.video.Clip.fps`. vidseg_core.Clip.frames()"),
        ("data/README.md", "`clips/cup.mp4` [r](../docs/page.md) `data/clips/`"),
    ],
)
def test_what_exists_is_not_found_missing(project, name, text):
    (project / name).write_text(text)
    assert [line for rule in RULES for line in rule(project)] == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "word"),
    [
        (missing_paths, "README.md", "see `vidseg_core/io/vidoe.py`.", "vidseg_core/io/vidoe.py"),
        (missing_paths, "README.md", "`vidoe.py`,", "vidoe.py"),
        (missing_paths, "README.md", "    python benchmarks/none.py --all", "benchmarks/none.py"),
        (missing_paths, "README.md", "```\npython scripts/none.py\n```", "scripts/none.py"),
        (missing_paths, "README.md", "`data/clips/NAME.mov`", "data/clips/NAME.mov"),
        (missing_paths, "README.md", "![a](docs/none.png)", "docs/none.png"),
        (missing_paths, "docs/page.md", "[a](data/README.md)", "data/README.md"),
        (missing_paths, "data/README.md", "`clips/box.mp4`", "clips/box.mp4"),
        (missing_anchors, "README.md", "[a](docs/page.md#none)", "docs/page.md#none"),
        (missing_anchors, "docs/page.md", "# A page\n\n[a](#none)", "#none"),
        (missing_notebooks, "README.md", "`07_none`", "07_none"),
        (missing_targets, "README.md", "`make tset`", "make tset"),
        (missing_targets, "README.md", "    make lab", "make lab"),
        (missing_names, "docs/page.md", "vidseg_core.video", "vidseg_core.video"),
        (missing_names, "README.md", "`vidseg_core.io.video.Clip.size`", "vidseg_core.io.video.Clip.size"),
    ],
)
def test_what_is_missing_is_found(project, rule, name, text, word):
    (project / name).write_text(text)
    assert rule(project) == [f"{name}: {word}"]


def test_the_text_of_notebooks_is_read(project):
    cells = '{"cells": [{"cell_type": "%s", "source": ["one\\n", "`vidseg_core/none.py`"]}]}'
    for kind, found in (("code", []), ("markdown", ["notebooks/00_overview.ipynb: vidseg_core/none.py"])):
        (project / "notebooks" / "00_overview.ipynb").write_text(cells % kind)
        assert missing_paths(project) == found


# ---- the pages of the book


def test_cells_of_notebooks_are_short():
    assert too_long_for_a_page(ROOT) == []


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("markdown", "word " * 80, []), ("markdown", "word " * 81, ["01_features, cell 1: 81 words"]),
        ("code", "x = 1  #" + "-" * 72, []), ("code", "x = 1\ny = 2  #" + "-" * 73, ["01_features, cell 1: 81 characters"]),
    ],
)  # fmt: skip
def test_a_cell_that_is_too_long_is_found(tmp_path, kind, text, found):
    (tmp_path / "notebooks").mkdir()
    cells = [{"cell_type": "code", "source": []}, {"cell_type": kind, "source": text.splitlines(keepends=True)}]
    for name, own in (("00_overview", cells[:1]), ("01_features", cells)):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": own}))
    assert too_long_for_a_page(tmp_path) == found
