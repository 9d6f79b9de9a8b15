"""Results that are the same bits in every layout: sums over leaves, which a layout only deals out to ranks.

Floating-point addition is not associative, so a sum depends on how it is cut. Here it is always cut in the same way: a
microbatch into `partition.LEAVES` leaves of samples, and both dimensions of each weight into as many slices, so that
every product is of matrices whose shapes and order of memory do not depend on the number of ranks. What they give is
added up in one binary tree, of which a rank has a subtree.

To read in this order: leaves, linear, convolution, reductions, losses, network, summation.
"""

from parallel_dl.reproducible.leaves import Leaves, TreeSum, sum_of_leaves
from parallel_dl.reproducible.network import cut_into_leaves
from parallel_dl.reproducible.summation import InLeaves, Summation

__all__ = ["InLeaves", "Leaves", "Summation", "TreeSum", "cut_into_leaves", "sum_of_leaves"]
