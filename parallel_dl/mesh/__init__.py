"""Meshes of ranks with named axes, placements of arrays on them, and moves between placements.

Arithmetic only: nothing is computed or sent here, and MPI is not needed. To read in this order:

    shape.py       ranks as a grid with named axes; an axis refined into rows x columns
    placement.py   what the ranks along each mesh axis have of an array: four states, and windows as a target
    moves.py       one step from state to state: its name, shape, adjoint and messages
    reshard.py     the path of moves between two placements
"""

from parallel_dl.mesh.moves import Message, Move
from parallel_dl.mesh.placement import (
    Invariant,
    Partial,
    Placement,
    Replicated,
    Shape,
    Shard,
    State,
    Windows,
    dual,
    even,
    slices,
)
from parallel_dl.mesh.reshard import NotOffered, Path, messages_along, reshard
from parallel_dl.mesh.shape import MeshShape, near_square

__all__ = [
    "Invariant",
    "MeshShape",
    "Message",
    "Move",
    "NotOffered",
    "Partial",
    "Path",
    "Placement",
    "Replicated",
    "Shape",
    "Shard",
    "State",
    "Windows",
    "dual",
    "even",
    "messages_along",
    "near_square",
    "reshard",
    "slices",
]
