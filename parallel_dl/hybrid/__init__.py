"""Hybrids: several kinds of parallelism over the same ranks; here "One weird trick" (Krizhevsky 2014).

Convolutions are data parallel, fully connected layers model parallel, and activations are exchanged between the two;
who does what when is a program (`parallel_dl.schedule.one_weird_trick`). Nothing that is imported here needs MPI. To
read in this order:

    halves.py            where a network is cut
    timeline.py          its program on a virtual clock: how much of the communication is hidden behind computing
    traffic.py           bytes per iteration: pure data parallelism against the hybrid
    exchange.py          posted exchanges of sub-batches; MPI from here on
    one_weird_trick.py   a network on the ranks
"""

from parallel_dl.hybrid.halves import Halves, halves_of
from parallel_dl.hybrid.timeline import timeline
from parallel_dl.hybrid.traffic import Traffic, traffic

__all__ = ["Halves", "Traffic", "halves_of", "timeline", "traffic"]
