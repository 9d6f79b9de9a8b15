"""Networks as serial maths: nothing here knows about ranks.

To read in this order: settings, streams, initializers, parameter, module, calls, shapes, operations, layers, branches,
convolution, normalization, losses, flat, newcomers.
"""

from parallel_dl.nn import initializers
from parallel_dl.nn.branches import Branches
from parallel_dl.nn.convolution import AvgPool2d, Conv2d, GlobalAvgPool2d, MaxPool2d
from parallel_dl.nn.flat import FlatGradients, FlatParameters, flatten
from parallel_dl.nn.layers import GELU, Dropout, Flatten, Identity, Linear, ReLU, Sequential, Sigmoid, Tanh
from parallel_dl.nn.losses import cross_entropy, logistic_loss, mse
from parallel_dl.nn.module import Module
from parallel_dl.nn.newcomers import Newcomers, networks_of, ordered
from parallel_dl.nn.normalization import BatchNorm, BatchNorm1d, BatchNorm2d, LayerNorm, LocalResponseNorm
from parallel_dl.nn.operations import Operations
from parallel_dl.nn.parameter import Parameter
from parallel_dl.nn.settings import manual_seed, set_default_dtype
from parallel_dl.nn.shapes import LayerShape, layer_shapes, output_shape
from parallel_dl.nn.streams import Position

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "Branches",
    "Conv2d",
    "Dropout",
    "FlatGradients",
    "FlatParameters",
    "Flatten",
    "GlobalAvgPool2d",
    "Identity",
    "LayerNorm",
    "LayerShape",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "Newcomers",
    "Operations",
    "Parameter",
    "Position",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "cross_entropy",
    "flatten",
    "initializers",
    "layer_shapes",
    "logistic_loss",
    "manual_seed",
    "mse",
    "networks_of",
    "ordered",
    "output_shape",
    "set_default_dtype",
]
