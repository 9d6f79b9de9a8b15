"""Branches: parallel parts of a network that get the same input and whose outputs are joined."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from parallel_dl.autograd import ops
from parallel_dl.errors import InputError, unknown_name
from parallel_dl.nn.layers import Layers
from parallel_dl.nn.module import Module
from parallel_dl.nn.operations import Operations, longest_chain
from parallel_dl.nn.shapes import LayerShape, OneSample, Shape, below, layer_shapes, output_shape

JOINS = ("sum", "concatenate")


class Branches(Layers):
    """Gives every branch the same input x, and adds their outputs, or concatenates them along axis 1.

    Branches are named as in `Sequential`: 0, 1, 2, ... for `branches`, and by keyword for `named`. With `join="sum"`,
    the outputs have the same shape and are added in the order of the branches: a branch next to an Identity is a
    residual block (He et al. 2016, arXiv 1512.03385). With `join="concatenate"`, the outputs are (samples, channels or
    features, ...) with shapes equal except along axis 1: the towers of AlexNet (Krizhevsky et al. 2012), the branches
    of Inception (Szegedy et al. 2015, arXiv 1409.4842).

    Raises InputError for no branches, for an unknown join, and in forward for outputs that cannot be joined.
    """

    def __init__(self, *branches: Module, join: str = "sum", **named: Module) -> None:
        super().__init__(*branches, **named)
        if join not in JOINS:
            raise unknown_name("join of branches", str(join), JOINS)
        if not len(self):
            raise InputError("Branches(): needs at least one branch")
        self.join = join

    def forward(self, x: Any) -> Any:
        outputs = [self.call(name, x) for name in self._modules]
        self.joined_shape(x, [output.shape for output in outputs])
        if self.join == "concatenate":
            return ops.concatenate(*outputs, axis=1)
        return functools.reduce(ops.add, outputs)

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the joined output; InputError if the branches do not fit together or a shape is unknown."""
        return output_shape(self, input_shape)

    def layer_shapes(self, input_shape: Shape, name: str = "", measure: bool = False) -> Iterator[LayerShape]:
        """The layers of each branch, then this module, which represents the join. See `nn.layer_shapes`."""
        x, outputs = OneSample(input_shape), []
        for child, branch in self._modules.items():
            output = input_shape
            for passed in layer_shapes(branch, input_shape, below(name, child), measure):
                yield passed
                output = passed.output
            outputs.append((1, *output))
        yield LayerShape(name, self, input_shape, self.joined_shape(x, outputs)[1:])

    def operations(self, input_shape: Shape) -> Operations:
        """For the join alone (the survey has no row for it): a sum of n branches has W = N values (n - 1), D = log2 n.

        Concatenating computes nothing.
        """
        if self.join == "concatenate":
            return Operations(0)
        values = math.prod(output_shape(self[0], input_shape, measure=True))
        return Operations(values * (len(self) - 1), (len(self),))

    def longest_chain(self, depths: Iterator[int]) -> int:
        """The join waits for the deepest branch. See `operations.longest_chain`."""
        return max(longest_chain(branch, depths) for branch in self) + next(depths)

    def joined_shape(self, x: Any, outputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the result, from those of the branches' outputs for input x; InputError if they do not fit."""
        first, *others = map(tuple, outputs)
        if self.join == "sum":
            if any(shape != first for shape in others):
                raise self._misfit(x, outputs, "to be added up, they must have one shape")
            return first
        if len(first) < 2 or any((shape[:1], shape[2:]) != (first[:1], first[2:]) for shape in others):
            raise self._misfit(x, outputs, "to be concatenated, they must be equal but for axis 1")
        return first[0], sum(shape[1] for shape in map(tuple, outputs)), *first[2:]

    def _misfit(self, x: Any, outputs: Sequence[tuple[int, ...]], needs: str) -> InputError:
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(self._modules, outputs))
        return self.input_error(x, f"of which the branches make {shapes}: {needs}")

    def describe(self) -> str:
        return self.join
