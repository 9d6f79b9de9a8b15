"""Gradient all-reduce for replicated networks.

To read in this order: replicas, exchange, buckets, batch_norm, changes, gradients.
"""

from parallel_dl.data_parallel.batch_norm import synchronize_batch_norm
from parallel_dl.data_parallel.gradients import METHODS, GradientAllReduce
from parallel_dl.data_parallel.replicas import replicas_agree, require_equal_replicas

__all__ = ["METHODS", "GradientAllReduce", "replicas_agree", "require_equal_replicas", "synchronize_batch_norm"]
