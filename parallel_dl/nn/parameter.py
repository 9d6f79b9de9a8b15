"""Parameter: a weight that is declared first, with a shape and an initializer, and filled later, from its name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_dl.autograd import Tensor
from parallel_dl.nn.initializers import Initializer
from parallel_dl.nn.settings import default_dtype, default_seed
from parallel_dl.nn.streams import parameter_values

if TYPE_CHECKING:
    from parallel_dl.nn.module import Module


class Parameter(Tensor):
    """A weight of a module: declared with a shape and an initializer, filled on first use.

    Its values depend only on (seed, its name in the whole network): see `streams`. Reading `.data` fills it.

    With `piece`, a slice for each of the first axes of `shape`, it is that shard of a larger weight: `shape` is then
    the shape of the shard, `whole_shape` that of the larger weight, and only the shard is ever drawn.

    A copy (`copy.deepcopy`, pickle) has its own values and gradient; it belongs to no optimizer or all-reduce and has
    no hooks. Copying does not draw values that have not been drawn yet.
    """

    __slots__ = (
        "_owner",
        "declared_shape",
        "flat",
        "flat_gradients",
        "initializer",
        "is_partial",
        "piece",
        "whole_shape",
    )

    def __init__(
        self, shape: tuple[int, ...], initializer: Initializer, piece: tuple[slice, ...] | None = None
    ) -> None:
        self.whole_shape = tuple(shape)
        self.piece = piece
        lengths = [part.stop - part.start for part in piece or ()]
        self.declared_shape = (*lengths, *self.whole_shape[len(lengths) :])
        self.initializer = initializer
        self._owner: Any = None  # (weak reference to the module, our name in it)
        self.flat: Any = None  # the FlatParameters that our values were put into last
        self.flat_gradients: Any = None  # the FlatGradients that our gradient is written into
        # whether our gradient is a summand on each rank of a model axis, which GradientAllReduce has to sum
        self.is_partial = False
        self._begin(True, None)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("whole_shape", "piece", "declared_shape", "initializer", "requires_grad", "grad", "is_partial")
        state = {name: getattr(self, name) for name in kept}
        return state | ({"data": self.data} if self.is_filled else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._owner = self.flat = self.flat_gradients = None
        self._begin(True, None)
        for name, value in state.items():
            setattr(self, name, value)

    def __getattr__(self, attribute: str) -> Any:
        # reached only while the slot `data` is empty
        if attribute != "data":
            raise AttributeError(attribute)
        root = self.network
        seed, dtype = (root.seed, root.dtype) if root is not None else (default_seed.get(), default_dtype.get())
        self.data = self.draw(seed, self.name, dtype)
        return self.data

    def draw(self, seed: int, name: str, dtype: Any) -> np.ndarray:
        """The initial values, if this is its name in the whole network."""
        window = None
        if self.piece is not None:  # streams see a matrix (first axis, all others)
            rows, *second = self.piece
            columns, width = second[0] if second else slice(0, 1), math.prod(self.whole_shape[1 + len(second) :])
            window = rows, slice(columns.start * width, columns.stop * width)
        return parameter_values(seed, name, self.whole_shape, self.initializer, window, dtype).reshape(self.shape)

    @property
    def is_filled(self) -> bool:
        """Whether the values exist already."""
        try:
            Tensor.__dict__["data"].__get__(self)
        except AttributeError:
            return False
        return True

    @property
    def name(self) -> str:
        """Its name in the whole network, like "fc1.weight"; "parameter" for one on its own."""
        owner = self._owner and self._owner[0]()
        return owner.path(self._owner[1])[0] if owner is not None else "parameter"

    @property
    def network(self) -> Module | None:
        """The whole network it belongs to; None for a parameter on its own."""
        owner = self._owner and self._owner[0]()
        return owner.path("")[1] if owner is not None else None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.declared_shape

    @property
    def size(self) -> int:
        return math.prod(self.declared_shape)

    def __repr__(self) -> str:
        return f"Parameter{self.shape}"
