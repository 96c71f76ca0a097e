"""`python -m fastcifar` is the command `fastcifar`."""

import sys

from fastcifar.cli import main

if __name__ == "__main__":
    sys.exit(main())
