"""The three schemes on the simulator's clock: how long they take, and how much of the communication is hidden.

All K ranks compute in step; every rank has a link of its own, which sends and receives at the same time, activations
and gradients do not disturb each other, and a message needs no latency.
"""

from __future__ import annotations

import math

from parallel_dl.errors import InputError
from parallel_dl.schedule import Simulation, Times, Wire, one_weird_trick, require_scheme, simulate


def timeline(
    scheme: str, ranks: int, forward: float, backward: float, send: float, reduce: float | None = None
) -> Simulation:
    """One iteration of the fully connected layers: `forward` and `backward` of the whole batch, shared by the ranks.

    `send` is the time in which one rank's link sends its share to all others: that is what each rank does in scheme a,
    at the same time as the others; in scheme b one rank after the other; in scheme c each step takes a K-th of it.
    `reduce`, by default as long, is the same for the gradients, which an owner receives. On one rank nothing is sent.

    `hidden` is (K - 1) / K in schemes b and c when computing takes longer than sending: the next sub-batch arrives
    within forward and backward of one, its gradients within the forward of the next. The first sending and the last
    reduction have nothing to hide behind. In scheme a nothing is hidden. InputError for an unknown scheme, for no rank,
    and for times that are negative or not finite.
    """
    require_scheme(scheme)
    reduce = send if reduce is None else reduce
    if ranks < 1:
        raise InputError(f"ranks {ranks}: must be at least 1")
    for name, time in (("forward", forward), ("backward", backward), ("send", send), ("reduce", reduce)):
        if not (time >= 0 and math.isfinite(time)):
            raise InputError(f"{name} {time}: must be a finite number, at least 0")
    parts = 1 if scheme == "a" else ranks
    of_link = ranks if scheme == "c" else 1  # steps in which a link sends a share
    times = Times(forward=(0.0, forward / parts), backward_input=(0.0, backward / parts), backward_weight=0.0)
    wire = Wire(seconds_per_byte=1.0, bytes=send / of_link, gradient_bytes=reduce / of_link)
    return simulate(one_weird_trick(ranks, [range(parts)]), times, wire)
