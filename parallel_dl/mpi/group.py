"""A communicator itself: the ranks that are in it, its duplicates and parts, its labels, its observers, its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

from parallel_dl.errors import shown
from parallel_dl.mpi import abort
from parallel_dl.mpi.calls import Caller, Observer, collective
from parallel_dl.mpi.observers.checked import Checked
from parallel_dl.mpi.observers.ledger import Ledger
from parallel_dl.mpi.startup import MPI
from parallel_dl.mpi.stress import under_stress
from parallel_dl.mpi.transport import Heard, Passed, Transport
from parallel_dl.watchdog import group_of, uncompared


class _Shared:
    """What a communicator has in common with those that are the same but for the label."""

    def __init__(self) -> None:
        self.one_node: bool | None = None
        # (layer, direction, in_tree) -> communicator, this one too; empty until the first is asked for
        self.labelled: dict[tuple[str, str | None, bool], Any] = {}


def _has(observer: Observer, *names: str) -> bool:
    """Whether it has a method of its own among these."""
    return any(getattr(type(observer), name) is not getattr(Observer, name) for name in names)


def _require_observers(observers: Any, ledger: Any) -> None:
    """TypeError for what cannot see calls."""
    if not isinstance(observers, Sequence):
        raise TypeError(f"Communicator: observers is {shown(observers)}; expected a list of observers")
    for observer in observers:
        if not isinstance(observer, Observer):
            made = f"; did you mean {observer.__name__}()?" if isinstance(observer, type) else ""
            raise TypeError(f"Communicator: observer {shown(observer)} is no parallel_dl.mpi.Observer{made}")
    if not isinstance(ledger, Ledger | None):
        raise TypeError(f"Communicator: ledger is {shown(ledger)}; expected a Ledger() of parallel_dl.mpi")


class Group(Caller):
    """The ranks of one communicator of mpi4py, or of another transport; see `Communicator`."""

    transport: Transport
    """where its calls go: `mpi`, with observers that are told what is passed"""
    ledger: Ledger | None
    checked: bool
    """whether the ranks compare their calls before they make them"""
    sums_in_tree = False
    """whether sums are made as `in_tree` says"""

    def __init__(
        self,
        mpi: Any,
        checked: bool | None = None,
        name: str | None = None,
        ledger: Ledger | None = None,
        axis: str | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        _require_observers(observers, ledger)
        like = mpi if isinstance(mpi, Group) else None
        mpi = mpi if like is None else like.mpi
        self.rank = mpi.rank
        self.size = mpi.size
        self.name = name or mpi.name
        self.ledger = like.ledger if ledger is None and like is not None else ledger
        self.axis = axis or ("world" if like is None else like.axis)
        self.layer, self.direction = ("", None) if like is None else (like.layer, like.direction)
        if checked is None:
            checked = os.environ.get("PARALLEL_DL_CHECKED", "0") not in ("", "0")
        self.checked = checked
        inherited: tuple[Observer, ...] = () if like is None else like._given
        self._given: tuple[Observer, ...] = tuple(observers) or inherited
        self._checks = Checked(mpi) if checked and self.size > 1 else None
        seen = (*self._given, *(one for one in (self._checks, self.ledger) if one is not None))
        self.watchers = tuple(one for one in seen if _has(one, "begin", "end"))
        self._listeners = tuple(one for one in seen if _has(one, "passed"))
        self._shared = _Shared()
        mpi = uncompared(mpi)
        if (watched := group_of(mpi)) is not None:
            watched.name = self.name
        self._go_over(under_stress(mpi, self.name))
        if self.size > 1:
            abort.watch_exits()

    def _go_over(self, mpi: Any) -> None:
        """From now on its calls go to this transport."""
        self.mpi = self.transport = mpi
        if self._listeners and self.size > 1:
            self.transport = Heard(mpi, self._is_heard, self.tell)

    def _become_alone(self) -> None:
        """From now on it is of one rank, and nobody sees its calls."""
        self.rank, self.size, self.ledger, self._checks = 0, 1, None, None
        self.watchers = self._listeners = ()
        self._shared = _Shared()
        self._go_over(self.mpi)

    def _with_calls_to(self, mpi: Any) -> Self:
        """The same communicator, with its calls made by another transport; its labels are its own."""
        return self._like_this(mpi=mpi, _shared=_Shared())

    def _like_this(self, **changes: Any) -> Self:
        """The same communicator, but for some attributes."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        other._go_over(other.mpi)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, rank {self.rank} of {self.size})"

    def __deepcopy__(self, memo: Any) -> Self:
        """Itself: the copy of what holds a communicator talks to the same ranks."""
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a communicator cannot be pickled: what holds one lives in this process; save a state_dict()")

    # -- observers ---------------------------------------------------------------------------------------------------
    def _is_heard(self) -> bool:
        return any(listener.is_listening for listener in self._listeners)

    def tell(self, passed: Passed) -> None:
        """Tells the observers what was passed to other ranks without a call of the transport."""
        for listener in self._listeners:
            if listener.is_listening and self.size > 1:
                listener.passed(self, passed)

    # -- others that are made of it ----------------------------------------------------------------------------------
    @collective(own=("name", "checked"))
    def duplicate(self, name: str | None = None, checked: bool = True) -> Self:
        """A new communicator of the same ranks: messages of one are never received by the other.

        With `checked=False`, it does not compare calls, even if this one does.
        """
        return self.over(self.mpi.Dup(), name or self.name, checked=checked)

    @collective(own=("color", "key", "name", "axis"))
    def split(self, color: int | None, key: int = 0, name: str | None = None, axis: str | None = None) -> Self | None:
        """One communicator for the ranks of each `color`, ordered by `key`, then by rank; None for color None.

        `axis` is the mesh axis that it runs along, by default that of this one.
        """
        part = self.mpi.Split(MPI.UNDEFINED if color is None else color, key)
        return None if part == MPI.COMM_NULL else self.over(part, name, axis)

    def over(self, mpi: Any, name: str | None, axis: str | None = None, checked: bool = True) -> Self:
        """A communicator of the ranks of `mpi`, with this one's observers and label, checked if this one is."""
        axis, checked = axis or self.axis, checked and self.checked
        other = type(self)(mpi, checked, name, self.ledger, axis, self._given)
        other.layer, other.direction = self.layer, self.direction
        return other

    def labelled(self, layer: str, direction: str | None = None) -> Self:
        """This communicator under another label: the ledger lists its calls under `layer` and `direction`.

        `direction` is "forward" or "backward" (ValueError otherwise); by default it is determined at the time of the
        call: "backward" while autograd's backward runs. Without a ledger, this returns the communicator itself. With
        one, both are still the same communicator: messages of one are received by the other, and they are checked and
        freed together.
        """
        if direction not in (None, "forward", "backward"):
            raise ValueError(f"direction {direction!r}: expected forward or backward")
        if not self._listeners or self.size == 1:
            return self
        same = self._shared.labelled
        if not same:
            same[self.layer, self.direction, self.sums_in_tree] = self
        key = layer, direction, self.sums_in_tree
        if key not in same:
            same[key] = self._like_this(layer=layer, direction=direction)
        return same[key]

    def in_tree(self) -> Self:
        """This communicator, but with an `all_reduce` and `reduce_scatter` that sum in a binary tree over the ranks.

        Ranks 2k and 2k+1 are added first, then the sums of neighbouring pairs, and so on, independently of the MPI
        library, the array size and the machine. This is recursive doubling: each rank exchanges whole arrays log2(size)
        times. ValueError unless the number of ranks is a power of two.
        """
        if self.size & (self.size - 1):
            raise ValueError(f"a binary tree over {self.size} ranks: their number must be a power of two")
        return self._like_this(sums_in_tree=True)

    # -- its ranks ---------------------------------------------------------------------------------------------------
    @property
    def is_one_node(self) -> bool:
        """Whether all ranks can share memory. The first access is collective; the result is remembered."""
        if self._shared.one_node is None:
            self._shared.one_node = self._ask_for_node()
        return self._shared.one_node

    @collective(name="is_one_node")
    def _ask_for_node(self) -> bool:
        node = self.mpi.Split_type(MPI.COMM_TYPE_SHARED)
        one_node = self.mpi.allreduce(node.size, MPI.MIN) == self.size
        node.Free()
        return one_node

    @collective
    def barrier(self) -> None:
        """Returns when every rank has called it."""
        self.transport.Barrier()

    # -- its end -----------------------------------------------------------------------------------------------------
    def free(self) -> None:
        """Frees the MPI communicator (collective); MPI's own world and self are kept."""
        if self._checks is None or self._checks.ended is None:  # else nobody is there to do it with
            self._give_back()

    @collective(name="free")
    def _give_back(self) -> None:
        if self._checks is not None:
            self._checks.free()
        if self.mpi not in (MPI.COMM_WORLD, MPI.COMM_SELF, MPI.COMM_NULL):
            self.mpi.Free()
            for other in self._shared.labelled.values():  # they hold what is no communicator any more
                other.mpi = other.transport = MPI.COMM_NULL

    @property
    def is_freed(self) -> bool:
        """Whether `free()` was called: it can no longer be used."""
        return self.mpi == MPI.COMM_NULL
