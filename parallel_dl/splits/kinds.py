"""All rules of the package: importing this registers them."""

from parallel_dl.splits import branches, convolution, elementwise, linear, normalization, pooling

__all__ = ["branches", "convolution", "elementwise", "linear", "normalization", "pooling"]
