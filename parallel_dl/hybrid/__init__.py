"""Hybrids: several kinds of parallelism over the same ranks; here "One weird trick" (Krizhevsky 2014).

Convolutions are data parallel, fully connected layers model parallel, and activations change hands between the two.
Nothing that is imported here needs MPI. To read in this order:

    parts.py             which samples the fully connected layers get in each step: schemes a, b, c
    halves.py            where a network is cut
    timeline.py          how long the schemes take on a virtual clock, and how much of the communication is hidden
    traffic.py           bytes per iteration: pure data parallelism against the hybrid
    exchange.py          posted exchanges of parts; MPI from here on
    one_weird_trick.py   a network on the ranks
"""

from parallel_dl.hybrid.halves import Halves, halves_of
from parallel_dl.hybrid.parts import SCHEMES, Part, largest_outbound, parts_of, received
from parallel_dl.hybrid.timeline import Stretch, Timeline, timeline
from parallel_dl.hybrid.traffic import Traffic, traffic

__all__ = [
    "SCHEMES",
    "Halves",
    "Part",
    "Stretch",
    "Timeline",
    "Traffic",
    "halves_of",
    "largest_outbound",
    "parts_of",
    "received",
    "timeline",
    "traffic",
]
