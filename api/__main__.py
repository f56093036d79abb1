"""``python -m vitrarium`` is the command line."""

import sys

from vitrarium.cli import main

if __name__ == "__main__":
    sys.exit(main())
