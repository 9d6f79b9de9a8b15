"""The Tensor: an array that remembers what it was computed from."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray


def floating(*arrays: Array | None) -> np.dtype:
    """The type to compute in: what the arrays (or None) have in common; for integers, floats that hold them."""
    common = np.result_type(*(array for array in arrays if array is not None))
    return common if common.kind in "fc" else np.result_type(common, np.float32)


next_number = itertools.count().__next__  # orders what is computed (see `backward_pass`), in each thread of the process

_counting = threading.Lock()


class Tensor:
    """An array and, while history is recorded, edges to the tensors it was computed from.

    `grad` is overwritten by the next backward after `zero_grad`: keep `grad.copy()`, not `grad`. It is None or the
    gradient accumulated by `backward` (for leaves only), of the same shape and dtype as `data`.

    `data` is the array. `grad_buffer`, if an optimizer or an all-reduce sets it, is the array for `grad`: the gradient
    is written there, without a copy. Python floats, also in lists, become float32; arrays keep their dtype.
    """

    __slots__ = ("__weakref__", "data", "edges", "grad", "grad_buffer", "hooks", "number", "requires_grad")
    __array_ufunc__ = None  # an array on the left of + leaves the addition to us

    data: Array
    grad: Array | None
    grad_buffer: Array | None
    requires_grad: bool
    edges: Sequence[tuple[Tensor, Callable[..., Any]]] | None
    hooks: list[Callable[[Tensor], None]] | None
    number: int

    hooks_registered: ClassVar[int] = 0  # without any, backward saves itself the counting of uses

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        if not isinstance(data, (np.ndarray, np.generic)):
            data = np.asarray(data)
            if data.dtype == np.float64:
                data = data.astype(np.float32)
        self.data = np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors can require a gradient, not {self.data.dtype}")
        self._begin(requires_grad, None)

    def _begin(self, requires_grad: bool, edges: Sequence | None) -> None:
        self.requires_grad = requires_grad
        self.edges = edges
        self.number = next_number()
        self.grad = None
        self.grad_buffer = None
        self.hooks = None

    # -- what it is ------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type of the values."""
        return self.data.dtype

    @property
    def is_leaf(self) -> bool:
        """True for tensors made by the user, False for results of recorded operations."""
        return self.edges is None

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        values = np.array2string(self.data, separator=", ", prefix="Tensor(", threshold=20)
        return f"Tensor({values}, dtype={self.dtype}{', requires_grad=True' if self.requires_grad else ''})"

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data.item())

    def item(self) -> float:
        """The value of a tensor with one element, as a Python number."""
        return self.data.item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.data, dtype=dtype, copy=copy)

    def numpy(self) -> Array:
        """The array itself, not a copy."""
        return self.data

    def detach(self) -> Tensor:
        """The same array without its history: no gradient flows through it."""
        return Tensor(self.data)

    # -- differentiation -------------------------------------------------------------------------------------------
    def backward(
        self, gradient: Any = None, defer: Iterable[Tensor] = (), since: Tensor | None = None
    ) -> backward_pass.Deferred:
        """Adds d self / d leaf to `.grad` of every leaf that requires a gradient. See `autograd.backward`."""
        return backward_pass.backward(self, gradient, defer, since)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> Callable[[], None]:
        """Calls `hook(self)` in every backward pass as soon as `self.grad` is complete for that pass.

        Returns a function that removes the hook.
        """
        if not self.is_leaf:
            raise ValueError("completion hooks work only on leaves: other tensors keep no gradient")
        if self.hooks is None:
            self.hooks = []
        self.hooks.append(hook)
        with _counting:
            Tensor.hooks_registered += 1
        registered = True

        def remove() -> None:
            nonlocal registered
            if registered and self.hooks:
                registered = False
                self.hooks.remove(hook)
                with _counting:
                    Tensor.hooks_registered -= 1

        return remove

    # -- arithmetic ------------------------------------------------------------------------------------------------
    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return ops.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return ops.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    def __neg__(self) -> Tensor:
        return ops.negative(self)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.index(self, index=index)

    # -- functions under PyTorch's names ---------------------------------------------------------------------------
    def exp(self) -> Tensor:
        """See `ops.exp`."""
        return ops.exp(self)

    def log(self) -> Tensor:
        """See `ops.log`."""
        return ops.log(self)

    def sqrt(self) -> Tensor:
        """See `ops.sqrt`."""
        return ops.sqrt(self)

    def tanh(self) -> Tensor:
        """See `ops.tanh`."""
        return ops.tanh(self)

    def sigmoid(self) -> Tensor:
        """See `ops.sigmoid`."""
        return ops.sigmoid(self)

    def relu(self) -> Tensor:
        """See `ops.relu`."""
        return ops.relu(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.sum`."""
        return ops.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.mean`."""
        return ops.mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """See `ops.max`."""
        return ops.max(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """See `ops.reshape`; the lengths one by one, or a tuple."""
        return ops.reshape(self, shape=shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """See `ops.transpose`; the axes one by one, or a tuple."""
        return ops.transpose(self, axes=axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None)

    @property
    def T(self) -> Tensor:
        """With its axes reversed."""
        return ops.transpose(self)


from parallel_dl.autograd import backward_pass, ops  # noqa: E402  (they are made of the Tensor above)
