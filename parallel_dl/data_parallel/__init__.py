"""Gradient all-reduce for replicated networks. To read in this order: gradients, buckets."""

from parallel_dl.data_parallel.gradients import METHODS, GradientAllReduce, require_equal_replicas

__all__ = ["METHODS", "GradientAllReduce", "require_equal_replicas"]
