"""Multiply-adds, work and depth of one layer's forward pass.

After Ben-Nun and Hoefler, "Demystifying Parallel and Distributed Deep Learning", arXiv 1802.09941, sections 2.2 and 4:
the work W is the number of operations, the time on one processor; the depth D is the longest chain of operations that
wait for each other, the time on infinitely many. The sum of n terms has n operations and, as a balanced tree, depth
ceil(log2 n).

What is counted: a multiplication with its addition is one operation; so is one value of an element-wise layer. Biases
are parameters, but their additions are not counted. Convolutions are those of the definition, zeros of the padding
included, whatever method computes them (`parallel_dl.convolution` counts the others). Layers that differ in training,
dropout and batch norm, are counted as in training.

A layer of the user's own can say its work for one sample by a method `operations(input_shape)`. Without it each of its
weights is taken to be used once per sample, or each value of the input, if it has none: an estimate, by which stages
are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import Shape, kind_among


@dataclass(frozen=True)
class Operations:
    """Of one layer and so many samples."""

    work: int
    """operations for all samples"""
    depth: int
    """the longest chain of them: 0 without operations, else at least 1"""
    multiply_adds: int = 0
    """those for *one* sample that are products of inputs and weights"""


def tree(terms: int) -> int:
    """Depth of a sum of so many terms: ceil(log2 terms)."""
    return max(0, terms - 1).bit_length()


def _chain(*depths: int) -> int:
    """Depth of steps one after the other; a multiplication alone, a sum of one term, is one, too."""
    return max(1, sum(depths))


def _products(per_sample: int, samples: int, *depths: int) -> Operations:
    return Operations(per_sample * samples, _chain(*depths), per_sample)


def _linear(layer: nn.Linear, x: Shape, y: Shape, samples: int) -> Operations:
    """W = N Cin Cout, D = log2 Cin; x may have further axes in front of the features."""
    return _products(math.prod(y) * x[-1], samples, tree(x[-1]))


def _convolution(layer: nn.Conv2d, x: Shape, y: Shape, samples: int) -> Operations:
    """W = N Cout H' W' Cin Ky Kx, D = log2 Cin + log2 Ky + log2 Kx, where a filter sees the Cin of its group."""
    seen, (ky, kx) = x[0] // layer.groups, layer.kernel_size
    return _products(math.prod(y) * seen * ky * kx, samples, tree(seen), tree(ky), tree(kx))


def _pooling(layer: Any, x: Shape, y: Shape, samples: int) -> Operations:
    """W = N C H W, D = log2 Ky + log2 Kx."""
    return Operations(samples * math.prod(x), _chain(*map(tree, layer.kernel_size)))


def _global_pooling(layer: nn.GlobalAvgPool2d, x: Shape, y: Shape, samples: int) -> Operations:
    """As pooling, over the whole image."""
    return Operations(samples * math.prod(x), _chain(*map(tree, x[1:])))


def _response_norm(layer: nn.LocalResponseNorm, x: Shape, y: Shape, samples: int) -> Operations:
    """As pooling over `size` channels (the survey has no row for it): W = N C H W, D = log2 size."""
    return Operations(samples * math.prod(x), _chain(tree(layer.size)))


def _batch_norm(layer: nn.BatchNorm, x: Shape, y: Shape, samples: int) -> Operations:
    """W = N C H W, D = log2 N."""
    return Operations(samples * math.prod(x), _chain(tree(samples)))


def _layer_norm(layer: nn.LayerNorm, x: Shape, y: Shape, samples: int) -> Operations:
    """As batch norm, over the features of a sample: W = N features, D = log2 features."""
    return Operations(samples * math.prod(x), _chain(tree(math.prod(layer.normalized_shape))))


def _elementwise(layer: nn.Module, x: Shape, y: Shape, samples: int) -> Operations:
    """W = N values, D = 1."""
    return Operations(samples * math.prod(x), 1)


def _join(layer: nn.Branches, x: Shape, y: Shape, samples: int) -> Operations:
    """Of n branches (the survey has no row for it): a sum has W = N values (n - 1), D = log2 n; otherwise nothing."""
    if layer.join == "concatenate":
        return Operations(0, 0)
    return Operations(samples * math.prod(y) * (len(layer) - 1), tree(len(layer)))


def _nothing(layer: nn.Module, x: Shape, y: Shape, samples: int) -> Operations:
    return Operations(0, 0)


def _own(layer: Any, x: Shape, y: Shape, samples: int) -> Operations:
    """Of a layer of the user's own: every value of the result is taken to be a sum of as many terms as any other."""
    if callable(getattr(type(layer), "operations", None)):
        per_sample = layer.operations(x)
        if isinstance(per_sample, bool) or not isinstance(per_sample, int) or per_sample < 0:
            raise InputError(
                f"{type(layer).__name__}.operations({x}) gives {per_sample!r}; valid is a whole number, at least 0"
            )
    else:
        per_sample = layer.parameter_count() or math.prod(x)
    if per_sample == 0:
        return Operations(0, 0)
    return Operations(per_sample * samples, _chain(tree(-(-per_sample // max(1, math.prod(y))))))


def weight_matrix(layer: nn.Module) -> Any:
    """Its weights, one for each pair of an output and an input that it sees: a matrix or kernels; else None.

    Normalisations have weights, too, but only one for each channel or feature, which is nothing to move.
    """
    return layer.weight if isinstance(layer, nn.Linear | nn.Conv2d) else None


# kind of layer -> function (layer, shape of a sample before, and after it, samples)
RULES: dict[type[nn.Module], Callable[[Any, Shape, Shape, int], Operations]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.GlobalAvgPool2d: _global_pooling,
    nn.LocalResponseNorm: _response_norm,
    nn.BatchNorm: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Branches: _join,
    **dict.fromkeys((nn.Flatten, nn.Identity), _nothing),
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Dropout), _elementwise),
}


def operations(passed: nn.LayerShape, samples: int = 1) -> Operations:
    """What this layer does with so many samples; InputError for a number of operations that is none."""
    kind = kind_among(passed.layer, RULES)
    rule = _own if kind is None else RULES[kind]
    return rule(passed.layer, passed.input, passed.output, samples)
