"""The layers: Linear, activations, Dropout, Flatten, Identity and Sequential."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, ops
from parallel_dl.errors import InputError, shown
from parallel_dl.nn.calls import frames
from parallel_dl.nn.initializers import uniform
from parallel_dl.nn.module import Module
from parallel_dl.nn.operations import Operations, longest_chain
from parallel_dl.nn.parameter import Parameter
from parallel_dl.nn.shapes import LayerShape, OneSample, Shape, below, layer_shapes, output_shape
from parallel_dl.nn.streams import keep_mask


class Linear(Module):
    """y = x weight^T + bias: (..., in_features) -> (..., out_features); weight (out, in), bias (out,).

    Both start uniform in +-1/sqrt(in_features), PyTorch's default. Raises InputError for an input of the wrong width.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if in_features < 0 or out_features < 0:
            raise InputError(f"Linear({in_features}, {out_features}): widths must not be negative")
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(max(1, in_features))
        self.weight = Parameter((out_features, in_features), uniform(bound))
        self.bias = Parameter((out_features,), uniform(bound)) if bias else None

    def require(self, x: Any) -> None:
        """Raises InputError for an x of the wrong width."""
        if x.shape[-1] != self.in_features:
            raise self.input_error(x, f"needs (..., {self.in_features})")

    def forward(self, x: Any) -> Tensor:
        self.require(x)
        return ops.linear(x, self.weight, self.bias)

    def output_shape(self, input_shape: Shape) -> Shape:
        """(..., in_features) -> (..., out_features); InputError for the wrong width."""
        self.require(OneSample(input_shape))
        return *input_shape[:-1], self.out_features

    def operations(self, input_shape: Shape) -> Operations:
        """W = N Cin Cout, D = log2 Cin; the input may have further axes before the features."""
        products = math.prod(input_shape) * self.out_features
        return Operations(products, (self.in_features,), multiply_adds=products)

    def describe(self) -> str:
        return f"{self.in_features} -> {self.out_features}{'' if self.bias is not None else ', no bias'}"


class Elementwise(Module):
    """Base of element-wise layers: each output value depends on one input value, and the shape stays."""

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the input."""
        return input_shape

    def operations(self, input_shape: Shape) -> Operations:
        """W = N values, D = 1."""
        return Operations(math.prod(input_shape))


class _Activation(Elementwise):
    operation: Callable[..., Tensor]

    def forward(self, x: Any) -> Tensor:
        return type(self).operation(x)


class ReLU(_Activation):
    """max(x, 0)."""

    operation = staticmethod(ops.relu)


class Tanh(_Activation):
    """The hyperbolic tangent."""

    operation = staticmethod(ops.tanh)


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    operation = staticmethod(ops.sigmoid)


class GELU(_Activation):
    """The Gaussian error linear unit, tanh form."""

    operation = staticmethod(ops.gelu)


class Dropout(Elementwise):
    """In training, zeroes an element with probability p and divides the others by 1 - p; otherwise the identity.

    x is (samples, ...). The mask depends on (seed, step, layer name, sample's index in the global batch), so it is the
    same in every layout. Set the position with `network.set_position(step, first_sample)`; the Trainer does so. A layer
    that is used in several places, or repeatedly in one place, draws a new mask each time, keyed by the name of the
    place and the number of earlier calls there in the same forward pass.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise InputError(f"Dropout({p}): the probability must be in 0..1")
        self.p = p
        self._forwards: dict[str, int] = {}  # place -> forward passes, while nobody says which step it is

    def forward(self, x: Any) -> Any:
        return self.masked(x, x.shape[1:], ())

    def masked(self, x: Any, whole: tuple[int, ...], part: tuple[slice, ...]) -> Any:
        """Dropout of x = samples[part], for samples of shape (n, *whole), with the same slice of their mask."""
        if not self.training or self.p == 0:
            return x
        name, network = self.place("dropout")
        position = network.position
        passed = self._forwards if position.step is None else position.calls
        before = passed.get(name, 0)
        passed[name] = before + 1
        step = position.step
        if step is None:
            step = before
        elif before:
            name = f"{name} {before}"
        keep = keep_mask(network.seed, step, name, (x.shape[0], *whole), position.first_sample, self.p)
        return ops.dropout(x, keep=keep[part], p=self.p)

    def describe(self) -> str:
        return f"p={self.p}"


class Flatten(Module):
    """(samples, ...) -> (samples, product of the rest)."""

    def forward(self, x: Any) -> Any:
        shape = (x.shape[0], math.prod(x.shape[1:]))
        return x.reshape(shape) if isinstance(x, np.ndarray) else ops.reshape(x, shape=shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        """(*lengths) -> (their product,)."""
        return (math.prod(input_shape),)

    def operations(self, input_shape: Shape) -> Operations:
        """None: it only changes the view of the values."""
        return Operations(0)


class Identity(Module):
    """y = x: the skip connection of a residual block."""

    def forward(self, x: Any) -> Any:
        return x

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the input."""
        return input_shape

    def operations(self, input_shape: Shape) -> Operations:
        """None."""
        return Operations(0)


class Layers(Module):
    """Modules in order, named 0, 1, 2, ... or, given as keyword arguments, by those names."""

    def __init__(self, *layers: Module, **named: Module) -> None:
        super().__init__()
        for name, layer in [*((str(i), layer) for i, layer in enumerate(layers)), *named.items()]:
            if not isinstance(layer, Module):
                raise TypeError(f"{type(self).__name__}: layer {name} is {shown(layer)}; expected a Module")
            setattr(self, name, layer)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> Module:
        return list(self._modules.values())[index]

    def __setitem__(self, index: int, layer: Module) -> None:
        """Puts another layer in the place of number `index`, under the same name."""
        setattr(self, list(self._modules)[index], layer)


class Sequential(Layers):
    """Applies layers in order: `layers`, named 0, 1, 2, ..., and those in `named`, under these names."""

    def forward(self, x: Any) -> Any:
        calls = frames.open
        calls.append((self, None))
        try:
            for name, layer in self._modules.items():
                calls[-1] = self, name  # as `call` does for each, at less cost
                x = layer(x)
            return x
        finally:
            calls.pop()

    def output_shape(self, input_shape: Shape) -> Shape:
        """The output shape of the last layer; InputError if a layer does not define it."""
        return output_shape(self, input_shape)

    def layer_shapes(self, input_shape: Shape, name: str = "", measure: bool = False) -> Iterator[LayerShape]:
        """The layers, each with the output shape of the previous one as its input. See `nn.layer_shapes`."""
        shape = input_shape
        for child, layer in self._modules.items():
            for passed in layer_shapes(layer, shape, below(name, child), measure):
                yield passed
                shape = passed.output

    def longest_chain(self, depths: Iterator[int]) -> int:
        """Each layer waits for the previous one. See `operations.longest_chain`."""
        return sum(longest_chain(layer, depths) for layer in self)
