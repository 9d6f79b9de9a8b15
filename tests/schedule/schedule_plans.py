"""All schedules for up to 8 ranks and 16 microbatches, and their dependencies as a graph, told in another way."""

import functools
import random

from parallel_dl.schedule import SCHEDULES, Plan, make, with_messages

CHUNKS = (1, 2, 3)
SIZES = [(pp, microbatches) for pp in range(1, 9) for microbatches in range(1, 17)]


@functools.cache
def plan(name, pp, microbatches, chunks=None):
    return with_messages(make(name, pp, microbatches, chunks))


def plans(*names):
    """(name, pp, microbatches, chunks, plan) of everything that is valid."""
    for name in names or SCHEDULES:
        for pp, microbatches in SIZES:
            for chunks in CHUNKS if name == "interleaved" else (None,):
                if name != "interleaved" or microbatches % pp == 0:
                    yield name, pp, microbatches, chunks, plan(name, pp, microbatches, chunks)


def graph(of, joined):
    """Action -> the actions before it: those of the program, and of a receive its send.

    `joined`: send and receive are one node, named by the send, as where each waits for the other.
    """
    before = {}
    for program in of.programs:
        last = None
        for action in program:
            receives = action.kind in ("RF", "RB")
            node = action.partner if joined and receives else action
            needs = before.setdefault(node, set())
            if last is not None:
                needs.add(last)
            if receives and not joined:
                needs.add(action.partner)
            last = node
    return before


def shuffled(of, seed, swaps):
    """The plan with some neighbours swapped."""
    draw = random.Random(seed)
    programs = [list(program) for program in of.programs]
    for _ in range(swaps):
        program = draw.choice(programs)
        at = draw.randrange(len(program) - 1)
        program[at : at + 2] = reversed(program[at : at + 2])
    return Plan("shuffled", tuple(map(tuple, programs)), of.blocking)
