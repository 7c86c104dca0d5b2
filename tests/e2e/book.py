"""A book to look at: the whole one where `make book` has built it, or one of a single small notebook; and a server for it."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

from e2e.lab import ROOT

WHOLE = ROOT / "outputs" / "book"
CODE = """
import ipywidgets
import numpy as np
from vidseg_core.io.overlay import Drawing, panel
from vidseg_core.workbook.widgets import Explorer, choice, pick, slider

def draw(light, row, column, tone, word):
    figure = Drawing(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    panel(left, np.full((40, 60, 3), light / 9), tone)
    picture = np.zeros((40, 60, 3))
    picture[5 * row : 5 * row + 5, 5 * column : 5 * column + 5] = 1
    panel(right, picture, f"{row}, {column}", name="map")
    return figure, {}

Explorer(
    draw, lambda name, x, y: pick((8, 12), (40, 60), x, y),
    [{"light": range(0, 10, 3), "tone": ("low", "high")}, {"row": (1, 6), "column": (2, 9)}, {"light": (5,)}],
    light=slider("light", 3, 0, 9), row=slider("row", 3, 0, 7),
    column=slider("column", 5, 0, 11), tone=choice("tone", "low", ["low", "high"]),
    word=ipywidgets.Text("no field on a page", description="word"),
)
"""


def build_small_book(folder: Path) -> Path:
    """A book of one notebook with the project's own configuration, built below `folder`; returns its pages' folder."""
    project, pages = folder / "project", folder / "pages"
    shutil.copytree(ROOT / "docs", project / "docs", ignore=shutil.ignore_patterns("*.md", "*.png", "__pycache__"))
    (project / "docs" / "index.md").write_text("# Small\n\n```{toctree}\n../notebooks/small\n```\n", encoding="utf-8")
    cells = [
        nbformat.v4.new_markdown_cell("# Small\n\n$$\\hat z = \\sqrt{\\sigma_t}$$\n\n![badge](https://example.org/badge.svg)"),
        nbformat.v4.new_code_cell(CODE),
        nbformat.v4.new_code_cell("assert 'hidden' != 'seen'", metadata={"tags": ["test"]}),
    ]
    (project / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "notebooks" / "small.ipynb")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", "-d", folder / "doctrees", ".", pages]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, cwd=project, check=True, env=os.environ | {"PYTHONPATH": path})
    return pages


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which the files of a folder are served."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
