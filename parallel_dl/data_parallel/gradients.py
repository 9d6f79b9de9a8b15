"""Data parallelism: every rank has all weights and a share of the batch; here the gradients are summed over the ranks.

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

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import is_
from typing import Any, ClassVar

import numpy as np

from parallel_dl.data_parallel.batch_norm import (
    average_running_statistics,
    batch_norm_layers,
    leave_batch_norm,
    synchronize_batch_norm,
)
from parallel_dl.data_parallel.buckets import Bucket, cut_into_buckets
from parallel_dl.data_parallel.exchange import Exchange, lengths
from parallel_dl.data_parallel.replicas import agreed_trainable, require_equal_replicas
from parallel_dl.errors import InputError
from parallel_dl.mpi import Communicator, NotEnoughSharedMemory, SharedWindow
from parallel_dl.nn import Module, Newcomers, Parameter, networks_of, ordered

METHODS = ("auto", "window", "mpi", "tree")


@dataclasses.dataclass(slots=True)
class _News:
    """What one rank has to tell the others before gradients are given back; true if there is anything."""

    wrong: str = ""
    misuse: bool = False
    """whether it is the program that is wrong (RuntimeError), not what it was given (InputError)"""
    opened: Sequence[int] = ()
    """indices of parameters that are not summed yet but should be"""
    replaced: Sequence[int] = ()
    """indices of parameters whose arrays are not those of the last sum"""
    late: bool = False
    """whether a bucket left before its gradients were final"""

    def __bool__(self) -> bool:
        return bool(self.wrong or self.opened or self.replaced or self.late)


class GradientAllReduce:
    """Sums the gradients of replicated parameters over the ranks of `comm`.

    Call `all_reduce()` between backward and the optimizer's step; afterwards every rank's `.grad` holds the sum, which
    is the gradient of the global batch when each rank divided its loss by the global number of samples. If only some
    ranks have a gradient, all receive its sum; if none has, it stays None.

    Exactly the gradients of `parameters` are summed, whatever other optimizers and all-reduces the network has or had.
    Frozen parameters are left out; once one is unfrozen on some rank, its gradient is summed on all.

    The networks that the parameters belong to are then data parallel as a whole: their batch norm layers take their
    statistics over the ranks (see `batch_norm`), until `free()`.

    Some gradients are summands not along the data axis alone: `nn.Parameter.is_partial`, of layers that
    `model_parallel.parallelize` has divided by samples or by tiles of an image. They are one flat array too, summed
    once, over the ranks of `partial_comm`: those of the data and the model axis, `mesh.over("data", "model")`.

    `method` is "window", "mpi", "tree" or "auto" (window on one node if it fits in /dev/shm, else mpi). `overlap` (mpi
    only; by default when the ranks are on several nodes) exchanges buckets of at least `bucket_bytes` during backward.
    Raises InputError when the ranks' weights or buffers differ, and for "window" on several nodes; ValueError for a
    "tree" over a number of ranks that is not a power of two. All ranks call everything together.

    A ledger enters the sums of gradients under "gradients", those of batch norm under the names of the layers, and the
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
        self._of_partial = self._sums_of_partial(given, partial_comm, method, overlap, bucket_bytes)
        self._set_up([p for p in given if not p.is_partial], comm, method, overlap, bucket_bytes)

    @classmethod
    def _sums_of_partial(
        cls,
        parameters: Sequence[Parameter],
        comm: Communicator | None,
        method: str,
        overlap: bool | None,
        bucket_bytes: int,
    ) -> GradientAllReduce | None:
        """What sums the partial gradients; None if there are none. The batch norms are not its business."""
        partial = [parameter for parameter in parameters if parameter.is_partial]
        if not partial:
            return None
        if comm is None:
            raise InputError(
                f"the gradient of {partial[0].name} is a summand on each rank of the model axis, too: give "
                'GradientAllReduce(..., partial_comm=mesh.over("data", "model"))'
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
        self._data = [parameter.data for parameter in self.parameters]
        trainable = agreed_trainable(self.parameters, (method, overlap, bucket_bytes), comm)
        buffers = [buffer for network in self.networks for buffer in network.buffers()]
        require_equal_replicas(self._data, buffers, comm)
        self._rewritten = [(network, network._rewritten) for network in self.networks]
        self._newcomers = Newcomers(self.parameters, self._is_given_to_another)
        self.overlap = False
        self._exchange = comm.labelled("gradients", "backward")
        self.method = method
        self.note: str | None = None
        self._exchanges: list[Exchange] = []
        self._place(method, overlap, trainable)
        self._synchronize_batch_norm()
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
        self._registrations = Module.registrations
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
        self.overlap = self.method == "mpi" and (not self.comm.is_one_node if overlap is None else overlap)
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

        Raises RuntimeError, on every rank, when the gradients contain an earlier sum: call `zero_grad` before the next
        backward, or, to accumulate several backward passes, call `all_reduce` once, after the last. Raises InputError,
        on every rank and before a weight is changed, when on some rank

        - a weight that came into the network, or was unfrozen, after this all-reduce was made has a gradient but is in
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
        own = self._news()
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
            self._note()
        for exchange in self._exchanges:
            exchange.give()
        average_running_statistics(self._local, self.comm)

    def _news(self) -> _News:
        """What has changed here since the last sum; notes where an optimizer has laid out the weights."""
        for parameter in self._newcomers.found():
            return _News(
                f"{parameter.name} has a gradient but is in no GradientAllReduce: it was added to the network, or "
                "unfrozen, after this one was made; make one for it too, or freeze it"
            )
        unmoved = all(map(is_, [parameter.data for parameter in self.parameters], self._data))
        in_place = all(exchange.gradients.are_in_place for exchange in self._exchanges)
        wrong = self._batch_norm_that_came_later()
        if not wrong and not (unmoved and in_place):
            wrong = self._other_types()
        if wrong:
            return _News(wrong)
        replaced: list[int] = []
        if any(network._rewritten != count for network, count in self._rewritten):
            replaced = list(range(len(self.parameters)))
        elif not unmoved:
            for place, (parameter, before) in enumerate(zip(self.parameters, self._data)):
                if parameter.data is before:
                    continue
                if parameter.flat is not None and parameter.flat.holds(parameter, since=before):
                    self._data[place] = parameter.data
                else:
                    replaced.append(place)
        if not in_place and self._contains_a_sum():
            return _News(
                "gradients were changed or all-reduced since the last zero_grad(): call zero_grad() before "
                "backward, and all_reduce() once, after the last backward of an update",
                misuse=True,
            )
        return _News(opened=self._opened(), replaced=replaced)

    def _note(self) -> None:
        """Remembers the weights as they are, now that they are known to be equal on all ranks."""
        self._data = [parameter.data for parameter in self.parameters]
        self._rewritten = [(network, network._rewritten) for network, _ in self._rewritten]

    def _other_types(self) -> str:
        for parameter, before in zip(self.parameters, self._data):
            data, grad = parameter.data, parameter.grad
            if data is not before and (data.dtype != before.dtype or data.shape != parameter.shape):
                now, then = f"{data.dtype} {data.shape}", f"{before.dtype} {before.shape}"
                return f"{parameter.name} is {now} now, but was {then} in this GradientAllReduce: make a new one"
            if grad is not None and grad is not parameter.grad_buffer and grad.shape != parameter.shape:
                return f"the gradient of {parameter.name} has shape {grad.shape}, expected {parameter.shape}"
        return ""

    def _batch_norm_that_came_later(self) -> str:
        """What is wrong with a batch norm layer that has come into the networks, if there is one."""
        if self._registrations == Module.registrations or not self.networks:
            return ""
        for network in self._newcomers.networks:
            local = batch_norm_layers(network, "local")
            alone = {name: layer for name, layer in batch_norm_layers(network, "global").items() if layer.total is None}
            alone |= {name: layer for name, layer in local.items() if not any(layer is one for one in self._local)}
            for name in alone:
                return (
                    f"{name} is a batch norm layer that was added after this GradientAllReduce was made, "
                    "which does not synchronise its statistics: make a new one"
                )
        self._registrations = Module.registrations
        return ""

    def _contains_a_sum(self) -> bool:
        for exchange in self._exchanges:
            for parameter in exchange.parameters:
                grad, buffer = parameter.grad, parameter.grad_buffer
                if grad is None or grad is buffer or (buffer is None and grad.flags.writeable):
                    continue
                if self._is_in_a_network(parameter):
                    return True
                parameter.grad = None  # of a layer that was replaced: the network's zero_grad does not reach it
        return False

    def _is_in_a_network(self, parameter: Parameter) -> bool:
        return any(parameter is one for network in self._newcomers.networks for one in network.parameters())

    def _opened(self) -> list[int]:
        """Indices of the parameters that are not summed yet but should be."""
        if sum(len(exchange.parameters) for exchange in self._exchanges) == len(self.parameters):
            return []
        summed = {id(p) for exchange in self._exchanges for p in exchange.parameters}
        return [
            place
            for place, parameter in enumerate(self.parameters)
            if id(parameter) not in summed and (parameter.requires_grad or parameter.grad is not None)
        ]

    def _any_has_news(self, own: _News) -> bool:
        """Whether any rank has something to agree on; the sums of the gradients, if there are any, tell."""
        if self._exchanges:
            return self._exchanges[0].has_news
        return bool(self.parameters) and bool(self._exchange.all_reduce(np.array(bool(own)), "or"))

    def _agree(self, own: _News) -> None:
        """All ranks together, after the sums: raises what is wrong on any, and sums what is not yet summed."""
        told: list[_News] = self.comm.all_gather_object(own)
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

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """For each backward but the last of an update that has several: nothing is exchanged inside.

        Without it the sum is the same, but what was exchanged in an earlier backward is exchanged again.
        """
        self._accumulating = True
        try:
            with nullcontext() if self._of_partial is None else self._of_partial.accumulate():
                yield
        finally:
            self._accumulating = False
            for bucket in self._buckets:
                bucket.completed = 0

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
