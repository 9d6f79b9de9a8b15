"""Results that are the same bits in every layout: sums over leaves, which a layout only deals out to ranks.

Floating-point addition is not associative, so a sum depends on how it is cut. Here it is always cut in the same way: a
batch into `partition.LEAVES` sub-batches, each run by itself, and both dimensions of each weight into as many slices,
so that every product is one of small matrices, whose shapes and order of memory do not depend on the number of ranks.
What they give is added up in one binary tree, of which a rank has a subtree.

To read in this order: leaves, linear, convolution, reductions, losses, network.
"""

from parallel_dl.reproducible.leaves import Leaves, TreeSum, sum_of_leaves
from parallel_dl.reproducible.linear import add_bias
from parallel_dl.reproducible.losses import in_leaves
from parallel_dl.reproducible.network import cut_into_leaves, leaf_of

__all__ = ["Leaves", "TreeSum", "add_bias", "cut_into_leaves", "in_leaves", "leaf_of", "sum_of_leaves"]
