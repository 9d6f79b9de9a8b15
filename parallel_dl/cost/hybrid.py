"""Bytes that a rank passes to MPI in one iteration: pure data parallelism against the hybrid, from shapes alone.

They are what the ledger counts when MPI sums the gradients: for a send the data sent, for an all-reduce the array, for
an all-gather what the others have, for a reduce-scatter what they get. In shared memory, gradients are not sent; the
same bytes are summed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parallel_dl import nn, partition, splits
from parallel_dl.cost.shares import loss_messages
from parallel_dl.errors import InputError
from parallel_dl.mesh import Replicated
from parallel_dl.nn.flat import laid_out
from parallel_dl.schedule import received
from parallel_dl.splits.cut_at_flatten import cut_at_flatten

_LABEL = 8  # bytes of a target


@dataclass(frozen=True)
class Traffic:
    """What one rank of `ranks` sends in an iteration with `batch_size` samples, in bytes.

    `data_parallel` is the all-reduce of all gradients. The hybrid has the others: activations to all other ranks, the
    summands of their gradients back to the owners, the targets, what the split fully connected layers and the loss
    exchange, and the all-reduces of gradients: of the layers before the Flatten (`convolution_gradients`), and of those
    after it that are split by samples (`partial_gradients`). The same in all three schemes.
    """

    ranks: int
    batch_size: int
    data_parallel: int
    activations: int
    activation_gradients: int
    targets: int
    fully_connected: int
    loss: int
    convolution_gradients: int
    partial_gradients: int

    @property
    def hybrid(self) -> int:
        """All that the hybrid sends."""
        return (
            self.activations
            + self.activation_gradients
            + self.targets
            + self.fully_connected
            + self.loss
            + self.convolution_gradients
            + self.partial_gradients
        )


def traffic(
    network: nn.Module,
    input_shape: Sequence[int],
    ranks: int,
    batch_size: int,
    splits_by_name: Mapping[str, str] | None = None,
    rank: int = 0,
    itemsize: int = 4,
) -> Traffic:
    """The traffic of `rank`, by default of the first, whose share of the batch is the largest.

    Values have `itemsize` bytes; the loss is a cross-entropy of labels. What batch norm exchanges in front of the
    Flatten, which is the same in both, is in neither. Raises InputError as `cut_at_flatten` and `splits.plan`, and for
    numbers below 1.
    """
    for name, number in (("ranks", ranks), ("batch-size", batch_size)):
        if number < 1:
            raise InputError("must be at least 1", name, number)
    cut = cut_at_flatten(network, input_shape)
    plan = cut.plan(ranks, splits_by_name)
    shares = partition.shares(batch_size, ranks)
    others = received(shares, rank, cut.values) if plan.input.has(Replicated) else 0
    sent = [message for _, message in splits.messages(plan, rank, batch_size)]
    alone = ranks == 1
    return Traffic(
        ranks=ranks,
        batch_size=batch_size,
        data_parallel=0 if alone else _all_reduce(_sizes(network.parameters()), itemsize),
        activations=(ranks - 1) * shares[rank] * cut.values * itemsize,
        activation_gradients=others * itemsize,
        targets=(batch_size - shares[rank]) * _LABEL,
        fully_connected=_bytes(sent, 1, itemsize),
        loss=_bytes(loss_messages(plan), batch_size, itemsize),
        convolution_gradients=0 if alone else _all_reduce(_sizes(cut.features.parameters()), itemsize),
        partial_gradients=_all_reduce(list(plan.partial_sizes().values()), itemsize),
    )


def _sizes(parameters: Iterable[nn.Parameter]) -> list[int]:
    return [parameter.size for parameter in parameters if parameter.requires_grad]


def _all_reduce(sizes: Sequence[int], itemsize: int) -> int:
    """Of all gradients in one flat array, and of one value for each that says whether there is one."""
    return (laid_out(sizes, itemsize)[1] + len(sizes)) * itemsize


def _bytes(messages: Iterable[splits.Message], samples: int, itemsize: int) -> int:
    return sum(one.values * samples * (one.itemsize or itemsize) for one in messages)
