"""Options that name files and folders, before anything is done with them."""

import os
from argparse import Namespace

from vidseg_core.common import InputError

PATHS = {"clip": "CLIP", "list": "--list", "folder": "RUN", "out": "--out", "first_mask": "--first-mask", "names": "--names",
         "settings": "--settings", "model": "--model", "root": "--root"}  # fmt: skip


def expand_paths(options: Namespace) -> None:
    """In place: ~ becomes the home folder, as a shell leaves it as it is in --out=~/x. Raises InputError for an option without
    a word in it, as a shell gives it for a variable that is not set, and for links in a circle."""
    for name, option in PATHS.items():
        value = getattr(options, name, None)
        if isinstance(value, list):
            setattr(options, name, [expand(word, option) for word in value])
        elif value is not None:
            setattr(options, name, expand(value, option))


def expand(word: str, option: str) -> str:
    """One word of an option, as `expand_paths` leaves it."""
    if not word.strip():
        raise InputError(f"{option} is empty: give a file or folder, or leave it out")
    path = os.path.expanduser(word)
    if os.path.islink(os.path.realpath(path)):  # else Path.resolve fails there
        raise InputError(f"{word} leads to itself, as a link to a link can: give another {option}")
    return path
