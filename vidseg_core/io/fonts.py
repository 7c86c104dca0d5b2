"""Fonts for names in any script: matplotlib's own has no Chinese, and warns once a character."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

OWN = "DejaVu Sans"


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Families that together show `texts`, matplotlib's own first; one warning if this machine has none for some characters."""
    lacking = {ord(c) for text in texts for c in text if c.isprintable()}
    lacking -= _characters(findfont(FontProperties(OWN)))
    families = [OWN]
    for entry in sorted(fontManager.ttflist, key=_plainness):
        if not lacking:
            break
        if found := lacking & _characters(entry.fname):
            lacking -= found
            families.append(entry.name)
    if lacking:
        _warn("".join(map(chr, sorted(lacking)[:5])))
    return families


@cache
def _warn(characters: str) -> None:
    """Once: Python forgets what it has warned of wherever filters of warnings change, as they do in matplotlib."""
    warnings.warn(f"no font on this machine has {characters!r}: install one, such as Noto Sans CJK for Chinese", stacklevel=4)


def _plainness(entry: Any) -> tuple[bool, bool, str]:
    """Upright fonts of normal weight come first."""
    return entry.style != "normal", entry.weight not in (400, "normal", "regular"), entry.name


@cache
def _characters(path: str) -> set[int]:
    """The code points that a font file has; none of one that cannot be read, such as many with coloured pictures."""
    try:
        return set(get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return set()


@contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """`fonts_for` has said it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield
