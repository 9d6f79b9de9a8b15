"""Whole weights of a network divided among ranks: gathered, loaded and digested, from placements alone.

A rank has the weights of its stages (the pipe axis), and of each what its placement on the model axis says. The same
holds for whatever belongs to a weight value by value: gradients, optimizer state, buffers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_dl.mesh import Placement, Shape, Shard
from parallel_dl.mpi import Communicator
from parallel_dl.nn import Module, Parameter

Arrays = dict[str, np.ndarray]
_BLOCK = 1 << 26  # bytes of a weight that one rank holds beside its own shard, about


class DividedNetwork:
    """A network divided among ranks: `placements` by name on the model axis, `rank_of(name)` on the pipe axis.

    `model` has the ranks that share the layers of this rank's stages, `pipe` those with other stages and the same
    shards; None is this rank alone. What `placements` does not name every rank has in full. Methods are collective over
    both axes, except where they say otherwise.
    """

    def __init__(
        self,
        network: Module,
        placements: Mapping[str, Placement] | None = None,
        model: Communicator | None = None,
        pipe: Communicator | None = None,
        rank_of: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self.network, self.placements = network, placements or {}
        self.model, self.pipe, self.rank_of = model, pipe, rank_of
        self.shapes: dict[str, Shape] = {name: one.whole_shape for name, one in network.named_parameters()}
        self.shapes |= {name: self._whole_shape(name, array) for name, array in network.named_buffers()}

    def _whole_shape(self, name: str, buffer: np.ndarray) -> Shape:
        shard, shape = self.shard(name), list(buffer.shape)
        if shard is not None and shard.sizes is not None:
            shape[shard.axis] = sum(shard.sizes)
        return tuple(shape)

    # -- what this rank has ----------------------------------------------------------------------------------------
    def shard(self, name: str) -> Shard | None:
        """How a parameter or buffer is cut over the model axis; None for one that every rank there has in full."""
        placement = self.placements.get(name)
        return next((one for one in placement.states if isinstance(one, Shard)), None) if placement else None

    def piece(self, name: str) -> tuple[slice, ...]:
        """This rank's shard of a whole parameter or buffer, as an index; empty for one that it has in full. Local."""
        if self.model is None or name not in self.placements:
            return ()
        return self.placements[name].index(self.model.rank, self.shapes[name])

    def has(self, name: str) -> bool:
        """Whether it belongs to one of this rank's stages. Local."""
        return self.pipe is None or self.rank_of(name) == self.pipe.rank

    def _own(self) -> dict[str, Parameter | np.ndarray]:
        everything: dict[str, Any] = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name: one for name, one in everything.items() if self.has(name)}

    def own_state(self) -> Arrays:
        """Name -> a copy of the values of the parameters and buffers that this rank has. Local."""
        return {name: np.array(one.data if isinstance(one, Parameter) else one) for name, one in self._own().items()}

    # -- whole values ----------------------------------------------------------------------------------------------
    def gather(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Whole arrays on every rank, from each rank's part, by the name of their parameter or buffer.

        A rank may lack an array that others have, if its shard is empty.
        """
        own = {name: self._over_model(name, array, dtype) for name, array, dtype in self._described(arrays)}
        if self.pipe is None:
            return own
        return {
            name: self.pipe.broadcast(own.get(name), rank, shape, dtype)
            for name, (rank, shape, dtype) in self._owners(own).items()
        }

    def _described(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray | None, np.dtype]]:
        """(name, own array or None, dtype) of what any rank of the model axis has, in the order of names."""
        dtypes = {name: array.dtype for name, array in arrays.items()}
        if self.model is not None:
            told = self.model.all_gather_object(dtypes)
            dtypes = {name: dtype for of_rank in told for name, dtype in of_rank.items()}
        return ((name, arrays.get(name), dtypes[name]) for name in sorted(dtypes))

    def _over_model(self, name: str, array: np.ndarray | None, dtype: Any) -> np.ndarray:
        shard = self.shard(name)
        if self.model is None or shard is None:
            assert array is not None
            return np.array(array)
        if array is None:
            array = np.zeros(self.placements[name].shape(self.model.rank, self.shapes[name]), dtype)
        return self.model.all_gather(array, shard.axis, shard.sizes)

    def _owners(self, own: Mapping[str, np.ndarray]) -> dict[str, tuple[int, Shape, np.dtype]]:
        """Name -> (rank of the pipe axis, whole shape, dtype) of what any of them has."""
        assert self.pipe is not None
        told = self.pipe.all_gather_object({name: (array.shape, array.dtype.str) for name, array in own.items()})
        found = {
            name: (rank, shape, np.dtype(dtype))
            for rank, of_rank in enumerate(told)
            for name, (shape, dtype) in of_rank.items()
        }
        return dict(sorted(found.items()))

    def state_dict(self) -> Arrays:
        """Name -> whole values of every parameter and buffer, in the order of the network, on every rank."""
        found = self.gather(self.own_state())
        return {name: found[name] for name in self.shapes}

    def gather_state(self) -> Arrays | None:
        """As `state_dict`, but only the first rank gets it; the others get None."""
        state: dict[str, Any] = self.own_state()
        for name in sorted(state):
            shard = self.shard(name)
            if self.model is not None and shard is not None:
                state[name] = self.model.gather(state[name], 0, shard.axis, shard.sizes)
        if self.model is not None and self.model.rank:
            return None
        if self.pipe is None:
            return state
        for name, (rank, shape, dtype) in self._owners(state).items():
            if rank and self.pipe.rank == rank:
                self.pipe.send(np.ascontiguousarray(state[name]), 0)
            elif rank and not self.pipe.rank:
                state[name] = self.pipe.receive(rank, shape, dtype)
        return None if self.pipe.rank else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets what this rank has from whole values: arrays, or what `checkpoint.read` gives. Local.

        Of the latter nothing but this rank's part is read. Names and shapes must be those of the whole network, also of
        other ranks' stages, so that all ranks accept it or none: KeyError or ValueError says what is wrong.
        """
        missing, unexpected = self.shapes.keys() - state.keys(), state.keys() - self.shapes.keys()
        if missing or unexpected:
            raise KeyError(f"state_dict: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
        for name, whole in self.shapes.items():
            values = state[name]
            if isinstance(values, np.ndarray | np.generic) and values.dtype.kind not in "biuf":
                raise ValueError(f"state_dict: {name} is {values.dtype}, expected real numbers")
            if tuple(values.shape) != whole:
                raise ValueError(f"state_dict: {name} has shape {tuple(values.shape)}, expected {whole}")
        self.network._rewrite()
        for name, one in self._own().items():
            (one.data if isinstance(one, Parameter) else one)[...] = state[name][self.piece(name)]

    # -- digest ----------------------------------------------------------------------------------------------------
    def sha256(self) -> str:
        """A digest of all whole values by name, on every rank; the first gets about 64 MiB of an array at a time."""
        digest = hashlib.sha256()
        own = self._own()
        for name in sorted(self.shapes):
            one = own.get(name)
            array = one.data if isinstance(one, Parameter) else one
            for number, (dtype, rows) in enumerate(self._at_first(name, array)):
                if not number:
                    digest.update(f"{name} {dtype} {self.shapes[name]}\n".encode())
                digest.update(rows.tobytes())
        found = digest.hexdigest()
        for axis in (self.pipe, self.model):
            found = found if axis is None else axis.broadcast_object(found)
        return found

    def _at_first(self, name: str, array: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
        """(dtype, rows) of the whole array, in order, on the first rank; all ranks go through it together."""
        of_owner = None if array is None else self._rows(name, array)
        if self.pipe is None or (self.model is not None and self.model.rank):  # the owner's rows go from its first rank
            yield from ((array.dtype.str, rows) for rows in of_owner or () if array is not None)
            return
        owner = self.rank_of(name)
        while True:
            rows = None if of_owner is None else next(of_owner, None)
            dtype = "" if array is None else array.dtype.str
            told = self.pipe.broadcast_object(None if rows is None else (dtype, rows), owner)
            if told is None:
                return
            yield told

    def _rows(self, name: str, array: np.ndarray) -> Iterator[np.ndarray]:
        """The whole array in order, some rows at a time; right on the model axis's first rank."""
        shard, shape = self.shard(name), self.shapes[name]
        if self.model is None or shard is None or shard.sizes is None:
            yield array
            return
        if shard.axis:
            step = max(1, _BLOCK * shape[0] // max(1, int(np.prod(shape)) * array.itemsize))
            for start in range(0, shape[0], step):
                yield self._gathered(array[start : start + step], shard.axis, shard.sizes)
            return
        step = max(1, _BLOCK // max(1, int(np.prod(shape[1:])) * array.itemsize))
        for owner, size in enumerate(shard.sizes):
            for start in range(0, size, step):
                lengths = [min(step, size - start) if rank == owner else 0 for rank in range(self.model.size)]
                yield self._gathered(array[start : start + step][: lengths[self.model.rank]], 0, lengths)

    def _gathered(self, rows: np.ndarray, axis: int, sizes: Sequence[int]) -> np.ndarray:
        assert self.model is not None
        whole = self.model.gather(rows, 0, axis, sizes)
        return rows[:0] if whole is None else whole
