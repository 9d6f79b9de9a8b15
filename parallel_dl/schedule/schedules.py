"""The schedules: pure functions from numbers of ranks and microbatches to the order in which each rank computes.

naive        one batch through all stages, forward and then back: what the survey calls mere layer partitioning
gpipe        all forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965)
1f1b         backwards as soon as they can be: fewer activations are alive (PipeDream-Flush; Narayanan et al. 2021,
             arXiv 2006.09503, section 3)
interleaved  1f1b over several stages per rank: stage c p + r is on rank r (Narayanan et al. 2021, arXiv 2104.04473,
             section 2.2)
zb-h1        1f1b whose weight gradients fill the idle time at the end (Qi et al. 2023, arXiv 2401.10241, section 2.1)
pipedream    asynchronous 1f1b: a stage updates its weights after each microbatch (Narayanan et al. 2019, PipeDream,
             SOSP '19)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from parallel_dl.errors import one_of
from parallel_dl.schedule.actions import Plan, PlanError, plan_of

MOST_FORWARDS = 100_000  # of all ranks and microbatches: what takes seconds here, not hours
DEFAULT_CHUNKS = 2

Compute = tuple[int, str, int]  # stage, kind, microbatch
Programs = list[list[Compute]]


def naive(pp: int, microbatches: int) -> Programs:
    """Each microbatch goes forward and back before the next one starts."""
    return [[(stage, kind, j) for j in range(microbatches) for kind in "FB"] for stage in range(pp)]


def gpipe(pp: int, microbatches: int) -> Programs:
    """All forwards, then all backwards."""
    return [[(stage, kind, j) for kind in "FB" for j in range(microbatches)] for stage in range(pp)]


def one_forward_one_backward(pp: int, microbatches: int) -> Programs:
    """Stage s begins with p - s - 1 forwards; then one forward and one backward in turn."""
    programs = []
    for stage in range(pp):
        ahead = min(pp - stage - 1, microbatches)
        program = [(stage, "F", j) for j in range(ahead)]
        for j in range(microbatches):
            if ahead + j < microbatches:
                program.append((stage, "F", ahead + j))
            program.append((stage, "B", j))
        programs.append(program)
    return programs


def zb_h1(pp: int, microbatches: int) -> Programs:
    """1f1b, but stage s puts its weight gradients off by s microbatches."""
    programs = []
    for stage, program in enumerate(one_forward_one_backward(pp, microbatches)):
        split: list[Compute] = []
        for _, kind, j in program:
            split.append((stage, "F" if kind == "F" else "I", j))
            if kind == "B" and j >= stage:
                split.append((stage, "W", j - stage))
        put_off = range(max(0, microbatches - stage), microbatches)
        programs.append(split + [(stage, "W", j) for j in put_off])
    return programs


def interleaved(pp: int, microbatches: int, chunks: int = DEFAULT_CHUNKS) -> Programs:
    """1f1b over `chunks` stages per rank, p microbatches of one stage after another; p divides the microbatches."""
    total = microbatches * chunks

    def forward(k: int) -> tuple[int, int]:  # the k-th forward of a rank: (chunk, microbatch)
        group, inside = divmod(k, pp * chunks)
        chunk, j = divmod(inside, pp)
        return chunk, group * pp + j

    programs = []
    for rank in range(pp):
        ahead = min(total, 2 * (pp - rank - 1) + (chunks - 1) * pp)
        order = [("F", k) for k in range(ahead)]
        for k in range(total):
            order += [("F", ahead + k)] * (ahead + k < total) + [("B", k)]
        program = []
        for kind, k in order:
            chunk, j = forward(k)
            program.append(((chunk if kind == "F" else chunks - 1 - chunk) * pp + rank, kind, j))
        programs.append(program)
    return programs


def pipedream(pp: int, microbatches: int) -> Programs:
    """1f1b, with an update of the stage's weights after each backward."""
    programs = []
    for program in one_forward_one_backward(pp, microbatches):
        with_updates: list[Compute] = []
        for stage, kind, j in program:
            with_updates.append((stage, kind, j))
            if kind == "B":
                with_updates.append((stage, "U", j))
        programs.append(with_updates)
    return programs


ASYNCHRONOUS = ("pipedream",)
"""schedules that update the weights between microbatches: another computation than a serial run"""

SCHEDULES: dict[str, Callable[..., Programs]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "pipedream": pipedream,
}
"""name -> the function that makes its programs from the numbers of ranks and microbatches"""


def make(name: str, pp: int, microbatches: int, chunks: int | None = None) -> Plan:
    """The schedule `name` for `pp` ranks, without messages: `lowering.with_messages` adds them.

    `chunks` is how many stages a rank has, for interleaved only (2 when not given). PlanError names what is not valid,
    and begins with the parameter: an unknown name, a number below 1, more than `MOST_FORWARDS` forward passes, and
    microbatches that interleaved cannot divide by pp.
    """
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name.lower(), SCHEDULES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PlanError(f"unknown `schedule` {name!r}: {hint}{one_of(SCHEDULES)}")
    for parameter, value in (("pp", pp), ("microbatches", microbatches), ("chunks", 1 if chunks is None else chunks)):
        if value < 1:
            raise PlanError("must be at least 1", parameter, value)
    if chunks is not None and name != "interleaved":
        raise PlanError(f"`chunks` {chunks}: belongs to interleaved; {name} has one stage per rank")
    per_rank = 1 if name != "interleaved" else DEFAULT_CHUNKS if chunks is None else chunks
    if pp * per_rank * microbatches > MOST_FORWARDS:
        what = f"`pp` {pp}" if pp >= microbatches else f"`microbatches` {microbatches}"
        raise PlanError(f"{what}: valid are at most {MOST_FORWARDS:,} forward passes in all, stages times microbatches")
    if name == "interleaved":
        if microbatches % pp:
            valid = f"{pp}, {2 * pp}, {3 * pp} and so on"
            raise PlanError(f"`microbatches` {microbatches}: interleaved takes multiples of `pp`, here {valid}")
        return plan_of(name, interleaved(pp, microbatches, per_rank))
    return plan_of(name, SCHEDULES[name](pp, microbatches))
