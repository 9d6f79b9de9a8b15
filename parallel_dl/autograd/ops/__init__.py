"""The operations, each beside its pullbacks. To read in this order: elementwise, linear_algebra, reductions, shaping,
classification, sparsity, convolution, pooling, normalization."""

from parallel_dl.autograd.ops.classification import cross_entropy, log_softmax, logistic_loss, softmax
from parallel_dl.autograd.ops.convolution import conv2d
from parallel_dl.autograd.ops.elementwise import (
    absolute,
    add,
    divide,
    exp,
    gelu,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    relu,
    sigmoid,
    sqrt,
    subtract,
    tanh,
)
from parallel_dl.autograd.ops.linear_algebra import linear, matmul
from parallel_dl.autograd.ops.normalization import batch_norm, layer_norm, local_response_norm, synchronized_batch_norm
from parallel_dl.autograd.ops.pooling import avg_pool2d, max_pool2d
from parallel_dl.autograd.ops.reductions import max, mean, sum
from parallel_dl.autograd.ops.shaping import broadcast_to, concatenate, index, reshape, split, stack, transpose
from parallel_dl.autograd.ops.sparsity import dropout, where

__all__ = [
    "absolute",
    "add",
    "avg_pool2d",
    "batch_norm",
    "broadcast_to",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "divide",
    "dropout",
    "exp",
    "gelu",
    "index",
    "layer_norm",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "logistic_loss",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "minimum",
    "multiply",
    "negative",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "split",
    "sqrt",
    "stack",
    "subtract",
    "sum",
    "synchronized_batch_norm",
    "tanh",
    "transpose",
    "where",
]
