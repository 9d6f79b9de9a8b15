"""Is a parallel run the same computation as the serial one? Where does it leave it, and why?

To read in this order:

    record.py       a run, step by step: losses, gradients, optimizer state, weights
    passing.py      what passes through a point of a network, watched or moved
    copies.py       copies of a network and its loss, which share nothing with them
    samples.py      the summands of a gradient, sample by sample
    rounding.py     how far rounding alone moves a run
    magnitudes.py   what errors of rounding are judged against
    own_rules.py    the same under an update rule of the user's own
    outcome.py      what is left after the last update: evaluation mode, counts, weights to load
    compare.py      equal, or how far apart
    batches.py      are the ranks' shares the batches?
    replay.py       the noise floor: serial, with its sums in another order
    reference.py    the serial run, and whether it is the sum of its samples
    exact.py        whole numbers, where equal means every bit
    trace.py        what passes through every layer in one step
    causes.py       what a difference says: a factor, a summand, a slice out of place
    pieces.py       what each rank has of a tensor, and should have
    divergence.py   the first tensor that differs
    replayed.py     serial programs of layouts that make other updates: asynchronous, variable batch, local batch norm
    specimens.py    networks for verify alone, with the layers that the others lack
    programs.py     what programs change under way: weights frozen, unfrozen, loaded, replaced
    variations.py   other optimizers, losses and types of numbers
    layouts.py      every layout of a number of ranks; for many networks a covering set
    kept.py         serial runs, each made once
    movements.py    the differentiable movements: by their definition, and the adjoint test
    calls.py        the communicator's calls on arrays, by their definition
    counted.py      do ranks hold and send what the plan of a layout says?
    fitted.py       does `Trainer.fit` make the same updates?
    verify.py       all of it, on the ranks of one job
    mutants/        known bugs, planted one at a time
    assertions.py   the same for a test of your own network
    adjoint.py      is the backward of a communicating function the adjoint of its forward?
    files.py        two safetensors files, also in shards
"""

from parallel_dl.equivalence.adjoint import assert_adjoint
from parallel_dl.equivalence.assertions import assert_equivalent
from parallel_dl.equivalence.compare import Comparison, Difference, assert_same, compare
from parallel_dl.equivalence.divergence import Divergence, first_divergence
from parallel_dl.equivalence.exact import exact_experiment
from parallel_dl.equivalence.files import ArraysComparison, compare_arrays
from parallel_dl.equivalence.layouts import layouts_of
from parallel_dl.equivalence.record import Experiment, Run, record
from parallel_dl.equivalence.replay import noise_floor, replay
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
    "assert_equivalent",
    "assert_same",
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
]
