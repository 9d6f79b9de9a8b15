"""Data parallelism: every rank has all weights and a share of the batch; here the gradients are summed over the ranks.

The gradients of all parameters live in one flat array (`nn.flat`), so there is nothing to copy in or out:

window  on one node that array is this rank's part of an MPI shared-memory window; every rank sums its share of all
        ranks' arrays into a result that all of them read (one barrier before, one after).
mpi     otherwise MPI's own all-reduce, in place. Between nodes the array is cut into buckets, and a bucket is
        exchanged, without blocking, as soon as backward has completed its gradients: that hides the waiting for a slow
        wire or a late peer. On one node it hides nothing, since moving bytes is work for the same cores that compute.
tree    in place, in one binary tree over the ranks (`Communicator.in_tree`): the same bits for every MPI library, and
        with leaves on each rank (`parallel_dl.reproducible`) for every number of ranks.

All give the same bits on every rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from parallel_dl.data_parallel.batch_norm import (
    average_running_statistics,
    batch_norm_layers,
    leave_batch_norm,
    networks_of,
    synchronize_batch_norm,
)
from parallel_dl.data_parallel.buckets import Bucket, cut_into_buckets
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, NotEnoughSharedMemory, SharedWindow
from parallel_dl.nn import Parameter, flatten

METHODS = ("auto", "window", "mpi", "tree")


class GradientAllReduce:
    """Sums the gradients of replicated parameters over the ranks of `comm`.

    Call `all_reduce()` between backward and the optimizer's step; afterwards every rank's `.grad` holds the sum, which
    is the gradient of the global batch when each rank divided its loss by the global number of samples. A parameter
    that no rank has a gradient for keeps None; one that some ranks have none for gets the sum of the others.

    The networks that the parameters belong to are then data parallel as a whole: their batch norm layers take their
    statistics over the ranks (see `batch_norm`), until `free()`.

    `method` is "window", "mpi", "tree" or "auto" (window on one node if it fits in /dev/shm, else mpi). `overlap` (mpi
    only; by default when the ranks are on several nodes) exchanges buckets of about `bucket_bytes` during backward.
    Raises InputError when the ranks' weights or buffers differ, and for "window" on several nodes; ValueError for a
    "tree" over a number of ranks that is no power of two. All ranks call everything together.

    A ledger enters the sums of gradients under "gradients", those of batch norm under the names of the layers, and the
    averages of running statistics under "running statistics".
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        comm: Communicator,
        method: str = "auto",
        overlap: bool | None = None,
        bucket_bytes: int = 4 << 20,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"all-reduce method {method!r}: valid are {', '.join(METHODS)}")
        self.comm = comm = comm.in_tree() if method == "tree" else comm
        self._exchange = comm.labelled("gradients", "backward")
        self._accumulating = False
        self._unhook: list[Callable[[], None]] = []
        parameters = list(parameters)
        self.networks = networks_of(parameters)
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.groups = flatten(self.parameters)
        frozen = [parameter.data for parameter in parameters if not parameter.requires_grad]
        buffers = [buffer for network in self.networks for buffer in network.buffers()]
        require_equal_replicas([*(group.values for group in self.groups), *frozen], buffers, comm)
        self.method, self.note = self._place(method)
        self._synchronize_batch_norm()
        self.overlap = self.method == "mpi" and (not comm.is_one_node if overlap is None else overlap)
        self._buckets: list[Bucket] = []
        if self.overlap:
            self._buckets = [b for group in self.groups for b in cut_into_buckets(group, bucket_bytes)]
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    hook = self._completed(bucket)
                    self._unhook.append(parameter.register_post_accumulate_grad_hook(hook))

    def _synchronize_batch_norm(self) -> None:
        self._local = [layer for network in self.networks for layer in batch_norm_layers(network, "local").values()]
        self._statistics: Communicator | None = None
        if any(batch_norm_layers(network, "global") for network in self.networks) and self.comm.size > 1:
            # apart from the buckets, which leave when a rank has completed them
            self._statistics = self.comm.duplicate(f"{self.comm.name}, batch norm")
        for network in self.networks:
            synchronize_batch_norm(network, self._statistics or self.comm)

    def _place(self, method: str) -> tuple[str, str | None]:
        """Allocates the gradients; returns the method in use and, if it is not what one would expect, why."""
        self._windows: list[SharedWindow] = []
        # per group: its gradients and, behind them, which parameters have one; all of it is summed
        self._arrays: list[np.ndarray] = []
        self._flags: list[np.ndarray] = []
        note = None
        if self.comm.size > 1 and method not in ("mpi", "tree"):
            if self.comm.is_one_node:
                try:
                    for group in self.groups:
                        size = group.size + len(group.parameters)
                        self._windows.append(SharedWindow(self._exchange, size, group.dtype))
                except NotEnoughSharedMemory as error:
                    self._free_windows()
                    note = f"gradients are summed by MPI's all-reduce: {error}"
            elif method == "window":
                raise InputError("all-reduce method 'window': the ranks are on several nodes; valid is mpi")
        for index, group in enumerate(self.groups):
            if self._windows:
                window = self._windows[index]
                local, total = window.local, window.total
            else:
                local = np.zeros(group.size + len(group.parameters), group.dtype)
                total = local
            local[...] = 0
            group.place_gradients(local[: group.size], total[: group.size])
            self._arrays.append(local)
            self._flags.append(local[group.size :])
        return ("window" if self._windows else "tree" if method == "tree" else "mpi"), note

    # -- the exchange ----------------------------------------------------------------------------------------------
    def all_reduce(self) -> None:
        """Sums every gradient over the ranks. The gradients are then read-only until `zero_grad`.

        Running statistics of batch norm layers with local statistics are averaged.

        RuntimeError when they contain an earlier sum: call `zero_grad` before the next backward, or, to accumulate
        several backward passes, call `all_reduce` once, after the last.
        """
        if self.comm.size == 1:
            return
        for group in self.groups:
            if any(p.grad is not None and p.grad is not p.grad_buffer for p in group.parameters):
                raise RuntimeError(
                    "gradients were changed or all-reduced since the last zero_grad(): call zero_grad() before "
                    "backward, and all_reduce() once, after the last backward of an update"
                )
        for group, flags in zip(self.groups, self._flags):
            flags[:] = group.gather_gradients()
        if self._windows:
            for window in self._windows:
                window.all_reduce()
        elif self.overlap:
            self._finish_buckets()
        else:
            for whole in self._arrays:
                self._exchange.all_reduce(whole, out=whole)
        for index, group in enumerate(self.groups):
            flags = self._windows[index].total[group.size :] if self._windows else self._flags[index]
            everywhere = flags.all()
            for i, (parameter, view) in enumerate(zip(group.parameters, group.reduced_views)):
                parameter.grad = view if everywhere or flags[i] else None
        average_running_statistics(self._local, self.comm)

    def _finish_buckets(self) -> None:
        for bucket in self._buckets:  # always in this order: on every rank the same exchange must be the next one
            if bucket.pending is None:
                bucket.start(self._exchange)
        pending = [self._exchange.start_all_reduce(flags) for flags in self._flags]
        for bucket in self._buckets:
            bucket.finish()
        for exchange in pending:
            exchange.wait()

    def _completed(self, bucket: Bucket) -> Callable[[object], None]:
        def hook(_: object) -> None:
            bucket.completed += 1
            for earlier in self._buckets:
                if earlier.pending is None:
                    if self._accumulating or not earlier.is_complete:
                        return
                    earlier.start(self._exchange)

        return hook

    def take(self) -> list[np.ndarray]:
        """Copies of this rank's gradients, one flat array per dtype, and behind them which parameters have one.

        They have none afterwards. What is added up of such arrays, element by element, is given back by `put`.
        """
        for group, flags in zip(self.groups, self._flags):
            flags[:] = group.gather_gradients()
            for parameter in group.parameters:
                parameter.grad = None
        return [array.copy() for array in self._arrays]

    def put(self, arrays: Sequence[np.ndarray]) -> None:
        """Makes these, from `take`, this rank's gradients."""
        for group, own, given in zip(self.groups, self._arrays, arrays):
            own[...] = given
            for parameter, flag in zip(group.parameters, own[group.size :]):
                parameter.grad = parameter.grad_buffer if flag else None

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Around each backward but the last of an update that has several: nothing is exchanged inside."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False
            for bucket in self._buckets:
                bucket.completed = 0

    def free(self) -> None:
        """Gives back the shared memory; gradients are private again, and batch norm is serial."""
        for remove in self._unhook:
            remove()
        if self._statistics is not None:
            for network in self.networks:
                leave_batch_norm(network, self._statistics)
            self._statistics.free()
            self._statistics = None
        self._free_windows()

    def _free_windows(self) -> None:
        windows, self._windows = self._windows, []
        if windows:
            for group in self.groups:
                group.place_gradients(np.zeros(group.size, group.dtype))
        for window in windows:
            window.free()


def require_equal_replicas(weights: Iterable[np.ndarray], buffers: Iterable[np.ndarray], comm: Communicator) -> None:
    """Raises InputError on every rank when the weights or the buffers are not bitwise equal on all of them."""
    digests = comm.all_gather_object((_digest(weights), _digest(buffers)))
    for what, of_kind in zip(("weights", "buffers"), zip(*digests)):
        different = [rank for rank, other in enumerate(of_kind) if other != of_kind[0]]
        if different:
            raise InputError(
                f"replicas differ: the {what} of rank {different[0]} are not those of rank 0; "
                "initialize the network with one seed on all ranks, and give the communicator of the data axis alone"
            )


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
