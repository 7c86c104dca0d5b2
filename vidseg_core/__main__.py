"""`python -m vidseg_core`: see `cli`."""

import sys

from vidseg_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
