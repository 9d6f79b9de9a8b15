"""Why a layer's output differs although all before it is right: its input arrived wrong, or the layer is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.equivalence.compare import patterns
from parallel_dl.equivalence.explain import causes, layer_causes
from parallel_dl.equivalence.explain.causes import Pieces
from parallel_dl.equivalence.explain.pieces import Step
from parallel_dl.equivalence.explain.trace import At
from parallel_dl.equivalence.runs.record import initial
from parallel_dl.mpi import one_rank
from parallel_dl.nn import Module

Array = np.ndarray
Arrays = Mapping[str, Array]


def cause_of_output(step: Step, at: At, rank: int, pieces: Pieces) -> str | None:
    """Of a layer whose output is the first that differs, on this rank."""
    found = _of_arrival(step, at, rank) or _of_own_layer(step, at, rank, pieces)
    if found is None:
        found = layer_causes.of_forward(
            step.layer_of(at.layer),
            pieces,
            rank,
            step.neighbours(rank, "model"),
            step.serial.before,
            at.layer,
            step.layout,
            step.inner_edges(at.layer, rank),
        )
    return found or _of_version(step, at, rank, pieces[rank][0]) or _of_share(step, at, rank, pieces[rank][0])


def _of_arrival(step: Step, at: At, rank: int) -> str | None:
    """Whether the layer's input is wrong already, although what it comes from is right: on the way."""
    got, expected = _inputs(step, at, rank)
    if got is None or expected is None or got.shape != expected.shape or patterns.close(got, expected):
        return None
    return causes.of_arrival(got, expected, step.layout)


def _inputs(step: Step, at: At, rank: int) -> tuple[Array | None, Array | None]:
    """What came to the layer on this rank, and what should have come, if the whole input did."""
    whole = step.serial.arrived.get(at)
    expected = None if whole is None else whole[step.share_of(rank, at.microbatch)]
    return step.traces[rank].arrived.get(at), expected


def _of_own_layer(step: Step, at: At, rank: int, pieces: Pieces) -> str | None:
    """For a layer of the user's own that is not split: with the right input, the layer itself is at fault."""
    got, expected = pieces[rank]
    x, right = _inputs(step, at, rank)
    is_ours = type(step.layer_of(at.layer)).__module__.startswith("parallel_dl.")
    if is_ours or x is None or right is None or not step.placement_of(rank, at.layer).is_whole:
        return None
    if got.shape != expected.shape or x.shape != right.shape or step.differ(rank, x, right):
        return None
    weights = [array for name, array in step.serial.before.items() if name.startswith(f"{at.layer}.")]
    return (
        _of_share(step, at, rank, got)
        or layer_causes.of_own_layer(pieces, step.neighbours(rank, "model"), weights)
        or f"the layer itself: on rank {rank} its output for the same input differs from the serial one"
    )


def _of_share(step: Step, at: At, rank: int, got: Array) -> str | None:
    """Whether the serial layer, given the rank's samples alone, gives what the rank has: then it mixes samples."""
    x = step.traces[rank].arrived.get(at)
    if step.layout.dp == 1 or x is None or len(x) == step.serial.shares[at.microbatch][1]:
        return None
    network = _before_the_step(step, step.serial.before)
    network.set_position(step.step, step.traces[rank].shares[at.microbatch][0])
    try:
        with one_rank(), no_grad():
            y = step.layer_of(at.layer, network)(Tensor(x))
    except Exception:  # it needs more than its input
        return None
    if not patterns.close(got, np.asarray(y.data if isinstance(y, Tensor) else y)):
        return None
    return (
        "a layer that depends on which samples it is given, or how many: its output for a share alone is not the "
        "same as within the whole batch"
    )


def _of_version(step: Step, at: At, rank: int, got: Array) -> str | None:
    """Whether the layer's output is that with the weights before the last update."""
    if step.step == 0 or step.run is None:
        return None
    old = step.run.weights[step.step - 2] if step.step > 1 else initial(step.experiment).state_dict()
    network = _before_the_step(step, old)
    network.set_position(step.step, step.serial.shares[at.microbatch][0])
    outputs: list[Any] = []

    def keep(layer: Module, arguments: tuple[Any, ...], y: Any) -> Any:
        outputs.append(y)
        return y

    step.layer_of(at.layer, network).register_forward_hook(keep)
    with one_rank():
        network(step.serial.inputs[At(at.microbatch, "")])
    y = outputs[-1]
    if not patterns.close(got, step.piece_of(y.data if isinstance(y, Tensor) else y, rank, at)):
        return None
    return "weights of an earlier version: before the last update"


def _before_the_step(step: Step, state: Arrays) -> Module:
    """The serial network, with these weights and buffers, in training mode."""
    network = step.experiment.build().initialize(step.experiment.seed, step.experiment.dtype)
    network.load_state_dict(state)
    return network.train()
