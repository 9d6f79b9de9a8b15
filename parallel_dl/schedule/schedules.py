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
import inspect
from collections.abc import Callable

from parallel_dl import from_file
from parallel_dl.errors import InputError, cut, number_of, one_of, shown
from parallel_dl.schedule.actions import Action, Plan, PlanError, plan_of
from parallel_dl.schedule.asynchronous import Compute, Programs, with_updates_between
from parallel_dl.schedule.check import check
from parallel_dl.schedule.lowering import with_messages

MOST_FORWARDS = 100_000  # of all ranks and microbatches: what takes seconds here, not hours

Schedule = Callable[..., Programs]


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
    """1f1b, but stage s defers its weight gradients by s microbatches."""
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


def interleaved(pp: int, microbatches: int, chunks: int = 2) -> Programs:
    """1f1b over `chunks` stages per rank, p microbatches per stage in turn; p divides the number of microbatches."""
    if microbatches % pp:
        valid = f"{pp}, {2 * pp}, {3 * pp} and so on"
        raise PlanError(f"`microbatches` {microbatches}: interleaved takes multiples of `pp`, here {valid}")
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
    return with_updates_between(one_forward_one_backward(pp, microbatches))


SCHEDULES: dict[str, Schedule] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "pipedream": pipedream,
}
"""name -> the function that makes its programs from the numbers of ranks and microbatches

A function whose third parameter is `chunks` takes the number of stages per rank, which then has a default.
"""
_OURS = frozenset(SCHEDULES.values())


def register(name: str, schedule: Schedule) -> None:
    """Registers your own schedule under this name, for `make`, layouts and commands."""
    SCHEDULES[name] = schedule


def make(schedule: str | Schedule, pp: int, microbatches: int, chunks: int | None = None) -> Plan:
    """The plan of a schedule for `pp` ranks; `lowering.with_messages` adds the messages.

    The schedule is a name, FILE.py:NAME of a user's own file, or a function; your own schedules are checked. `chunks`
    is the number of stages per rank, for schedules that take it: interleaved (default 2). PlanError, which begins with
    the parameter, for an unknown name, a number below 1, more than `MOST_FORWARDS` forward passes, and anything the
    schedule refuses.
    """
    name, function = _named(schedule)
    for parameter, value in (("pp", pp), ("microbatches", microbatches), ("chunks", 1 if chunks is None else chunks)):
        if value < 1:
            raise PlanError("must be at least 1", parameter, value)
    taken = inspect.signature(function).parameters.get("chunks")
    if chunks is not None and taken is None:
        of_chunks = " and ".join(
            one for one, made in SCHEDULES.items() if "chunks" in inspect.signature(made).parameters
        )
        raise PlanError(f"`chunks` {chunks}: applies only to {of_chunks}; {name} has one stage per rank")
    per_rank = 1 if taken is None else taken.default if chunks is None else chunks
    if pp * per_rank * microbatches > MOST_FORWARDS:
        what = f"`pp` {pp}" if pp >= microbatches else f"`microbatches` {microbatches}"
        raise PlanError(
            f"{what}: at most {MOST_FORWARDS:,} forward passes are allowed in all, stages times microbatches"
        )
    numbers = (pp, microbatches) if taken is None else (pp, microbatches, per_rank)
    programs = from_file.call("`schedule`", name, function, *numbers, returns=list)
    return plan_of(name, programs) if function in _OURS else _checked(name, programs, pp, microbatches)


def is_asynchronous(schedule: str | Schedule, pp: int = 1, microbatches: int = 1, chunks: int | None = None) -> bool:
    """Whether it updates weights between microbatches, unlike a serial run; False for what `make` refuses."""
    try:
        return make(schedule, pp, microbatches, chunks).is_asynchronous
    except InputError:
        return False


def _named(schedule: str | Schedule) -> tuple[str, Schedule]:
    if callable(schedule):
        return getattr(schedule, "__name__", type(schedule).__name__), schedule
    if from_file.is_own(schedule):
        return schedule, from_file.find("`schedule`", schedule, SCHEDULES)
    if schedule not in SCHEDULES:
        near = difflib.get_close_matches(schedule.lower(), SCHEDULES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PlanError(f"unknown `schedule` {schedule!r}: {hint}{one_of(SCHEDULES)}")
    return schedule, SCHEDULES[schedule]


def _checked(name: str, programs: Programs, pp: int, microbatches: int) -> Plan:
    """The plan of a user's own schedule; PlanError if it is not a plan, or not a correct one."""
    own = f"`schedule` {cut(name)}" if from_file.is_own(name) else name
    try:
        plan = plan_of(name, [[Action.parse(str(Action(*action))) for action in program] for program in programs])
    except (TypeError, ValueError):
        raise PlanError(
            f"{own} returned {shown(programs)}: expected a list for each rank of (stage, kind, microbatch), "
            'like (0, "F", 0)'
        ) from None
    if (plan.ranks, plan.microbatches) != (pp, microbatches):
        has = f"{number_of(plan.ranks, 'rank')} and {number_of(plan.microbatches, 'microbatch')}"
        raise PlanError(f"{own} returned programs for {has}; expected {pp} and {microbatches}")
    report = check(with_messages(plan))
    if report.line is not None:
        raise PlanError(f"{own}: {report.line}")
    return plan
