"""Tables of the settings, made from the dataclasses: each field, its default, and the reason that stands below it."""

import ast
import inspect
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from IPython.display import Markdown


def settings_table(kind: type) -> Markdown:
    """The fields of a dataclass of settings with their defaults and the text below each, as a table that a notebook shows."""
    reasons = field_docs(kind)
    plain = [f for f in fields(kind) if f.default is not MISSING and not is_dataclass(f.default)]
    rows = [f"| `{f.name}` | {_code(f.default)} | {reasons.get(f.name, '')} |" for f in plain]
    return Markdown("\n".join(["| setting | default | what it does, and why |", "|---|---|---|", *rows]))


def field_docs(kind: type) -> dict[str, str]:
    """The strings that follow the fields of a class in its source, each on one line, by field."""
    (body,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        named.target.id: " ".join(text.value.value.split()).replace("|", r"\|")
        for named, text in pairs
        if isinstance(named, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _code(value: Any) -> str:
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
