"""Starts a script on some number of ranks, in a folder of its own, and reads what the ranks have written down."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from parallel_dl.equivalence.scripts.files import FOLDER_VARIABLE, Update, read
from parallel_dl.launch.environment import finding_us

_RECORDING = "parallel_dl.equivalence.scripts.recording"
_START = """import sys
from parallel_dl import launch
ranks, seconds, *program = sys.argv[1:]
sys.exit(launch.run(int(ranks), program, timeout=float(seconds)))
"""
_MOST_COPIED = 1 << 24  # bytes of a file that is copied; larger ones are linked to
_LAST_LINES = 20


@dataclasses.dataclass
class ScriptRun:
    """What came of one run."""

    ranks: int
    status: int
    output: str
    """what it printed, on both streams"""
    updates: list[list[Update]]
    """rank -> its updates, in order"""

    @property
    def said(self) -> str:
        """The launcher's line about a failure."""
        start = "parallel-dl: "
        found = [line for line in self.output.splitlines() if line.startswith(start) and "ended" in line]
        return found[-1].removeprefix(start).partition("; ended the other ranks")[0] if found else ""

    @property
    def last_lines(self) -> list[str]:
        """The end of its output."""
        return self.output.rstrip().splitlines()[-_LAST_LINES:]


def run_script(
    script: str,
    arguments: Sequence[str],
    ranks: int,
    folder: Path,
    steps: int | None = None,
    timeout: float = 600.0,
    nudge: bool = False,
) -> ScriptRun:
    """Runs the script on this many ranks for at most `steps` updates, with `folder` for all that it writes.

    The script finds there what is in the current folder: copies of files, and links to folders and to large files.
    """
    place = folder / "files"
    _populate(place)
    record = folder / "record"
    record.mkdir()
    environment = {**os.environ, **finding_us(), FOLDER_VARIABLE: str(record)}
    environment.setdefault("PARALLEL_DL_CHECKED", "1")
    if steps is not None:
        environment["PARALLEL_DL_RECORD_STEPS"] = str(steps)
    if nudge:
        environment["PARALLEL_DL_RECORD_NUDGE"] = "1"
    program = ["-m", _RECORDING, os.path.abspath(script), *arguments]
    with open(folder / "output", "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _START, str(ranks), str(timeout), *program],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    text = (folder / "output").read_text(errors="replace")
    return ScriptRun(ranks, ended.returncode, text, read(record))


def _populate(place: Path) -> None:
    """Makes the folder that a run works in: what it changes there does not change what is here."""
    place.mkdir(parents=True)
    for entry in os.scandir("."):
        target = place / entry.name
        if entry.is_file() and entry.stat().st_size <= _MOST_COPIED:
            shutil.copy2(entry.path, target)
        else:
            target.symlink_to(os.path.abspath(entry.path))
