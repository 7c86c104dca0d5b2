"""`python -m vidseg_core`: see `cli`."""

import sys

try:
    from vidseg_core.cli import main
except KeyboardInterrupt:  # imports take a moment
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
