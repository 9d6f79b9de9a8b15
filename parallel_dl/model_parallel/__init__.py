"""Model parallelism: several ranks work on one layer at the same time. The network stays serial maths.

`parallelize` turns a serial network into the part that this rank computes, by a plan of `parallel_dl.splits`: each
layer does its local maths on its shards of the weights, between two moves. To read in this order:

    axis.py        the ranks of the model axis, who make the moves of a plan by differentiable collectives
    carry_out.py   one layer: moves around local maths; its weights cut
    network.py     a whole network, and its whole weights
    linear.py      sharded matmul for direct use
"""

from parallel_dl.model_parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel_dl.model_parallel.network import ModelParallel, parallelize, require_serial, split_loss
from parallel_dl.splits.loss import TAKE_SLICES

__all__ = [
    "TAKE_SLICES",
    "ColumnParallelLinear",
    "ModelParallel",
    "RowParallelLinear",
    "parallelize",
    "require_serial",
    "split_loss",
]
