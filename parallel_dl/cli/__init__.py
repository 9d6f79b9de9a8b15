"""The command line, one file per command: train, summary, plan, schedule, verify, demo, diff, info, fetch, run."""

from parallel_dl.cli.main import main

__all__ = ["main"]
