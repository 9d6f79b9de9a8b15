"""Who does what of a layer: placements of activations, the moves between them, the ways to split, the plan.

Arithmetic on shapes: nothing is computed or sent here, and MPI is not needed. To read in this order:

    placement.py   what each rank has of an activation
    moves.py       how it gets from one placement to another, and what is sent for it
    ways.py        output, input, filters, channels, rows, towers: what each does with each kind of layer
    default.py     the splits of a network for which none are given
    plan.py        a whole network, layer by layer
"""

from parallel_dl.splits.default import default_splits
from parallel_dl.splits.moves import Message
from parallel_dl.splits.placement import Grid, Placement, Split, Tiles, Whole
from parallel_dl.splits.plan import Plan, Step, messages, plan
from parallel_dl.splits.ways import NAMES, Way

__all__ = [
    "NAMES",
    "Grid",
    "Message",
    "Placement",
    "Plan",
    "Split",
    "Step",
    "Tiles",
    "Way",
    "Whole",
    "default_splits",
    "messages",
    "plan",
]
