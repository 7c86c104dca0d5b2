"""Options that name files and folders, before anything is done with them."""

import os
from argparse import Namespace

from vidseg_core.common import InputError

PATHS = {"clip": "CLIP", "list": "--list", "folder": "RUN", "out": "--out", "first_mask": "--first-mask", "names": "--names",
         "settings": "--settings", "model": "--model", "root": "--root"}  # fmt: skip


def expand_paths(options: Namespace) -> None:
    """In place: ~ becomes the home folder, as a shell leaves it as it is in --out=~/x. Raises InputError for an option without
    a word in it, as a shell gives it for a variable that is not set."""
    for name, option in PATHS.items():
        value = getattr(options, name, None)
        for word in value if isinstance(value, list) else [] if value is None else [value]:
            if not word.strip():
                raise InputError(f"{option} is empty: give a file or folder, or leave it out")
        if value is not None:
            home = os.path.expanduser
            setattr(options, name, [home(word) for word in value] if isinstance(value, list) else home(value))
