"""A step of a plan: one layer, how it is done, and what each rank has before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallel_dl import nn
from parallel_dl.mesh import Path, Placement, Shape
from parallel_dl.splits.rule import Division
from parallel_dl.splits.way import Way


@dataclass(frozen=True)
class Step:
    """One layer: what it is, how it is done, and what each rank has before and after it."""

    name: str
    layer: nn.Module
    way: Way | None
    input: Shape
    """of one sample, whole"""
    output: Shape
    before: Placement
    """the placement of the incoming input"""
    arrive: Path
    """the moves from there to where the layer wants it"""
    division: Division
    after: Placement
    """the placement of its output for the next layer"""
    depart: Path = ()
    """the moves to there from where the layer's own maths leaves it"""
    constant: bool = False
    """its input is the network's own, which has no gradient: nothing is sent for it"""
    owner: int | None = None
    """the only rank that runs it, for a layer inside a branch that one rank has"""

    @property
    def weights(self) -> dict[str, Placement]:
        """Attribute of the layer -> its placement, of those that are not invariant."""
        finish = self.division.finish
        return {**self.division.weights, **(finish.weights(self.after) if finish else {})}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter, Placement | None]]:
        """(name in the network, parameter, its placement or None) of each parameter of the layer itself."""
        if isinstance(self.layer, nn.Branches):
            return
        weights = self.weights
        for name, parameter in self.layer.named_parameters():
            yield f"{self.name}.{name}", parameter, weights.get(name)
