"""The book: docs/ and the executed notebooks as a static site. `make book` builds it into outputs/book.

Sphinx runs with the project's folder as its source, so that links between pages, notebooks and files hold in the book as
they do in the repository.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import book

os.environ["VIDSEG_BOOK"] = "1"  # explorers draw their states beforehand (vidseg_core/workbook/album.py)

project = author = "VidSeg workbook"
project_copyright = "the VidSeg workbook authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "book"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.ipynb", "*.md", "data/**.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "outputs", "runs", "dist", "build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(book.cache_folder())
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # by default from a CDN; explorers bring what they need

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "sphinx_book_theme"
html_title = "VidSeg workbook"
html_static_path = ["_static"]
html_extra_path = ["_root"]
html_favicon = "_static/favicon.svg"
html_css_files = ["book.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_theme_options = {
    "show_toc_level": 2, "use_download_button": True, "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has a field for searching already
}  # fmt: skip
if repository := os.environ.get("GITHUB_REPOSITORY"):  # owner/name, which GitHub's workflows set
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "use_repository_button": True,
        "launch_buttons": {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"},
    }
