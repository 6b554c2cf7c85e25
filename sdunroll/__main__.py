"""``python -m sdunroll``: the command line."""

import sys

from sdunroll.cli import main

if __name__ == "__main__":
    sys.exit(main())
