"""`python -m parallel_dl` is the command `parallel-dl`."""

import sys

from parallel_dl.cli import main

if __name__ == "__main__":
    sys.exit(main())
