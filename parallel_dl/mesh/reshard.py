"""Reshard: the path of moves that takes an array from one placement to another, and what is sent on the way."""

from __future__ import annotations

from collections.abc import Iterator

from parallel_dl.mesh.moves import Message, Move
from parallel_dl.mesh.placement import Invariant, Partial, Placement, Replicated, Shape, Shard, State, Windows, even

Path = tuple[Move, ...]


class NotOffered(ValueError):
    """Raised if there is no path from one placement to the other."""


def reshard(before: Placement, after: Placement, whole: Shape) -> Path:
    """The moves from `before` to `after` for an array of shape `whole`; none if the two are equal.

    First come the axes to be gathered, from the last mesh axis to the first; then those to be divided, from the first
    to the last. Placements on different grids are converted through the whole array. NotOffered for a path from
    Replicated to a state that counts once: it would drop the summands of the gradient.
    """
    if before.mesh != after.mesh:
        if before.uniform() is not None:
            before = Placement(after.mesh, (before.states[0],) * len(after.mesh))
        elif after.uniform() is not None:
            after = Placement(before.mesh, (after.states[0],) * len(before.mesh))
        else:
            between = Placement(before.mesh, (Invariant(),) * len(before.mesh))
            return (*reshard(before, between, whole), *reshard(between, after, whole))
    mesh = before.mesh
    pairs = list(zip(mesh, before.states, after.states))
    moves: list[Move] = []
    put_together = [pair for pair in pairs if not isinstance(pair[2], Shard | Windows)]
    divided = [pair for pair in pairs if isinstance(pair[2], Shard | Windows)]
    for axis, here, there in (*reversed(put_together), *divided):
        if mesh[axis] > 1:  # one rank has all there is
            moves += (Move(mesh, axis, *step) for step in _steps(here, there, whole, mesh[axis]))
    return tuple(moves)


def _steps(here: State, there: State, whole: Shape, ranks: int) -> Iterator[tuple[State, State]]:
    """The states passed on the way along one mesh axis, as pairs."""
    if here == there:
        return
    if isinstance(there, Windows):
        if isinstance(here, Replicated):
            yield here, there
            return
        own = here if isinstance(here, Shard) and here.axis == there.axis else Shard(there.axis, _even(there, whole))
        if here != own:
            yield from _steps(here, own, whole, ranks)
        if own.slices(whole[own.axis], ranks) != there.wanted:
            yield own, there
    elif isinstance(here, Replicated) and isinstance(there, Invariant | Partial):
        raise NotOffered(f"from {here} to {there}: each rank uses it in its own way")
    elif isinstance(here, Invariant | Shard | Replicated) and isinstance(there, Partial):
        raise NotOffered(f"from {here} to {there}: there is no telling whose summand it is")
    elif isinstance(here, Partial) and isinstance(there, Replicated):
        yield here, Invariant()
        yield Invariant(), there
    else:
        yield here, there


def _even(there: Windows, whole: Shape) -> tuple[int, ...]:
    return even(whole[there.axis], len(there.wanted))


def messages_along(path: Path, rank: int, x: Shape, whole: Shape) -> Iterator[Message]:
    """What `rank` sends in these moves, for an x of this shape of an array of shape `whole`."""
    for move in path:
        yield from move.messages(rank, x, whole)
        x = move.shape(rank, x, whole)
