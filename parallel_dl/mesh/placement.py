"""Placements: what the ranks along each mesh axis have of an array, and of its gradient.

| state        | each rank has                             | its gradient                   | dual         |
|--------------|-------------------------------------------|--------------------------------|--------------|
| `Invariant`  | all of it, the same                       | the same on all                | `Invariant`  |
| `Replicated` | all of it, the same, used in its own way  | a summand on each              | `Partial`    |
| `Shard`      | a slice along one array axis              | a slice                        | itself       |
| `Partial`    | a summand                                 | the same on all                | `Replicated` |
| `Windows`    | a slice that may overlap with its         | is summed at the owner of each | none: it is  |
|              | neighbours'                               | row                            | only a target|

Mixing up Shard and Partial (concatenating summands, summing slices) is the classic silent bug of parallel programs;
so is taking Invariant for Replicated, which forgets a sum of gradients. (Types: JAX JEP 17111; adjoints: Hewett and
Grady 2020, "A linear algebraic approach to model parallelism", arXiv 2006.03108.)

Array axes are those of the whole array; of activations axis 0 is the samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from parallel_dl import partition
from parallel_dl.mesh.shape import MeshShape

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Invariant:
    """The whole array, identical on every rank; so is its gradient, which counts once."""


@dataclass(frozen=True)
class Replicated:
    """The whole array, identical on every rank, but used differently by each: its gradient is a summand on each."""


@dataclass(frozen=True)
class Partial:
    """A summand on each rank; the gradient is identical on all ranks."""


@dataclass(frozen=True)
class Shard:
    """A slice along array axis `axis` on each rank; `sizes`, by rank, add up to the length of the axis.

    Sizes None mean even shares (`partition.shares`) of any length: the number of samples is known only once there is a
    batch. A size may be 0: the rank then has nothing.
    """

    axis: int
    sizes: tuple[int, ...] | None = None

    def slices(self, length: int, ranks: int) -> tuple[slice, ...]:
        """Each rank's slice of an axis of this length."""
        return slices(even(length, ranks)) if self.sizes is None else self._slices

    @functools.cached_property
    def _slices(self) -> tuple[slice, ...]:  # asked for once per rank: of a thousand ranks each time a thousand slices
        return slices(self.sizes or ())

    def sizes_of(self, length: int, ranks: int) -> tuple[int, ...]:
        """The length of each rank's slice of an axis of this length."""
        return even(length, ranks) if self.sizes is None else self.sizes


@dataclass(frozen=True)
class Windows:
    """The rows `wanted[rank]` along array axis `axis`: they may overlap, and leave some out.

    This is for input that a layer needs beyond its own slice: the halo around image rows, the neighbouring channels of
    a response norm, channels that several towers see. It occurs only as a target: no output is left in this state.
    """

    axis: int
    wanted: tuple[slice, ...]

    def slices(self, length: int, ranks: int) -> tuple[slice, ...]:
        """Each rank's slice of the axis, whatever its length."""
        return self.wanted


State = Invariant | Replicated | Partial | Shard | Windows


def dual(state: State) -> State:
    """The state of the gradient of an array in `state`: Replicated <-> Partial; the others are their own duals."""
    if isinstance(state, Replicated):
        return Partial()
    return Replicated() if isinstance(state, Partial) else state


@dataclass(frozen=True)
class Placement:
    """How an array is laid out on a mesh: one state per mesh axis, in order."""

    mesh: MeshShape
    states: tuple[State, ...]

    @classmethod
    def on(cls, mesh: MeshShape, **states: State) -> Placement:
        """The placement with these states by mesh axis; other axes are Invariant."""
        return cls(mesh, tuple(states.get(axis, Invariant()) for axis in mesh))

    def __str__(self) -> str:
        named = [f"{axis} {state}" for axis, state in zip(self.mesh, self.states) if state != Invariant()]
        return ", ".join(named) or "invariant"

    def state(self, axis: str) -> State:
        """The state along one mesh axis."""
        return self.states[list(self.mesh).index(axis)]

    @property
    def dual(self) -> Placement:
        """The placement of the gradient."""
        return Placement(self.mesh, tuple(map(dual, self.states)))

    def has(self, kind: type[State] | tuple[type[State], ...]) -> bool:
        """Whether any of the states is of this kind."""
        return any(isinstance(state, kind) for state in self.states)

    def shard(self, axis: int) -> Shard | None:
        """The state that is a slice along this array axis, if there is one."""
        return next((s for s in self.states if isinstance(s, Shard) and s.axis == axis), None)

    @property
    def is_whole(self) -> bool:
        """Whether every rank has the whole array as one value: Invariant along every mesh axis."""
        return all(state == Invariant() for state in self.states)

    def uniform(self) -> State | None:
        """The state along all mesh axes, if they share one that is not a slice; such a placement fits any mesh."""
        first, *others = self.states
        alike = not isinstance(first, Shard | Windows) and all(state == first for state in others)
        return first if alike else None

    def index(self, rank: int, whole: Shape) -> tuple[slice, ...]:
        """The index of this rank's part of an array of shape `whole`; empty for the whole array."""
        found: dict[int, slice] = {}
        for (axis, size), state in zip(self.mesh.items(), self.states):
            if isinstance(state, Shard | Windows):
                at = self.mesh.index(rank, axis)
                found[state.axis % len(whole)] = state.slices(whole[state.axis], size)[at]
        return tuple(found.get(axis, slice(0, whole[axis])) for axis in range(max(found, default=-1) + 1))

    def shape(self, rank: int, whole: Shape) -> Shape:
        """The shape of this rank's part of an array of shape `whole`."""
        index = self.index(rank, whole)
        return (*(part.stop - part.start for part in index), *whole[len(index) :])


def even(length: int, ranks: int) -> tuple[int, ...]:
    """The sizes of even slices of an axis of this length, by rank."""
    return tuple(partition.shares(length, ranks))


def slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    """Consecutive slices of these sizes."""
    return tuple(slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0)))
