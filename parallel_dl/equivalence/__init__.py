"""Is a parallel run the same computation as the serial one?

To read in this order: record, samples, magnitudes, compare, files, causes, assertions, adjoint.
"""

from parallel_dl.equivalence.adjoint import assert_adjoint
from parallel_dl.equivalence.assertions import assert_equivalent
from parallel_dl.equivalence.compare import Comparison, Difference, assert_same, compare
from parallel_dl.equivalence.files import compare_arrays
from parallel_dl.equivalence.record import Experiment, Run, record

__all__ = [
    "Comparison",
    "Difference",
    "Experiment",
    "Run",
    "assert_adjoint",
    "assert_equivalent",
    "assert_same",
    "compare",
    "compare_arrays",
    "record",
]
