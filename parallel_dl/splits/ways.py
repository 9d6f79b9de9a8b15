"""The ways to split a layer, by name, and which layers can be split how.

`fc1=output` and `fc1=input` are the survey's words for a fully connected layer (Megatron's column and row), `filters`
and `channels` the same for a convolution; `rows`, `columns` and `rows-columns` cut the image, `towers` gives whole
branches to ranks. A layer without a way of its own follows: it works on what it gets, or has it gathered if it cannot.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from parallel_dl import nn
from parallel_dl.splits.placement import Grid, near_square

ALIASES = {"column": "output", "row": "input", "grid": "rows-columns"}
_GRID = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")  # 2x3: two rows of three tiles


@dataclass(frozen=True)
class Way:
    """How one layer is split: `name`, and with `ending` "split" or "whole" what is to become of its output."""

    name: str
    ending: str | None = None
    grid: Grid | None = None

    @classmethod
    def parse(cls, text: str) -> Way | None:
        """From "output", "output:whole", "output:split", "2x2", ...; None for what is no way."""
        name, *ending = str(text).split(":")
        name = ALIASES.get(name, name)
        if len(ending) > 1 or (ending and (ending[0] not in ("split", "whole") or name not in LEFT_SPLIT)):
            return None
        if found := _GRID.fullmatch(name):
            return cls(name, grid=Grid(int(found[1]), int(found[2])))
        return cls(name, ending[0] if ending else None) if name in NAMES else None

    def __str__(self) -> str:
        return f"{self.name}:{self.ending}" if self.ending else self.name

    def on(self, ranks: int) -> Grid:
        """The grid of the ranks for a way that cuts the image."""
        if self.grid is not None:
            return self.grid
        return {"rows": Grid(ranks, 1), "columns": Grid(1, ranks)}.get(self.name) or near_square(ranks)

    @property
    def cuts_image(self) -> bool:
        """Whether it is rows, columns, rows-columns or 2x3."""
        return self.grid is not None or self.name in IMAGE


IMAGE = ("rows", "columns", "rows-columns")
LEFT_SPLIT = ("output", "filters", "towers")  # those that leave the features or channels split
NAMES = ("output", "input", "filters", "channels", "towers", *IMAGE)

# kind of layer -> the ways it can be split
WAYS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("output", "input"),
    nn.Conv2d: ("filters", "channels", *IMAGE),
    nn.MaxPool2d: IMAGE,
    nn.AvgPool2d: IMAGE,
    nn.Branches: ("towers",),
}
# what somebody who wrote this will have meant
_MEANT = {
    "output": ("filters", "towers"),
    "input": ("channels",),
    "filters": ("output", "towers"),
    "channels": ("input", "filters"),
    "towers": ("filters", "output"),
}


def ways_of(layer: nn.Module) -> tuple[str, ...]:
    """The names of the ways in which this layer can be split; none for a layer that follows."""
    for kind in type(layer).__mro__:
        if kind in WAYS:
            ways = WAYS[kind]
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # each filter sees its own tower's channels only
                return "filters", "towers", *IMAGE
            return ways
    return ()


def nearest(text: str, valid: tuple[str, ...]) -> str:
    """Of the valid ways the one that is most likely meant."""
    name = text.split(":")[0]
    for meant in _MEANT.get(ALIASES.get(name, name), ()):
        if meant in valid:
            return meant
    close = difflib.get_close_matches(name, valid, 1, 0.4)
    return close[0] if close else valid[0]


def can(layer: nn.Module, way: Way) -> bool:
    """Whether this layer can be split in this way."""
    valid = ways_of(layer)
    return way.name in valid or (way.grid is not None and "rows-columns" in valid)
