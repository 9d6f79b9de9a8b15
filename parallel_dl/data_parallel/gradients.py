"""Data parallelism: every rank has all weights and a share of the batch; this sums the gradients over the ranks.

The gradients of all parameters live in one flat array (`exchange`), so there is nothing to copy in or out:

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

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from parallel_dl.data_parallel.batch_norm import (
    average_running_statistics,
    batch_norm_layers,
    leave_batch_norm,
    synchronize_batch_norm,
)
from parallel_dl.data_parallel.buckets import Bucket, cut_into_buckets
from parallel_dl.data_parallel.changes import News, Watch
from parallel_dl.data_parallel.exchange import Exchange, lengths
from parallel_dl.data_parallel.replicas import Replicas, agreed_trainable, require_equal_replicas
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, NotEnoughSharedMemory, SharedWindow, world
from parallel_dl.nn import Newcomers, Parameter, networks_of, ordered

METHODS = ("auto", "window", "mpi", "tree")


class _Accumulation:
    """Keeps the buckets of all-reduces from leaving: `GradientAllReduce.accumulate`. Entered once per microbatch."""

    def __init__(self, sums: Sequence[GradientAllReduce]) -> None:
        self._sums = sums

    def __enter__(self) -> None:
        for sum_ in self._sums:
            sum_._accumulating = True

    def __exit__(self, *exception: object) -> None:
        for sum_ in self._sums:
            sum_._accumulating = False
            for bucket in sum_._buckets:
                bucket.completed = 0


class GradientAllReduce:
    """Sums the gradients of replicated parameters over the ranks of `comm`.

    Call `all_reduce()` between backward and the optimizer's step; afterwards, every rank's `.grad` holds the sum, which
    is the gradient of the global batch if each rank divided its loss by the global number of samples. If only some
    ranks have a gradient, all receive its sum; if none has, it stays None.

    Exactly the gradients of `parameters` are summed, whatever other optimizers and all-reduces the network has or had.
    Frozen parameters are left out; once one is unfrozen on some rank, its gradient is summed on all.

    The networks that the parameters belong to are then data parallel as a whole: until `free()`, their batch norm
    layers compute their statistics over the ranks (see `batch_norm`).

    Some gradients are summands along the model axis, too (`nn.Parameter.is_partial`): those of layers that
    `model_parallel.parallelize` has divided by samples or by image tiles. They also form one flat array, which is
    summed once, over the ranks of `partial_comm`: those of the data and the model axis, `mesh.over("data", "model")`.

    `method` is "window", "mpi", "tree" or "auto" (window on one node if it fits in /dev/shm, else mpi). `overlap` (mpi
    only; by default when the ranks are on several nodes) exchanges buckets of at least `bucket_bytes` during backward.
    Raises InputError if the ranks' weights or buffers differ, and for "window" on several nodes; ValueError for a
    "tree" over a number of ranks that is not a power of two. All ranks call every method together.

    A ledger lists the sums of gradients under "gradients", those of batch norm under the names of the layers, and the
    averages of running statistics under "running statistics".
    """

    _living: ClassVar[weakref.WeakSet[GradientAllReduce]] = weakref.WeakSet()

    def __init__(
        self,
        parameters: Iterable[Parameter],
        comm: Communicator,
        method: str = "auto",
        overlap: bool | None = None,
        bucket_bytes: int = 4 << 20,
        partial_comm: Communicator | None = None,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"all-reduce method {method!r}: expected one of {', '.join(METHODS)}")
        given = list({id(p): p for p in ordered(parameters, "GradientAllReduce")}.values())
        self.networks = networks_of(given)
        self._of_partial = self._sums_of_partial(given, partial_comm, comm, method, overlap, bucket_bytes)
        self._set_up([p for p in given if not p.is_partial], comm, method, overlap, bucket_bytes)

    @classmethod
    def _sums_of_partial(
        cls,
        parameters: Sequence[Parameter],
        comm: Communicator | None,
        replicas: Communicator,
        method: str,
        overlap: bool | None,
        bucket_bytes: int,
    ) -> GradientAllReduce | None:
        """Sums the partial gradients over `comm`; None if there are none. The batch norms are not its business."""
        partial = [parameter for parameter in parameters if parameter.is_partial]
        if not partial:
            return None
        if comm is None:
            raise InputError(
                f"the gradient of {partial[0].name} is a summand on each rank of the model axis, too: give "
                'GradientAllReduce(..., partial_comm=mesh.over("data", "model"))'
            )
        own = world().rank
        missing = set(replicas.all_gather_object(own)) - set(comm.all_gather_object(own))
        if missing:
            raise InputError(
                f"partial_comm {comm.name!r} is without rank {min(missing)}, which has a replica of {partial[0].name}: "
                'give partial_comm=mesh.over("data", "model")'
            )
        sums = cls.__new__(cls)
        sums.networks, sums._of_partial = [], None
        sums._set_up(partial, comm, method, overlap, bucket_bytes)
        return sums

    def _set_up(
        self, parameters: list[Parameter], comm: Communicator, method: str, overlap: bool | None, bucket_bytes: int
    ) -> None:
        self.comm = comm = comm.in_tree() if method == "tree" else comm
        self.parameters = parameters
        trainable = agreed_trainable(self.parameters, (method, overlap, bucket_bytes), comm)
        buffers = [buffer for network in self.networks for buffer in network.buffers()]
        require_equal_replicas([parameter.data for parameter in parameters], buffers, comm)
        self._agree_on_weights = Replicas(parameters, comm, at_once=False).look if comm.checked else None
        self.overlap = False
        self._exchange = comm.labelled("gradients", "backward")
        self.method = method
        self.note: str | None = None
        self._exchanges: list[Exchange] = []
        self._place(method, overlap, trainable)
        self._synchronize_batch_norm()
        newcomers = Newcomers(parameters, self._is_given_to_another)
        self._watch = Watch(parameters, self.networks, newcomers, self._local)
        self._accumulating = False
        self._unhook: list[Callable[[], None]] = []
        self._buckets: list[Bucket] = []
        if self.overlap:
            # its own communicator: a bucket leaves when a rank has completed it, whatever the other ranks call then;
            # unchecked: the order of buckets is fixed, and a comparison would wait for the others during backward
            self._own = comm.duplicate(f"{comm.name}, gradients", checked=False)
            self._exchange = self._own.labelled("gradients", "backward")
            self._buckets = [b for exchange in self._exchanges for b in cut_into_buckets(exchange, bucket_bytes)]
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    hook = self._completed(bucket)
                    self._unhook.append(parameter.register_post_accumulate_grad_hook(hook))
        GradientAllReduce._living.add(self)

    def __reduce__(self) -> Any:
        raise TypeError("a GradientAllReduce cannot be copied: make one for the parameters of the copied network")

    def _is_given_to_another(self, parameter: Parameter) -> bool:
        others = [other for other in GradientAllReduce._living if other is not self]
        return any(parameter is one for other in others for one in other.parameters)

    def _synchronize_batch_norm(self) -> None:
        self._local = [layer for network in self.networks for layer in batch_norm_layers(network, "local").values()]
        self._statistics: Communicator | None = None
        if any(batch_norm_layers(network, "global") for network in self.networks) and self.comm.size > 1:
            # apart from the buckets, which leave when a rank has completed them
            statistics = self.comm.duplicate(f"{self.comm.name}, batch norm")
            self._statistics = statistics.in_tree() if self.comm.sums_in_tree else statistics
        for network in self.networks:
            synchronize_batch_norm(network, self._statistics or self.comm)

    # -- where gradients are summed --------------------------------------------------------------------------------
    def _place(self, method: str, overlap: bool | None, trainable: Sequence[Parameter]) -> None:
        """Allocates the gradients; sets the method in use and, if another was expected, the note that says why."""
        by_dtype = _by_dtype(trainable)
        windows: list[SharedWindow] = []
        if self.comm.size > 1 and method not in ("mpi", "tree"):
            if self.comm.is_one_node:
                windows = self._windows(by_dtype)
            elif method == "window":
                raise InputError("all-reduce method 'window': the ranks are on several nodes; use mpi")
        self.method = "window" if windows else "tree" if method == "tree" else "mpi"
        can_overlap = self.method == "mpi" and self.comm.size > 1  # one rank alone never waits for its buckets
        self.overlap = can_overlap and (not self.comm.is_one_node if overlap is None else overlap)
        self._exchanges = [
            Exchange(members, windows[place] if windows else None, self.overlap)
            for place, members in enumerate(by_dtype)
        ]

    def _windows(self, by_dtype: Sequence[Sequence[Parameter]]) -> list[SharedWindow]:
        """A window for each, or none at all if the shared memory is too small."""
        windows: list[SharedWindow] = []
        try:
            for members in by_dtype:
                windows.append(SharedWindow(self._exchange, lengths(members)[1], members[0].data.dtype))
        except NotEnoughSharedMemory as error:
            self.note = f"gradients are summed by MPI's all-reduce: {error}"
            for window in windows:
                window.free()
            return []
        return windows

    # -- the exchange ----------------------------------------------------------------------------------------------
    def all_reduce(self) -> None:
        """Sums every gradient over the ranks. The gradients are then read-only until `zero_grad`.

        Running statistics of batch norm layers with local statistics are averaged.

        Raises RuntimeError, on every rank, if the gradients contain an earlier sum: call `zero_grad` before the next
        backward, or, to accumulate several backward passes, call `all_reduce` once, after the last. Raises InputError,
        on every rank and before any weight is changed, if on some rank

        - a weight that was added to the network, or unfrozen, after this all-reduce was made has a gradient but is in
          no all-reduce,
        - a weight has a shape or dtype other than it had then,
        - weights that were given other arrays are no longer equal to those of the other ranks.
        """
        if self not in GradientAllReduce._living:
            raise RuntimeError("this GradientAllReduce was freed: make a new one")
        if self._of_partial is not None:
            self._of_partial.all_reduce()
        if self.comm.size == 1:
            return
        if self._agree_on_weights is not None:
            self._agree_on_weights()
        own = self._watch.news(self._exchanges)
        for exchange in self._exchanges:
            exchange.gather()
        own.late = any(bucket.was_changed() for bucket in self._buckets)
        if self._exchanges and own:
            self._exchanges[0].gather(news=True)
        if self.overlap:
            self._finish_buckets()
        else:
            for exchange in self._exchanges:
                exchange.all_reduce(self._exchange)
        if self._any_has_news(own):
            self._agree(own)
            self._watch.note()
        for exchange in self._exchanges:
            exchange.give()
        average_running_statistics(self._local, self.comm)

    def _any_has_news(self, own: News) -> bool:
        """Whether any rank has something to agree on; the sums of the gradients, if there are any, tell."""
        if self._exchanges:
            return self._exchanges[0].has_news
        return bool(self.parameters) and bool(self._exchange.all_reduce(np.array(bool(own)), "or"))

    def _agree(self, own: News) -> None:
        """All ranks together, after the sums: raises what is wrong on any, and sums what is not yet summed."""
        told: list[News] = self.comm.all_gather_object(own)
        for rank, news in enumerate(told):
            if news.wrong:
                self._refuse_the_next()
                said = news.wrong if all(of_rank.wrong for of_rank in told) else f"rank {rank}: {news.wrong}"
                raise RuntimeError(said) if news.misuse else InputError(said)
        opened = sorted({place for news in told for place in news.opened})
        replaced = {place for news in told for place in news.replaced}
        try:
            changed = [self.parameters[place].data for place in sorted({*opened, *replaced})]
            require_equal_replicas(changed, (), self.comm)
        except InputError:
            self._refuse_the_next()
            raise
        if any(news.late for news in told):  # a bucket had left before the last backward
            for exchange in self._exchanges:
                exchange.gather()
                exchange.all_reduce(self._exchange)
        for members in _by_dtype([self.parameters[place] for place in opened]):
            windows = self._windows([members]) if self.method == "window" else []
            exchange = Exchange(members, windows[0] if windows else None, self.overlap)
            exchange.gather()
            exchange.all_reduce(self._exchange)
            self._exchanges.append(exchange)

    def _refuse_the_next(self) -> None:
        """What was summed in place is not to be summed once more: it is marked as what it is, a sum."""
        for exchange in self._exchanges:
            if exchange.window is None:
                exchange.give()

    def _finish_buckets(self) -> None:
        for bucket in self._buckets:  # always in this order: on every rank the same exchange must be the next one
            if bucket.pending is None:
                bucket.start(self._exchange)
        bucketed = {id(parameter) for bucket in self._buckets for parameter in bucket.parameters}
        pending = []
        for exchange in self._exchanges:
            if id(exchange.parameters[0]) in bucketed:
                exchange.bring_flags()
                pending.append(self._exchange.start_all_reduce(exchange.flags))
            else:  # unfrozen later
                exchange.total[...] = exchange.local
                pending.append(self._exchange.start_all_reduce(exchange.total))
        for bucket in self._buckets:
            bucket.finish()
        for waiting in pending:
            waiting.wait()

    def _completed(self, bucket: Bucket) -> Callable[[object], None]:
        def hook(_: object) -> None:
            bucket.completed += 1
            for earlier in self._buckets:
                if earlier.pending is None:
                    if self._accumulating or not earlier.is_complete:
                        return
                    earlier.start(self._exchange)

        return hook

    def accumulate(self) -> AbstractContextManager[None]:
        """For every backward but the last of an update that has several: nothing is exchanged inside.

        Without it, the sum is the same, but gradients exchanged in an earlier backward are exchanged again.
        """
        return _Accumulation([self] if self._of_partial is None else [self, self._of_partial])

    def free(self) -> None:
        """Frees the shared memory; gradients are private again, batch norm is serial. A second call does nothing."""
        if self not in GradientAllReduce._living:
            return
        GradientAllReduce._living.discard(self)
        if self._of_partial is not None:
            self._of_partial.free()
        for remove in self._unhook:
            remove()
        if self.overlap and self.comm.size > 1:
            for bucket in self._buckets:  # some ranks may have begun
                if bucket.pending is None:
                    bucket.start(self._exchange)
            for bucket in self._buckets:
                bucket.finish()
        if self._statistics is not None:
            for network in self.networks:
                leave_batch_norm(network, self._statistics)
            self._statistics.free()
            self._statistics = None
        for exchange in self._exchanges:
            exchange.free()
        if self.overlap:
            self._own.free()


def _by_dtype(parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    found: dict[np.dtype, list[Parameter]] = {}
    for parameter in parameters:
        found.setdefault(parameter.data.dtype, []).append(parameter)
    return list(found.values())
