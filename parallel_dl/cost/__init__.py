"""What a network costs, from its layers alone: nothing is computed, no weight is drawn.

To read in this order:

    layers.py    multiply-adds, work and depth of each kind of layer
    network.py   a network's layers in a row, and their totals
"""

from parallel_dl.cost.layers import Operations, operations
from parallel_dl.cost.network import LayerCost, NetworkCost, cost_of

__all__ = ["LayerCost", "NetworkCost", "Operations", "cost_of", "operations"]
