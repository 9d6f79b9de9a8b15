"""Pipelining: consecutive layers on consecutive ranks, fed with microbatches, run by a schedule.

To read in this order, with `parallel_dl.schedule` and `parallel_dl.cost.stages` before it:

    messages.py  what travels between stages
    stash.py     weights that are kept for microbatches under way
    runner.py    what one rank does for each action of its program
    network.py   a network, its schedule, and its whole weights
"""

from parallel_dl.pipeline_parallel.network import PipelineParallel
from parallel_dl.pipeline_parallel.runner import StageRunner

__all__ = ["PipelineParallel", "StageRunner"]
