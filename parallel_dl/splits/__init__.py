"""How each layer is divided: the splits, a rule for each kind of layer, the plan of a network.

Nothing is sent here, and MPI is not needed. To read in this order:

    way.py            output, input, filters, channels, rows, towers, samples, as text
    rule.py           a layer in its place -> placements, and the maths that each rank does; how rules are registered
    linear.py, convolution.py, tiles.py, pooling.py, normalization.py, elementwise.py, samples.py, branches.py, loss.py
                      one file per kind of layer: its rules and its local maths
    names.py          which layer is split in which way, from what somebody has written
    leaves.py         what splits know of networks that compute in leaves
    default.py        the splits of a network for which none are given
    divide.py         a layer's rule asked, and what a user's own rule says checked
    step.py, walk.py, plan.py   a whole network, layer by layer
    cut_at_flatten.py the part of a hybrid's network that is split
"""

from parallel_dl.mesh import Invariant, Message, Partial, Placement, Replicated, Shard, Windows, even, slices
from parallel_dl.splits.default import default_splits
from parallel_dl.splits.plan import Plan, messages, plan
from parallel_dl.splits.rule import Division, Finish, Position, Site, rule
from parallel_dl.splits.samples import is_along_samples
from parallel_dl.splits.step import Step
from parallel_dl.splits.way import Way

__all__ = [
    "Division",
    "Finish",
    "Invariant",
    "Message",
    "Partial",
    "Placement",
    "Plan",
    "Position",
    "Replicated",
    "Shard",
    "Site",
    "Step",
    "Way",
    "Windows",
    "default_splits",
    "even",
    "is_along_samples",
    "messages",
    "plan",
    "rule",
    "slices",
]
