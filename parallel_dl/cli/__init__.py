"""The command line, one file per command: train, summary, demo, info, fetch, run."""

from parallel_dl.cli.main import main

__all__ = ["main"]
