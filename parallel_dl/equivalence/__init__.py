"""Is a parallel run the same computation as the serial one? If not, where do they diverge, and why?

Where it is entered:

    assertions.py  `assert_equivalent`: a test of your own network
    adjoint.py     `assert_adjoint`: is the backward of a communicating function the adjoint of its forward?
    close.py       `assert_close_to_serial`: is a value that ranks have computed together the serial one?
    verify.py      `verify`: layouts one after the other, on the ranks of one job (`parallel-dl verify`)
    scripts/       a user's own script on several ranks, held against its run on one (`parallel-dl compare`); `watch`

What they are made of, in the order in which a comparison goes:

    specimens/     networks, programs and layouts to be tried
    runs/          a run, step by step, and the serial run that it has to equal
    rounding/      what rounding alone may do to a run
    compare/       equal, or how far apart; also two sets of arrays (`parallel-dl diff`)
    explain/       the first tensor that differs, and the likely cause
    checks/        shares, counts, movements and `fit`, besides the steps of training
    scripts/       a user's own script, on several ranks and on one (`parallel-dl compare`, `assert_same_program`)
    mutants/       known bugs, planted one at a time: is each caught, and named? (`parallel-dl verify --mutants`)
"""

from parallel_dl.equivalence.adjoint import assert_adjoint
from parallel_dl.equivalence.assertions import assert_equivalent
from parallel_dl.equivalence.close import assert_close_to_serial
from parallel_dl.equivalence.compare.arrays import ArraysComparison, compare_arrays
from parallel_dl.equivalence.compare.runs import Comparison, Difference, assert_same, compare
from parallel_dl.equivalence.explain.divergence import Divergence, first_divergence
from parallel_dl.equivalence.runs.record import Experiment, Run, record
from parallel_dl.equivalence.runs.replay import noise_floor, replay
from parallel_dl.equivalence.scripts.assertion import assert_same_program
from parallel_dl.equivalence.scripts.watched import watch
from parallel_dl.equivalence.specimens.exact import exact_experiment
from parallel_dl.equivalence.specimens.layouts import layouts_of
from parallel_dl.equivalence.verify import Cell, synthetic_experiment, verify

__all__ = [
    "ArraysComparison",
    "Cell",
    "Comparison",
    "Difference",
    "Divergence",
    "Experiment",
    "Run",
    "assert_adjoint",
    "assert_close_to_serial",
    "assert_equivalent",
    "assert_same",
    "assert_same_program",
    "compare",
    "compare_arrays",
    "exact_experiment",
    "first_divergence",
    "layouts_of",
    "noise_floor",
    "record",
    "replay",
    "synthetic_experiment",
    "verify",
    "watch",
]
