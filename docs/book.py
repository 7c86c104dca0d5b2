"""What Sphinx and myst-nb need to be told for this book: a small extension of theirs, loaded by conf.py."""

import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
from pathlib import Path

import nbclient
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
CACHES = ROOT / "outputs" / "book-cache"
DEPENDS_ON = ("vidseg_core", "data", "constraints.txt")
TITLES = {"accuracy": "Scores of all methods", "label_free": "Scores without a mask"}
"""Of tables that a benchmark wrote without one."""
ORDER = ("features", "context", "merging", "births", "scene", "correspondence", "tracks", "modulation", "upsample", "edges",
         "paper", "pipeline")  # fmt: skip
"""Of the method's modules; others follow."""
LONG_VALUE = 100
"""Characters of a constant's value that a page still shows."""
MODULES = re.compile(r"^<!-- modules of ([\w.]+) -->$", re.MULTILINE)
TABLES = re.compile(r"^<!-- settings -->$", re.MULTILINE)
ADDRESSES = re.compile(r"^- (.+): `(https://\S+)`$", re.MULTILINE)


def cache_folder() -> Path:
    """Where results of notebooks are kept while nothing that they depend on changes; those of other states are removed."""
    digest = hashlib.sha256()
    for name in DEPENDS_ON:
        for path in sorted(p for p in [ROOT / name, *(ROOT / name).rglob("*")] if p.is_file() and p.suffix != ".pyc"):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = CACHES / digest.hexdigest()[:16]
    for other in CACHES.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Hide the cells tagged `test` of a notebook; put modules and tables in the place of a page's marks for them."""
    if app.env.doc2path(docname).suffix == ".ipynb":
        source[0] = without_tests(source[0])
    elif docname.startswith("benchmarks/") and not source[0].startswith("#"):
        source[0] = f"# {TITLES[Path(docname).name]}\n\n{source[0]}"
    else:
        source[0] = MODULES.sub(lambda found: modules(found[1]), source[0])
        source[0] = TABLES.sub(lambda _: tables(), source[0])
        source[0] = addressed(source[0], os.environ.get("GITHUB_REPOSITORY"))


def without_tests(notebook: str) -> str:
    """A notebook's JSON with the tag `remove-cell` on each cell that has the tag `test`."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        tags = cell["metadata"].get("tags", [])
        cell["metadata"]["tags"] = tags + ["remove-cell"] * ("test" in tags)
    return json.dumps(content)


def addressed(text: str, repository: str | None) -> str:
    """A page for a repository (owner/name): its addresses become links. Without one they stay, as text to be completed."""
    return ADDRESSES.sub(r"- [\1](\2)", text).replace("OWNER/REPO", repository) if repository else text


def modules(package: str) -> str:
    """A section for each module of a package, with the documentation of its members: those of the stages first."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    own = [module.name for module in found if not module.ispkg and module.name != "__main__"]
    own.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    names = [f"{package}.{name}" for name in own]
    return "\n".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n" for name in names)


def tables() -> str:
    """A section for each dataclass of settings: its fields, their defaults and the reasons."""
    from vidseg_core.settings import STAGES, Settings
    from vidseg_core.workbook.tables import settings_table

    whole = f"## Settings\n\n{inspect.getdoc(Settings)}"  # its fields are explained there
    parts = (f"## {k.__name__}\n\n{inspect.getdoc(k)}\n\n{settings_table(k).data}" for k in STAGES.values())
    return "\n\n".join([whole, *parts])


def markdown_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: as reST, code gets double ones, and nothing else has a meaning."""
    lines[:] = rest("\n".join(lines)).split("\n")


def rest(text: str) -> str:
    """Text with code in single backticks as reST."""
    special = re.compile(r"([\\*_|`]|(?<!http)(?<!https)://)")  # an address of another kind is no link
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"`{part}`" if part.startswith("`") else special.sub(r"\\\1", part) for part in parts)


def skip_member(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """What a base class of another package has put into ours stays out."""
    return True if not str(getattr(thing, "__module__", "vidseg_core")).startswith("vidseg_core") else None


def readable_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A default that a dataclass makes anew each time is `...`: Sphinx cannot read the rest after `<factory>`."""
    return signature and signature.replace("<factory>", "..."), returned


def inline_math(writer: nodes.NodeVisitor, node: nodes.math) -> None:
    """A formula within a line as MathML, which browsers show without a script."""
    writer.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def block_math(writer: nodes.NodeVisitor, node: nodes.math_block) -> None:
    """A formula of its own as MathML."""
    writer.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.Element, as_block: bool) -> str:
    """A formula of TeX; one that docutils does not understand is a warning, and so an error of the build."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        LOGGER.warning("formula %s: %s", node.astext(), error, location=node)
        return ""


def keep_remote_pictures_out(app: Sphinx, doctree: nodes.document) -> None:
    """A picture from elsewhere (a badge) becomes its text: the book's pages ask for nothing outside their folder."""
    for picture in [*doctree.findall(nodes.image)]:
        if "://" in picture["uri"]:
            picture.replace_self(nodes.Text(picture.get("alt", "")))


def keep_long_values_out(app: Sphinx, doctree: nodes.document) -> None:
    """Of a constant whose value takes lines only the name and what is said of it stay."""
    for value in [*doctree.findall(addnodes.desc_annotation)]:
        if value.astext().startswith(" = ") and len(value.astext()) > LONG_VALUE:
            value.parent.remove(value)


def break_lines_well(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Where a narrow page may break lines: in long names behind a dot, a line or a stroke; never within a number."""
    if "body" in context:
        context["body"] = broken_well(context["body"])


def broken_well(html: str) -> str:
    """HTML with possible breaks in long code and in titles that are module names, and without any in `1.0 ± 0.2`, `3 GB`."""
    html = re.sub(
        r'(<span class="pre">|<h[12]>)([^<\s]{14,})(?=<)', lambda m: m[1] + re.sub(r"([._/,=?])", r"\1<wbr>", m[2]), html
    )
    html = re.sub(r"(?<=\d) ± (?=\d)", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", html)
    number = r"<td>(?:<p>)?[-+–]?[\d.,]+(?: [^<>\s]{1,4}){1,2}(?:</p>)?</td>"
    return re.sub(number, lambda m: m[0].replace(" ", "\N{NO-BREAK SPACE}"), html)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    # What widgets hold in the end would be written into every page, a megabyte that nothing reads. There is no setting for it.
    nbclient.NotebookClient.set_widgets_metadata = lambda client: None
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", markdown_docstring)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", keep_remote_pictures_out)
    app.connect("doctree-read", keep_long_values_out)
    app.connect("html-page-context", break_lines_well)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
