"""A way to split a layer, as text: `output`, `input:whole`, `2x3`, ...

`fc1=output` and `fc1=input` are the survey's words for a fully connected layer (Megatron's column and row), `filters`
and `channels` the same for a convolution; `rows`, `columns`, `rows-columns` and products like 2x3 cut the image,
`towers` gives whole branches to ranks, `samples` gives each rank a share of the batch.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from parallel_dl.mesh import MeshShape, near_square

ALIASES = {"column": "output", "row": "input", "grid": "rows-columns"}
_GRID = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")  # 2x3: two rows of three tiles
IMAGE = ("rows", "columns", "rows-columns")
LEFT_SPLIT = ("output", "filters", "towers")  # those that leave the features or channels split
# what somebody who wrote this will have meant
_MEANT = {
    "output": ("filters", "towers"),
    "input": ("channels",),
    "filters": ("output", "towers"),
    "channels": ("input", "filters"),
    "towers": ("filters", "output"),
}


@dataclass(frozen=True)
class Way:
    """How one layer is split: `name`, and an `ending`, "split" or "whole", for its output."""

    name: str
    ending: str | None = None
    grid: tuple[int, int] | None = None
    """(rows, columns) where it is a product like 2x3"""

    @classmethod
    def parse(cls, text: str) -> Way | None:
        """Parses "output", "output:whole", "output:split", "2x2", ...; None for anything else."""
        name, *ending = str(text).split(":")
        name = ALIASES.get(name, name)
        if len(ending) > 1 or (ending and (ending[0] not in ("split", "whole") or name not in LEFT_SPLIT)):
            return None
        if found := _GRID.fullmatch(name):
            return cls(name, grid=(int(found[1]), int(found[2])))
        return cls(name, ending[0] if ending else None)

    def __str__(self) -> str:
        return f"{self.name}:{self.ending}" if self.ending else self.name

    @property
    def rule(self) -> str:
        """The name under which the rule is registered: one for all that cut the image."""
        return "image" if self.cuts_image else self.name

    @property
    def cuts_image(self) -> bool:
        """Whether it is rows, columns, rows-columns or 2x3."""
        return self.grid is not None or self.name in IMAGE

    def mesh(self, ranks: int) -> MeshShape:
        """The ranks of the model axis as this way of cutting the image needs them: one line, or rows x columns."""
        lines = {"rows": (ranks, 1), "columns": (1, ranks)}
        rows, columns = self.grid or lines.get(self.name) or near_square(ranks)
        if 1 in (rows, columns):
            return MeshShape(model=ranks)
        return MeshShape(model=ranks).refine("model", rows=rows, columns=columns)


def nearest(text: str, valid: tuple[str, ...]) -> str:
    """Of the valid ways the one that is most likely meant."""
    name = text.split(":")[0]
    for meant in _MEANT.get(ALIASES.get(name, name), ()):
        if meant in valid:
            return meant
    close = difflib.get_close_matches(name, valid, 1, 0.4)
    return close[0] if close else valid[0]
