"""That all processes compute with the same: the versions that decide a result."""

import hashlib
import platform
from functools import cache
from pathlib import Path

from vidseg_core.common import InputError
from vidseg_core.io.provenance import PACKAGES, installed_version

Versions = dict[str, str]
"""By the package's name."""
ROOT = Path(__file__).parents[1]


@cache
def versions_here() -> Versions:
    """Those of this process. That of vidseg_core is a hash of its code: two checkouts may have one number."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    others = {name: installed_version(name) for name in PACKAGES[1:]}
    return {"vidseg_core": f"of code {digest.hexdigest()[:8]}", "python": platform.python_version(), **others}


def check_versions(wanted: Versions, there: Versions, who: str) -> None:
    """Raises InputError if `who` ("worker tcp://10.0.0.2:4000") has other versions than `wanted`; it names the first."""
    for name, version in wanted.items():
        if there.get(name) != version:
            raise InputError(
                f"the {who} has {name} {there.get(name)}, but this process {version}: results could differ, so "
                "install the same everywhere"
            )
