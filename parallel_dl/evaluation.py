"""Testing a network under a layout: the ranks divide the samples and add up their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from parallel_dl.autograd import no_grad
from parallel_dl.engine import Engine
from parallel_dl.metrics import Evaluation, Tally
from parallel_dl.reproducible import TreeSum


def evaluate(engine: Engine, x: np.ndarray, y: np.ndarray, batch_size: int) -> Evaluation:
    """The mean loss of samples x (n, ...) with targets y (n, ...), and the share of samples classified correctly.

    All ranks call it together; each processes its samples in batches of at most `batch_size`.
    """
    engine.network.eval()
    own = engine.tested(len(x))
    tallies = [Tally(engine.whole_loss, len(x)) for _ in own]
    with no_grad(), engine.summation.evaluating():
        for tally, part in zip(tallies, own):
            for batch in _batches(part, batch_size):
                _test(engine, tally, x[batch], y[batch])
    return _summed(engine, tallies, len(x))


def own_outputs(engine: Engine, x: np.ndarray, batch_size: int) -> dict[int, np.ndarray]:
    """The outputs that this rank has in `evaluate`: number of the first sample -> whole outputs (k, ...)."""
    engine.network.eval()
    found = {}
    with no_grad(), engine.summation.evaluating():
        for part in engine.tested(len(x)):
            for batch in _batches(part, batch_size):
                scores = engine.outputs(x[batch])
                if scores is not None:
                    found[batch.start] = scores
    return found


def _batches(part: slice, length: int) -> Iterator[slice]:
    """The part in slices of at most this many."""
    return (slice(start, min(start + length, part.stop)) for start in range(part.start, part.stop, length))


def _test(engine: Engine, tally: Tally, x: np.ndarray, y: np.ndarray) -> None:
    try:
        scores = engine.outputs(x)
    except Exception as error:
        if not engine.fails_alone:
            raise
        tally.failed(error)
    else:
        if scores is not None:
            tally.add(scores, y)


def _summed(engine: Engine, tallies: Sequence[Tally], samples: int) -> Evaluation:
    """From the tallies of all ranks: losses in the order of samples, or in the tree of a reproducible layout."""
    losses = TreeSum()
    for tally in tallies:
        losses.add([np.array([tally.sum_of_losses])])
    loss = losses.total()[0]
    failures = sum(tally.note is not None for tally in tallies)
    counts = np.array([sum(t.right for t in tallies), sum(t.judged for t in tallies), failures])
    loss, counts = engine.sum_of_tests(loss, counts)
    right, judged, failed = counts.tolist()
    note = None if samples else "test loss: there are no samples"
    if failed:
        said = next((tally.note for tally in tallies if tally.note is not None), None)
        note = next(one for one in engine.mesh.world.all_gather_object(said) if one is not None)
    accuracy = right / samples if samples and judged == samples else None
    return Evaluation(None if note else float(loss[0]), accuracy, note)
