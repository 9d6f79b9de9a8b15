"""Model parallelism: one layer's work is done by several ranks at the same time. The network stays serial maths.

`parallelize` turns a serial network into the part that this rank computes, as a plan of `parallel_dl.splits` says. Each
distributed layer is the serial layer on a piece of the weights, between two movements. To read in this order:

    axis.py           the ranks of the model axis, who make the moves of a plan by differentiable collectives
    pieces.py         a serial layer becomes another kind of layer, and its weights are cut
    linear.py         sharded matmul: split along the output, or along the input
    convolution.py    split by filters, by input channels, by tiles of the image
    normalization.py  response and batch normalisation, and dropout, of what is split
    towers.py         parallel branches
    losses.py         cross-entropy and logistic loss of scores that are split by class
    network.py        a whole network, and its whole weights
"""

from parallel_dl.model_parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel_dl.model_parallel.losses import TAKE_SLICES, split_cross_entropy, split_loss
from parallel_dl.model_parallel.network import ModelParallel, parallelize, require_serial

__all__ = [
    "TAKE_SLICES",
    "ColumnParallelLinear",
    "ModelParallel",
    "RowParallelLinear",
    "parallelize",
    "require_serial",
    "split_cross_entropy",
    "split_loss",
]
