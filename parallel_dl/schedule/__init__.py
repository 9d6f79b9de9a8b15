"""A training step as data: what each rank computes and sends, in order; checked and timed before anything runs.

Standard library only: nothing of the package but who owns which slice, no NumPy, no MPI. To read in this order:

    actions.py          actions like `2F0`, programs of the ranks, plans
    schedules.py        naive, gpipe, 1f1b, interleaved, zb-h1, pipedream: pure functions
    asynchronous.py     passes: updates between microbatches are added
    reductions.py       replicas, the sums of their gradients, the update; sharded state, recomputation
    lowering.py         sends and receives
    one_weird_trick.py  its three schemes: sub-batches, and who does what with them
    step.py             the plan of a whole step
    files.py            plans as text, and PyTorch's CSV
    order.py            who waits for whom: deadlock
    check.py            is a plan right?
    simulate.py         how long does it take, and who is idle?
    execute.py          one rank's program is carried out
"""

from parallel_dl.schedule.actions import ALL, MEANINGS, Action, Plan, PlanError, Program
from parallel_dl.schedule.check import Report, check, peak, peak_live
from parallel_dl.schedule.execute import StageObject, execute
from parallel_dl.schedule.files import parse, read, write
from parallel_dl.schedule.lowering import with_messages, without_messages
from parallel_dl.schedule.one_weird_trick import (
    SCHEMES,
    SubBatch,
    largest_outbound,
    one_weird_trick,
    received,
    require_scheme,
    sub_batches,
)
from parallel_dl.schedule.order import Wait, find_cycle
from parallel_dl.schedule.reductions import (
    replicated,
    with_all_reduce,
    with_recomputation,
    with_sharded_state,
    with_update,
)
from parallel_dl.schedule.schedules import SCHEDULES, Schedule, is_asynchronous, make, register
from parallel_dl.schedule.simulate import Deadlock, Event, Simulation, Times, Wire, simulate
from parallel_dl.schedule.step import plan_of_hybrid_step, plan_of_step

__all__ = [
    "ALL",
    "MEANINGS",
    "SCHEDULES",
    "SCHEMES",
    "Action",
    "Deadlock",
    "Event",
    "Plan",
    "PlanError",
    "Program",
    "Report",
    "Schedule",
    "Simulation",
    "StageObject",
    "SubBatch",
    "Times",
    "Wait",
    "Wire",
    "check",
    "execute",
    "find_cycle",
    "is_asynchronous",
    "largest_outbound",
    "make",
    "one_weird_trick",
    "parse",
    "peak",
    "peak_live",
    "plan_of_hybrid_step",
    "plan_of_step",
    "read",
    "received",
    "register",
    "replicated",
    "require_scheme",
    "simulate",
    "sub_batches",
    "with_all_reduce",
    "with_messages",
    "with_recomputation",
    "with_sharded_state",
    "with_update",
    "without_messages",
    "write",
]
