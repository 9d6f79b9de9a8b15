"""Updates between microbatches, a pass: another computation than a serial run."""

from __future__ import annotations

from collections.abc import Iterable

Compute = tuple[int, str, int]  # stage, kind, microbatch
Programs = list[list[Compute]]


def with_updates_between(programs: Iterable[Iterable[Compute]]) -> Programs:
    """The programs with an update of the stage's weights after each backward (B, or W)."""
    return [
        [
            action
            for stage, kind, j in program
            for action in [(stage, kind, j), *([(stage, "U", j)] if kind in "BW" else [])]
        ]
        for program in programs
    ]
