"""The cost of a layer's forward pass: work and depth, which each layer gives in its method `operations`.

After Ben-Nun and Hoefler, "Demystifying Parallel and Distributed Deep Learning", arXiv 1802.09941, sections 2.2 and 4:
the work W is the number of operations, the time on one processor; the depth D is the longest chain of operations that
wait for each other, the time on infinitely many. The sum of n terms has n operations and, as a balanced tree, depth
ceil(log2 n).

A multiplication with its addition counts as one operation; so does each value of an element-wise layer. Biases are
parameters, but their additions are not counted. Convolutions are counted by the definition, including the zeros of the
padding, whatever method computes them (`parallel_dl.convolution` counts the other methods). Layers that behave
differently in training (dropout, batch norm) are counted as in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parallel_dl.nn.module import Module
from parallel_dl.nn.shapes import says


@dataclass(frozen=True)
class Operations:
    """The operations of a layer for one sample."""

    work: int
    """the number of operations"""
    sums: tuple[int, ...] = ()
    """the numbers of terms of the sums that depend on each other; empty for an element-wise layer"""
    multiply_adds: int = 0
    """the operations that are products of inputs and weights"""
    over_samples: bool = False
    """whether a sum over all samples of the batch is among those that depend on each other"""

    def depth(self, samples: int = 1) -> int:
        """The longest chain of operations for this many samples: 0 without any, otherwise at least 1."""
        if not self.work:
            return 0
        return max(1, sum(map(tree, self.sums)) + (tree(samples) if self.over_samples else 0))


def tree(terms: int) -> int:
    """Depth of a sum of this many terms: ceil(log2 terms)."""
    return max(0, terms - 1).bit_length()


def longest_chain(network: Module, depths: Iterator[int]) -> int:
    """The depth of the network, whose layers' are the next of `depths`, in the order of `layer_shapes`.

    A container defines a method `longest_chain(depths)`; any other module counts as one layer.
    """
    container: Any = network
    return container.longest_chain(depths) if says(network, "longest_chain") else next(depths)
