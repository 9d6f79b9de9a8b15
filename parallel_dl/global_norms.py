"""Norms of whole weights and gradients, and optimizers that know them, on ranks that have parts of the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallel_dl.engine import Engine
from parallel_dl.errors import InputError
from parallel_dl.nn import Parameter
from parallel_dl.optim import Optimizer, gradient_squares


class GlobalNorms:
    """The norms of what the ranks of `engine` have parts of: every value counts once, whichever ranks have it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.summation = engine, engine.summation

    def of_gradients(self, parameters: Sequence[Parameter]) -> float:
        """The Euclidean norm of all gradients, of which this rank has those of `parameters` (collective)."""
        own = self.counted_once(gradient_squares(parameters, self.summation.squares_of), parameters)
        # first over the shards of a stage's weights, then over the stages
        axes = self.engine.sharing, self.engine.mesh.pipe
        return math.sqrt(self.summation.sum_of_squares(own, parameters, [axis.labelled("norms") for axis in axes]))

    def give_to(self, optimizer: Optimizer) -> None:
        """The optimizer can then ask for sums of squares of whole weights: one all-reduce for all parameters."""
        parallel = self.engine.parallel

        def whole_squares(squares: np.ndarray) -> np.ndarray:
            own = self.counted_once(squares, optimizer.parameters)
            whole = own if parallel is None else parallel.comm.labelled("norms").all_reduce(own)
            return self.summation.whole_squares(whole)

        optimizer.squares_of, optimizer.whole_squares = self.summation.squares_of, whole_squares

    def counted_once(self, squares: np.ndarray, parameters: Sequence[Parameter]) -> np.ndarray:
        """Of what all ranks that share the layers have in full, zeros on all of them but the first.

        Squares are (..., parameters), or in leaves (..., parameters, summands). In a hybrid these ranks are
        those of the data axis, too: what was summed over them is the same on all.
        """
        parallel = self.engine.parallel
        if parallel is None or parallel.comm.rank == 0:
            return squares
        is_shard = np.array([parameter.piece is not None for parameter in parameters])
        return np.where(is_shard if self.summation.leaves is None else is_shard[:, np.newaxis], squares, 0.0)


def made_on_all(
    make_optimizer: Callable[[Any], Optimizer], parameters: Sequence[Parameter], norms: GlobalNorms
) -> Optimizer:
    """An optimizer of these parameters, or some of them, that knows the norms of whole weights.

    All ranks together; InputError on all if one of them gets something else.
    """
    optimizer, error = None, ""
    try:
        optimizer = make_optimizer(parameters)
    except InputError as caught:  # a stage may have none of the parameters that are chosen
        error = f"make_optimizer: {caught}"
    if not error and not isinstance(optimizer, Optimizer):
        error = f"make_optimizer returned a {type(optimizer).__name__}: expected an optim.Optimizer"
        optimizer = None
    known = {id(parameter) for parameter in parameters}
    for parameter in [] if optimizer is None else optimizer.parameters:
        if id(parameter) not in known and not error:
            error = (
                f"make_optimizer: {parameter.name} {parameter.shape} is not one of the parameters it was given, "
                "this rank's parameters of the trained network: choose among those"
            )
    world = norms.engine.mesh.world
    for rank, of_rank in enumerate(world.all_gather_object(error)):
        if of_rank:
            raise InputError(f"rank {rank}: {of_rank}" if world.size > 1 else of_rank)
    assert optimizer is not None
    norms.give_to(optimizer)
    return optimizer
