"""What a rank writes down at each update of its optimizer, in a folder: one file for each update, NumPy's format."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FOLDER_VARIABLE = "PARALLEL_DL_RECORD"
"""the folder that the ranks write to"""

BEFORE, LOCAL, GRADIENT, WEIGHT, WATCHED = "before", "local", "gradient", "weight", "watched"
"""kinds of arrays: weights before the update, gradients as backward left them, and as the update took them; weights
after it; what the program gave to `watch`"""


@dataclasses.dataclass
class Part:
    """Which part of a whole array a rank has."""

    whole_shape: tuple[int, ...]
    piece: tuple[tuple[int, int], ...] = ()
    """(start, stop) along the first axes; empty for the whole"""
    state: str = "replicated"
    """"replicated", "partial" (a summand), or "shard" """
    axis: int = 0
    """of a shard whose place is not known: along which axis the ranks' shards follow each other"""


@dataclasses.dataclass
class Update:
    """One update on one rank."""

    arrays: dict[str, np.ndarray]
    """"KIND/NAME" -> values"""
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    """name -> which part of it this rank has"""
    losses: list[float] = dataclasses.field(default_factory=list)
    """of the backward passes since the last update"""
    samples: list[int] = dataclasses.field(default_factory=list)
    """a number for each sample that went through the network since the last update, made of its values"""
    evaluated: list[int] = dataclasses.field(default_factory=list)
    """the same of those for which no gradient was wanted"""
    calls: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    """collectives between the last backward pass and the update, and between the update before and the first one"""
    frozen: list[str] = dataclasses.field(default_factory=list)
    """parameters of the optimizer without a gradient"""

    def of_kind(self, kind: str) -> dict[str, np.ndarray]:
        """Name -> values of one kind."""
        start = f"{kind}/"
        return {key[len(start) :]: array for key, array in self.arrays.items() if key.startswith(start)}


def begin(folder: str, rank: int) -> Path:
    """Makes the folder of a rank, which may never make an update."""
    path = Path(folder, f"rank-{rank}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(folder: str, rank: int, number: int, update: Update) -> None:
    """Writes one update; it is there as a whole, or not at all."""
    told: dict[str, Any] = dataclasses.asdict(update)
    del told["arrays"]
    path = begin(folder, rank)
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    with open(path / "writing", "wb") as file:
        arrays: dict[str, Any] = {**update.arrays, "told": text}
        np.savez(file, **arrays)
    os.replace(path / "writing", path / f"{number:06}.npz")


def read(folder: str | os.PathLike[str]) -> list[list[Update]]:
    """Rank -> its updates, in order."""
    found: list[list[Update]] = []
    while (path := Path(folder, f"rank-{len(found)}")).is_dir():
        found.append([_read(file) for file in sorted(path.glob("*.npz"))])
    return found


def _read(path: Path) -> Update:
    with np.load(path, allow_pickle=False) as stored:
        arrays: Mapping[str, np.ndarray] = {name: stored[name] for name in stored.files}
    told = json.loads(bytes(arrays["told"]))
    told["parts"] = {
        name: Part(tuple(one["whole_shape"]), tuple(map(tuple, one["piece"])), one["state"], one["axis"])
        for name, one in told["parts"].items()
    }
    return Update({name: array for name, array in arrays.items() if name != "told"}, **told)
