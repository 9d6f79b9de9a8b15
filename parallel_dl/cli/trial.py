"""A user's own network, loss and optimizer, tried before a rank is started: what is wrong is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from parallel_dl import from_file
from parallel_dl.cli.losses import function_of
from parallel_dl.errors import InputError, cut, number_of
from parallel_dl.from_file import telling

if TYPE_CHECKING:
    import numpy as np

    from parallel_dl.nn import Module

Loss = Callable[..., Any]

MOST_PARAMETERS, MOST_VALUES = 1 << 22, 1 << 14  # of the network, of a sample; one process does not try larger ones


def try_network(
    name: str,
    build: Callable[[], Module],
    loss: str | None,
    function: Loss,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    dtype: str,
) -> None:
    """Takes two samples through a user's own network and the loss, forward and back; none through a larger one.

    `build` makes the network, `function` is what `loss` names, x (samples, *input_shape) and y are the data. Raises
    InputError, one line that begins with the network, or the loss, and has the line in the user's file, for whatever
    goes wrong, and for a network without parameters.
    """
    if not from_file.is_own(name):
        return
    with telling("network", name):
        network = build()
        if not network.parameters():
            raise InputError("has no parameters, so there is nothing to train")
    if network.parameter_count() > MOST_PARAMETERS or math.prod(x.shape[1:]) > MOST_VALUES:
        return
    picked = [0, int(y.argmax())] if y.ndim == 1 else [0, len(y) - 1]  # of classes, one with the largest number
    _step(name, network.initialize(seed, dtype), loss, function, x[picked], y[picked])


def _step(name: str, network: Module, loss: str | None, function: Loss, x: np.ndarray, y: np.ndarray) -> None:
    import numpy as np

    from parallel_dl.autograd import Tensor, abandon

    try:
        with np.errstate(all="ignore"):
            with telling("network", name):
                outputs = network.set_position(0)(x)
                if not isinstance(outputs, Tensor):
                    raise InputError(f"gives a value of type {type(outputs).__name__}; expected a Tensor")
                if tuple(outputs.shape[:1]) != (len(x),):
                    raise InputError(
                        f"makes {tuple(outputs.shape)} of {number_of(len(x), 'sample')}; expected ({len(x)}, ...)"
                    )
            value = _loss_of(name, loss, function, outputs, y)
            with telling("network", name):
                value.backward()
    finally:
        abandon()


def _loss_of(name: str, loss: str | None, function: Loss, outputs: Any, y: np.ndarray) -> Any:
    if loss is not None and from_file.is_own(loss):
        return _own_loss(loss, outputs, y)
    try:
        return function(outputs, y, len(y))
    except InputError as error:
        said = f"gives {tuple(outputs.shape[1:])} for a sample: {error.marked}"
        raise InputError(f"network {cut(name)}: {said}") from None


def try_loss(loss: str, outputs: int, x: np.ndarray, y: np.ndarray) -> None:
    """Tries a user's own loss on two samples, with zeros as their `outputs`, forward and back.

    Raises InputError unless it gives one number, of the outputs.
    """
    import numpy as np

    from parallel_dl.autograd import Tensor

    if not from_file.is_own(loss):
        return
    targets = y[:2]
    zeros = Tensor(np.zeros((len(targets), outputs), x.dtype), requires_grad=True)
    with np.errstate(all="ignore"):
        value = _own_loss(loss, zeros, targets)
        with telling("`loss`", loss):
            value.backward()


def try_optimizer(name: str, make: Callable[[list[Any]], Any]) -> None:
    """Makes three updates of a small layer with a user's own optimizer, which `make(parameters)` makes.

    Raises InputError for whatever goes wrong, and for an optimizer that changes no weight.
    """
    import numpy as np

    from parallel_dl.nn import Linear

    layer = Linear(3, 2)
    optimizer = make(layer.parameters())
    if not from_file.is_own(name):
        return
    layer.initialize(0, "float64")
    before = {key: array.copy() for key, array in layer.state_dict().items()}
    with np.errstate(all="ignore"), telling("`optimizer`", name):
        for _ in range(3):
            layer.zero_grad()
            (layer(np.ones((1, 3))) ** 2).sum().backward()
            optimizer.step()
    rates = [rate(0) if callable(rate := group["lr"]) else rate for group in optimizer.param_groups]
    if any(rates) and all(np.array_equal(array, before[key]) for key, array in layer.state_dict().items()):
        raise InputError(
            "changes no weight in three updates; expected _update to write into its arrays, as in `weights -= ...`",
            "optimizer",
            cut(name),
        )


def _own_loss(loss: str, outputs: Any, y: np.ndarray) -> Any:
    from parallel_dl.autograd import Tensor

    value = from_file.call("`loss`", loss, function_of(loss), outputs, y, len(y), returns=Tensor)
    if value.size != 1:
        raise InputError(
            f"returns shape {value.shape}; expected one number, summed over the samples", "loss", cut(loss)
        )
    if not value.requires_grad and outputs.requires_grad:
        raise InputError("has no gradient; expected a Tensor computed from the outputs", "loss", cut(loss))
    return value
