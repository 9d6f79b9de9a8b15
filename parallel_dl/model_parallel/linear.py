"""Sharded matmul for direct use, in a module of your own: what the rules of `splits.linear` make of a Linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError, number_of, unknown_name
from parallel_dl.mesh import Invariant, MeshShape, Partial, Placement, Replicated, Shard, even, reshard
from parallel_dl.model_parallel.axis import ModelAxis
from parallel_dl.model_parallel.carry_out import carry_out, cut
from parallel_dl.mpi import Communicator
from parallel_dl.splits import Site, Step, Way
from parallel_dl.splits.rule import rule_of

STATES = ("whole", "split")
LAST = -1  # array axis of the features


class _ParallelLinear(nn.Linear):
    """A Linear divided by a rule; `before` is the state of x, `after` that in which the result is to be."""

    def _divide(self, comm: Communicator, way: str, before: Any, after: Any, sizes: tuple[int, ...]) -> None:
        mesh = MeshShape(model=comm.size)
        widths = (self.in_features,), (self.out_features,)
        come = Placement(mesh, (before,))
        given = Placement(mesh, (Shard(1, sizes),)) if way == "input" else come  # the rule cuts where they are cut
        site = Site(self, Way(way), given, *widths, comm.size)
        rule = rule_of(self, site.way)
        assert rule is not None
        division = rule(site)
        wanted: Any = Replicated() if way == "output" else Shard(LAST, sizes)
        left: Any = Shard(LAST, sizes) if way == "output" else Partial()
        arrive, depart = (
            reshard(Placement(mesh, (a,)), Placement(mesh, (b,)), width)
            for a, b, width in ((before, wanted, widths[0]), (left, after, widths[1]))
        )
        whole = Placement(mesh, (after,))
        step = Step("", self, site.way, *widths, come, arrive, division, whole, depart)
        for name, placement in step.weights.items():
            self.replace(name, cut(self._parameters[name], placement, comm.rank))
        carry_out(step, self, ModelAxis(comm))


class ColumnParallelLinear(_ParallelLinear):
    """A Linear whose output features are split across the ranks of `comm`; otherwise as nn.Linear.

    x is (..., in_features), the result (..., out_features), and slices are taken along the last axis. Sizes are those
    of `partition.shares`: they may differ by one and may be 0. `input` says whether x is "whole", the same on every
    rank, or "split", with a slice of the features on each rank, of `input_sizes` if these are not even. With `output`
    "split", each rank keeps its slice for the next layer; with "whole", the slices are gathered. weight and bias are
    this rank's rows, (share of out_features, in_features). All ranks call it together. Raises InputError for the wrong
    input width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        comm: Communicator,
        bias: bool = True,
        input: str = "whole",
        output: str = "whole",
        input_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        before = _state("input", input, in_features, comm, input_sizes)
        after = _state("output", output, out_features, comm, None)
        self._divide(comm, "output", before, after, even(out_features, comm.size))

    def describe(self) -> str:
        return f"{super().describe()}, output {self.weight.shape[0]} of {self.out_features}"


class RowParallelLinear(_ParallelLinear):
    """A Linear whose input features are split across the ranks of `comm`; otherwise as nn.Linear.

    x is (..., in_features), the result (..., out_features), and slices are taken along the last axis. `input` says
    whether x comes "split", with a slice of the features on each rank, or "whole"; slices have the given `sizes`, by
    default those of `partition.shares`. The result is whole on every rank. weight is this rank's columns,
    (out_features, size of the slice); bias is on every rank, and added once, after the sum. All ranks call it together.
    Raises InputError for the wrong input width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        comm: Communicator,
        bias: bool = True,
        input: str = "split",
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        given = even(in_features, comm.size) if sizes is None else tuple(sizes)
        before = _state("input", input, in_features, comm, given)
        self._divide(comm, "input", before, Invariant(), given)

    def describe(self) -> str:
        return f"{super().describe()}, input {self.weight.shape[1]} of {self.in_features}"


def _state(what: str, state: str, width: int, comm: Communicator, sizes: Sequence[int] | None) -> Any:
    if state not in STATES:
        raise unknown_name(what, str(state), STATES)
    given = even(width, comm.size) if sizes is None else tuple(sizes)
    if len(given) != comm.size or sum(given) != width or min(given) < 0:
        raise InputError(
            f"{what} sizes {given}: must be {number_of(comm.size, 'number')}, one per rank, that add up to {width}"
        )
    return Invariant() if state == "whole" else Shard(LAST, given)
