"""Is a parallel run the same computation as the serial one?

To read in this order: record, samples, magnitudes, compare.
"""

from parallel_dl.equivalence.compare import Comparison, Difference, assert_same, compare
from parallel_dl.equivalence.record import Experiment, Run, record

__all__ = ["Comparison", "Difference", "Experiment", "Run", "assert_same", "compare", "record"]
