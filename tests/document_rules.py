"""What README, docs and the notebooks' text name must exist. Each function takes the project's folder."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("vidseg_core", "tests", "notebooks", "docs", "data", "benchmarks", "scripts", ".ci", ".github")
"""What is ours: a path that begins otherwise (`outputs/cup`) is no part of the project."""

DOCUMENTS = ("*.md", "docs/**/*.md", "data/**/*.md", "notebooks/*.ipynb")
SOURCES = (".py", ".ipynb")
PLACEHOLDER = re.compile(r"\b(NAME|FOLDER|DIR|N+)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`|^ {4}[^\n]*$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^[ `]*(?:python -m vidseg_core|vidseg) (?=[a-z-])([^`\n]+)", re.MULTILINE)
"""What stands behind the command's name, on one line."""

MOST_WORDS = 80
"""Of a text cell in a notebook; most have less than 60."""
WIDEST = 80
"""Characters of a line of code in a notebook: the book cuts longer ones off."""


def text_of(path: Path) -> str:
    """A document's Markdown; of a notebook, that of its text cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def too_long_for_a_page(folder: Path) -> list[str]:
    """A line for each text cell and each line of code in the notebooks that is too long."""
    found = []
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            text, where = "".join(cell["source"]), f"{path.stem}, cell {number}"
            if cell["cell_type"] == "markdown" and (words := len(text.split())) > MOST_WORDS:
                found.append(f"{where}: {words} words")
            if cell["cell_type"] == "code" and (width := max(map(len, text.splitlines()), default=0)) > WIDEST:
                found.append(f"{where}: {width} characters")
    return found


def documents(folder: Path) -> Iterator[tuple[Path, str]]:
    for pattern in DOCUMENTS:
        for path in sorted(folder.glob(pattern)):
            if ".ipynb_checkpoints" not in path.parts:
                yield path, text_of(path)


def words_of_code(text: str) -> list[str]:
    """The words that stand between backticks or in indented lines, without quotes and punctuation around them."""
    return [word.strip("`'\"()[]{},;:") for code in CODE.findall(text) for word in code.split()]


def is_there(folder: Path, document: Path, word: str) -> bool | None:
    """Whether the path exists, from the project's folder or the document's own; None: the word is no path of the project."""
    pattern = PLACEHOLDER.sub("*", word).rstrip("/")
    if not re.fullmatch(r"\.?[\w*][\w./*-]*", pattern) or pattern in SOURCES:
        return None
    first, *more = pattern.split("/")
    if not more and pattern.endswith(SOURCES):  # a module by its name alone, in whatever room
        return any(path for name in ("", *FOLDERS) for path in (folder / name).glob(f"{'**/' * bool(name)}{pattern}"))
    if more and first in FOLDERS:
        return any(folder.glob(pattern))
    if more and first in {path.name for path in document.parent.iterdir() if document.parent != folder}:
        return any(document.parent.glob(pattern))
    return None


def missing_paths(folder: Path) -> list[str]:
    """A line for each path in code or in a link that does not exist."""
    found = []
    for document, text in documents(folder):
        where = document.relative_to(folder)
        found += [f"{where}: {word}" for word in words_of_code(text) if is_there(folder, document, word) is False]
        links = [link.split("#")[0] for link in LINK.findall(text) if not re.match(r"\w+:|#", link)]
        found += [f"{where}: {link}" for link in links if not (document.parent / link).exists()]
    return found


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_anchors(folder: Path) -> list[str]:
    """A line for each link to a heading that its page, or the document itself, does not have."""
    found = []
    for document, text in documents(folder):
        for link in LINK.findall(text):
            path, _, anchor = link.partition("#")
            page = document.parent / path if path else document
            if anchor and not re.match(r"\w+:", link) and page.is_file() and anchor not in anchors(text_of(page)):
                found.append(f"{document.relative_to(folder)}: {link}")
    return found


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python -m vidseg_core` or `vidseg` in code, with numbers where the text has N or K."""
    joined = re.sub(r" *\\\n *", " ", text)
    found = [words for code in CODE.findall(joined) for words in COMMAND.findall(code)]
    return [shlex.split(re.sub(r"\b[NK]\b", "2", words), comments=True) for words in found]


def missing_notebooks(folder: Path) -> list[str]:
    """A line for each notebook that is named without its suffix (`03_correspondence`) and does not exist."""
    named = [(d, word) for d, text in documents(folder) for word in words_of_code(text) if re.fullmatch(r"\d\d_[a-z_]+", word)]
    return [f"{d.relative_to(folder)}: {word}" for d, word in named if not (folder / "notebooks" / f"{word}.py").is_file()]


def missing_targets(folder: Path) -> list[str]:
    """A line for each `make TARGET` in code that the Makefile does not have."""
    targets = set(re.findall(r"^([\w-]+):", (folder / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    command = re.compile(r"^[` ]*make ([a-z-]+)", re.MULTILINE)
    named = [(d, word) for d, text in documents(folder) for code in CODE.findall(text) for word in command.findall(code)]
    return [f"{d.relative_to(folder)}: make {word}" for d, word in named if word not in targets]


def missing_names(folder: Path) -> list[str]:
    """A line for each `vidseg_core.x.y` that is neither a module nor something that a module defines."""
    found = []
    for document, text in documents(folder):
        names = re.findall(r"\bvidseg_core(?:\.\w+)+", text)
        paths = (".py", ".md", ".ipynb", ".js")
        found += [f"{document.relative_to(folder)}: {n}" for n in names if not n.endswith(paths) and not defined(folder, n)]
    return found


def defined(folder: Path, name: str) -> bool:
    """Whether a dotted name can be reached, as the files say: modules, what they define or import, members of classes."""
    path, parts = folder, name.split(".")
    while parts and (path / parts[0]).is_dir():
        path = path / parts.pop(0)
    if not parts:
        return True
    module = path / f"{parts[0]}.py"
    path, parts = (module, parts[1:]) if module.is_file() else (path / "__init__.py", parts)
    return has(folder, ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else [], parts)


def has(folder: Path, body: list[ast.stmt], parts: list[str]) -> bool:
    """Whether statements define the first of the names, that one the second, and so on."""
    if not parts:
        return True
    for node in body:
        if parts[0] in bound(node):
            if isinstance(node, ast.ImportFrom) and node.module:
                return defined(folder, ".".join((node.module, *parts)))
            return has(folder, getattr(node, "body", []), parts[1:])
    return False


def bound(node: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return {n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)}
