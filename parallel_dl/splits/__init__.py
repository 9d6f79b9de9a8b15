"""Who does what of a layer: placements of activations, the moves between them, the ways to split, the plan.

Arithmetic on shapes: nothing is computed or sent here, and MPI is not needed. To read in this order:

    placement.py   what each rank has of an activation
    moves.py       how it gets from one placement to another, and what is sent for it
    ways.py        output, input, filters, channels, rows, towers: which layers can be split how
    names.py       which layer is split in which way, from what somebody has written
    tiles.py       what a rank needs of an image to make its tile: halos
    rules.py       what each way does with each kind of layer
    default.py     the splits of a network for which none are given
    plan.py        a whole network, layer by layer
"""

from parallel_dl.splits.default import default_splits
from parallel_dl.splits.moves import Message
from parallel_dl.splits.placement import Grid, Placement, Sliced, Tiled, Whole
from parallel_dl.splits.plan import Plan, Step, messages, plan
from parallel_dl.splits.ways import NAMES, Way

__all__ = [
    "NAMES",
    "Grid",
    "Message",
    "Placement",
    "Plan",
    "Sliced",
    "Step",
    "Tiled",
    "Way",
    "Whole",
    "default_splits",
    "messages",
    "plan",
]
