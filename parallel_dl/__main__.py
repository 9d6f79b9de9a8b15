"""`python -m parallel_dl` is the command `parallel-dl`, which Ctrl-C ends in one line even while it is imported."""

import sys

from parallel_dl import interrupts


def main() -> int:
    """Imports the command line, which takes a moment, and runs the command that was typed."""
    interrupts.end_at_once("parallel-dl: stopped by SIGINT")
    from parallel_dl.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
