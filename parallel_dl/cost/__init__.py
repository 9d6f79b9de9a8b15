"""The cost of a network, from its layers alone: nothing is computed, no weight is drawn.

To read in this order:

    layers.py    work and depth of a layer that says them, or an estimate
    network.py   a network's layers in a row, and their totals
    stages.py    consecutive layers in stages of even work, for pipelines
    pipeline.py  what each rank of a pipeline has of them (`parallel_dl.schedule`), and whether it fits its cache
    shares.py    the same for each rank of a plan (`parallel_dl.splits`), and what it sends
    grid.py      the same for each rank of a pipeline whose layers are split
    hybrid.py    what a rank of "One weird trick" sends
"""

from parallel_dl.cost.grid import Grid, GridRank, grid_of
from parallel_dl.cost.hybrid import Traffic, traffic
from parallel_dl.cost.layers import operations
from parallel_dl.cost.network import LayerCost, NetworkCost, cost_of
from parallel_dl.cost.pipeline import PipelineCost, RankCost, loaded, pipeline_cost
from parallel_dl.cost.shares import LayerShares, PlanShares, Share, shares_of
from parallel_dl.cost.stages import Stages, cut_stages, lightest

__all__ = [
    "Grid",
    "GridRank",
    "LayerCost",
    "LayerShares",
    "NetworkCost",
    "PipelineCost",
    "PlanShares",
    "RankCost",
    "Share",
    "Stages",
    "Traffic",
    "cost_of",
    "cut_stages",
    "grid_of",
    "lightest",
    "loaded",
    "operations",
    "pipeline_cost",
    "shares_of",
    "traffic",
]
