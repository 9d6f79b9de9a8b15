"""One call for tests: does a network, with a user's own layers, compute the same under a layout as on one rank?"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl.equivalence.compare.runs import BOUNDS, compare
from parallel_dl.equivalence.explain import causes
from parallel_dl.equivalence.explain.divergence import first_divergence
from parallel_dl.equivalence.explain.raced import race_in, told
from parallel_dl.equivalence.rounding.samples import NotBySamples
from parallel_dl.equivalence.runs.record import Experiment, Run, record
from parallel_dl.equivalence.runs.reference import Reference, held_against, reference_of, with_bits
from parallel_dl.equivalence.runs.replayed import program_of, record_updates, reference_of_program
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Mesh, world
from parallel_dl.nn import Module, cross_entropy, logistic_loss, output_shape
from parallel_dl.optim import SGD, Optimizer


def momentum(parameters: Any) -> Optimizer:
    """SGD with a rate of 0.01 and momentum 0.9."""
    return SGD(parameters, lr=0.01, momentum=0.9)


def assert_equivalent(
    network: Module | Callable[[], Module],
    layout: Layout,
    batch: tuple[Any, Any] | int,
    steps: int = 8,
    *,
    comm: Communicator | None = None,
    input_shape: tuple[int, ...] | None = None,
    make_optimizer: Callable[[Any], Optimizer] = momentum,
    loss: Callable[..., Any] = cross_entropy,
    seed: int = 0,
    dtype: str = "float64",
    exact: bool = False,
    bound: float | None = None,
    clip_norm: float | None = None,
) -> None:
    """Raises AssertionError, on every rank and with the difference, unless the layout computes the serial run.

    A warning names steps or tensors that rounding makes incomparable.

    All ranks of `comm` (default: all ranks) call it together; InputError if their number is not the layout's. TypeError
    or ValueError for arguments of the wrong kind. `network` is a function without arguments that makes the network, or
    a Module, which is copied and not changed; weights are redrawn from `seed`. `batch` is a pair (x, y), with samples
    along the first axis, or a number of samples, which are drawn from `seed`; this needs `input_shape`, the shape of
    one sample (ValueError without it), and y are random classes, for losses that take classes. Every step uses this
    batch, shuffled.

    One rank trains serially, as if it were alone (`mpi.one_rank`), with the same number of microbatches; then all train
    under `layout`. Layouts that compute something else (pipedream and variable batch) and networks with local batch
    norm are compared with a dedicated serial program, as by `parallel-dl verify`; not with `exact` (InputError).
    Losses, gradients, optimizer state and weights of every step are compared as by `compare`, which explains `exact`
    and `bound`; after the last step, so are the outputs for the batch in evaluation mode, `Trainer.test`, update
    counts, digests, and loading. With several microbatches, the serial run is also compared with one that has a single
    microbatch, and with one that passes the samples one by one; with `nn.BatchNorm`, which is defined over the
    microbatch, only with the latter. Attributes and random generators of modules are not compared, except for their
    effect on these values.

    With a communicator under stress (`mpi.stress.stressed(comm, seed)`), it also finds races.

    Data parallelism takes any layer that treats each sample separately; stages and split layers need shapes: see
    `nn.layer_shapes`. `make_optimizer` may return your own optimizer, a subclass of `optim.Optimizer` that can be
    copied: see `equivalence/rounding/own_rules.py`.
    """
    __tracebackhide__ = True
    _require(network, batch, steps, dtype, bound)
    comm = world() if comm is None else comm
    build = (lambda: copy.deepcopy(network)) if isinstance(network, Module) else network
    x, y = (
        _drawn(build, batch, input_shape, loss, seed)
        if isinstance(batch, (int, np.integer))
        else map(np.asarray, batch)
    )
    x, y = (array.astype(dtype) if array.dtype.kind == "f" else array for array in (x, y))
    experiment = Experiment(build, x, y, make_optimizer, len(x), steps, seed, dtype, loss, clip_norm=clip_norm)
    program = program_of(experiment.build(), layout)
    if exact and program is not None:
        raise InputError(f"exact: compares one update with the whole batch, but this layout is compared with {program}")
    mesh = Mesh(comm, data=layout.dp, pipe=layout.pp, model=layout.mp)
    place = {"pipe": mesh.pipe.rank, "data": mesh.data.rank, "model": mesh.model.rank}
    misplaced = causes.of_mesh(comm.all_gather_object(place), layout)
    if misplaced is not None:
        raise AssertionError(f"{in_words(layout)} has {misplaced}")
    reference = _reference(experiment, layout, comm, program, exact, bound)
    note = comm.broadcast_object(reference and reference.run.outcome and reference.run.outcome.note)
    if layout.is_asynchronous:
        parallel = record_updates(experiment, layout, mesh)
    else:
        parallel = record(experiment, layout, mesh, evaluate=note is None)
    said, differs, doubt = _compared(reference, experiment, layout, parallel, comm, program, exact)
    found = None
    if differs:
        serial = None if reference is None else reference.run
        found = comm.broadcast_object(first_divergence(experiment, layout, mesh, serial, parallel, exact, bound=bound))
    mesh.free()
    untested = None if note is None else f"evaluation mode is not compared: the serial run ends with {note}"
    for warning in (untested, doubt) if comm.rank == 0 else ():  # nobody waits any more, should it be an error
        if warning is not None:
            warnings.warn(warning, stacklevel=2)
    if said:
        verdict, message = said
        where = "" if found is None else f"  {found}\n"
        raise AssertionError(f"{in_words(layout)} {verdict}\n{where}  {message}")


def _reference(
    experiment: Experiment, layout: Layout, comm: Communicator, program: str | None, exact: bool, bound: float | None
) -> Reference | None:
    """On rank 0 the serial run, or the serial `program`; AssertionError on all ranks where it fails."""
    __tracebackhide__ = True
    reference, error = None, None
    if comm.rank == 0:
        try:
            if program is None:
                reference = reference_of(experiment, layout.microbatches, exact, bound=bound)
                if layout.reproducible:
                    reference = with_bits(reference, experiment, layout.microbatches)
            else:
                reference = dataclasses.replace(reference_of_program(experiment, layout), bound=bound)
        except Exception as caught:
            error = caught
    what = "" if isinstance(error, NotBySamples) else f"the serial run ends with {type(error).__name__}: "
    failed = comm.broadcast_object(None if error is None else f"{what}{error}")
    if failed:
        raise AssertionError(failed) from error
    return reference


def _compared(
    reference: Reference | None,
    experiment: Experiment,
    layout: Layout,
    parallel: Run,
    comm: Communicator,
    program: str | None,
    exact: bool,
) -> tuple[tuple[str, str] | None, bool, str | None]:
    """The verdict and what differs, if anything does; whether a divergence can be looked for; what rounding hides.

    The same on all ranks; AssertionError on all where rank 0 cannot compare.
    """
    __tracebackhide__ = True
    race = race_in(parallel, comm)
    said, differs, doubt, error = None, False, None, None
    if reference is not None:
        try:
            comparison = held_against(reference, experiment, layout, parallel, exact)
            comparison = comparison if race is None else told(comparison, race)
            if comparison.equal:
                doubt = comparison.note or None
            else:
                verdict = "is not the serial run" if program is None else f"is not its serial program, {program}"
                if comparison.void_from == 0:
                    verdict = "cannot be compared with the serial run"
                said = verdict, comparison.message
                comparable = program is None and race is None
                differs = comparable and not compare(reference.run, parallel, reference.bound, exact).equal
        except Exception as caught:  # the other ranks wait
            error = caught
    failed = comm.broadcast_object(None if error is None else f"{type(error).__name__}: {error}")
    if failed:
        raise AssertionError(f"{in_words(layout)} was not compared: {failed}") from error
    return comm.broadcast_object((said, differs, doubt))


def _require(network: Any, batch: Any, steps: int, dtype: str, bound: float | None) -> None:
    """Refuses arguments of another kind, in one line."""
    if not callable(network):
        raise TypeError(f"network is {type(network).__name__}: expected a Module, or a function that makes one")
    if not isinstance(batch, (int, np.integer)) and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(f"batch is {type(batch).__name__}: expected a pair (x, y), or a number of samples")
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if dtype not in BOUNDS:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(BOUNDS)}")
    if bound is not None and not 0 < bound < 1:
        raise ValueError(f"bound={bound}: must be above 0 and below 1, relative to the magnitudes that are added")


def _drawn(
    build: Callable[[], Module], samples: int, input_shape: tuple[int, ...] | None, loss: Any, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """So many samples and their classes: standard normal, and uniform."""
    if input_shape is None:
        raise ValueError(f"batch={samples} needs input_shape, the shape of one sample; or give arrays (x, y)")
    if loss not in (cross_entropy, logistic_loss):
        raise ValueError(f"batch={samples}: classes are drawn for cross_entropy and logistic_loss; give arrays (x, y)")
    random = np.random.default_rng(seed)
    *_, classes = output_shape(build(), input_shape, measure=True)
    return random.standard_normal((samples, *input_shape)), random.integers(0, classes, samples)


def in_words(layout: Layout) -> str:
    """Like "Layout(dp=2, microbatches=3)": what is not the default."""
    default = Layout()
    changed = {name: value for name, value in vars(layout).items() if value != getattr(default, name)}
    return f"Layout({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
