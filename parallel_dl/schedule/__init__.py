"""A pipelined step as data: who computes and sends what, in which order; checked and timed before anything runs.

Standard library only: nothing of the package, no NumPy, no MPI. To read in this order:

    actions.py    actions like `2F0`, programs of the ranks, plans
    library.py    naive, gpipe, 1f1b, interleaved, zb-h1, pipedream: pure functions
    lowering.py   sends and receives are added
    execute.py    one rank's program is carried out
"""

from parallel_dl.schedule.actions import Action, Plan, PlanError, Program
from parallel_dl.schedule.execute import Runner, execute
from parallel_dl.schedule.library import SCHEDULES, make
from parallel_dl.schedule.lowering import with_messages, without_messages

__all__ = [
    "SCHEDULES",
    "Action",
    "Plan",
    "PlanError",
    "Program",
    "Runner",
    "execute",
    "make",
    "with_messages",
    "without_messages",
]
