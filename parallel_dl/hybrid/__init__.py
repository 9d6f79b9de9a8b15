"""Hybrids: several kinds of parallelism over the same ranks; here "One weird trick" (Krizhevsky 2014).

Convolutions are data parallel, fully connected layers model parallel, and activations are exchanged between the two.
Where a network is cut is in `parallel_dl.splits.cut_at_flatten`, who does what when is a program,
`parallel_dl.schedule.one_weird_trick`, and what a rank sends is in `parallel_dl.cost.hybrid`. To read in this order:

    exchange.py          posted exchanges of sub-batches
    one_weird_trick.py   what a rank does for each action of its program
"""

from parallel_dl.hybrid.one_weird_trick import OneWeirdTrick

__all__ = ["OneWeirdTrick"]
