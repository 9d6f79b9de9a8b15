"""Serial runs that several layouts are compared with: each is made once, and kept, also for the jobs that follow."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

from parallel_dl.equivalence.runs.reference import Reference
from parallel_dl.equivalence.runs.replayed import program_of
from parallel_dl.layout import Layout
from parallel_dl.nn import Module

Key = tuple[object, ...]


def key_of(name: str, network: Module, layout: Layout) -> Key:
    """What the serial run of an experiment depends on: layouts with one key are compared with the same run."""
    program = program_of(network, layout)
    if program == "weight stashing":
        return name, program, layout.microbatches, layout.pp, *(layout.stages or ())
    if program == "variable batch":
        return name, program, layout.dp, layout.scheme
    if program == "local batch norm":
        return name, program, layout.microbatches, layout.dp
    return name, "bits" if layout.reproducible else program, layout.microbatches


class Kept:
    """References by key, in memory, and in files of `folder`, if there is one, which nobody else writes to."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._made: dict[Key, Reference] = {}

    def get(self, key: Key, make: Callable[[], Reference]) -> Reference:
        """The one with this key, made if nobody has made it yet."""
        if key not in self._made:
            path = self._path(key)
            if path is not None and path.exists():
                self._made[key] = pickle.loads(path.read_bytes())
            else:
                self._made[key] = make()
                if path is not None:
                    path.write_bytes(pickle.dumps(self._made[key], protocol=pickle.HIGHEST_PROTOCOL))
        return self._made[key]

    def _path(self, key: Key) -> Path | None:
        return None if self.folder is None else self.folder / hashlib.sha256(repr(key).encode()).hexdigest()
