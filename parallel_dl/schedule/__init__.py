"""A pipelined step as data: who computes and sends what, in which order; checked and timed before anything runs.

Standard library only: nothing of the package, no NumPy, no MPI. To read in this order:

    actions.py    actions like `2F0`, programs of the ranks, plans
    schedules.py  naive, gpipe, 1f1b, interleaved, zb-h1, pipedream: pure functions
    lowering.py   sends and receives are added
    files.py      plans as text, and PyTorch's CSV
    order.py      who waits for whom: deadlock
    check.py      is a plan right?
    simulate.py   how long does it take, and who is idle?
    execute.py    one rank's program is carried out
"""

from parallel_dl.schedule.actions import Action, Plan, PlanError, Program
from parallel_dl.schedule.check import Report, check, peak_live
from parallel_dl.schedule.execute import Runner, execute
from parallel_dl.schedule.files import parse, read, write
from parallel_dl.schedule.lowering import with_messages, without_messages
from parallel_dl.schedule.order import Wait, find_cycle
from parallel_dl.schedule.schedules import ASYNCHRONOUS, SCHEDULES, make
from parallel_dl.schedule.simulate import Deadlock, Event, Simulation, Times, Wire, simulate

__all__ = [
    "ASYNCHRONOUS",
    "SCHEDULES",
    "Action",
    "Deadlock",
    "Event",
    "Plan",
    "PlanError",
    "Program",
    "Report",
    "Runner",
    "Simulation",
    "Times",
    "Wait",
    "Wire",
    "check",
    "execute",
    "find_cycle",
    "make",
    "parse",
    "peak_live",
    "read",
    "simulate",
    "with_messages",
    "without_messages",
    "write",
]
