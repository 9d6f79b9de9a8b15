"""Whole numbers: what is refused, the bound on all values, and equality to the last bit."""

import numpy as np
import pytest

from parallel_dl import networks, nn
from parallel_dl.equivalence import exact_experiment, layouts_of, record, verify
from parallel_dl.equivalence.runs.replayed import program_of
from parallel_dl.equivalence.specimens.exact import LIMIT, largest_value
from parallel_dl.errors import InputError


def small():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Conv2d(3, 2, 3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(2, 4),
    )


def averaged():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(3, 4))


def test_what_is_divided_by_counts():
    """Sixteen pixels: values are multiples of a sixteenth, and as much nearer to the limit."""
    what = exact_experiment(averaged, (1, 4, 4), 8)
    pixels = 16
    values = [np.abs(a).max() for arrays in (*record(what).gradients, *record(what).weights) for a in arrays.values()]
    assert largest_value(what) >= max(values) * 8 * 2**5 * pixels


def deep():
    return networks.MLP((8,), 4, hidden=(16,) * 6)


@pytest.mark.parametrize(("build", "shape"), [(small, (1, 8, 8)), (deep, (8,))])
def test_the_bound_holds_and_everything_is_exact(build, shape):
    """No value of the run is above the bound, and all of them are multiples of what was divided by."""
    what = exact_experiment(build, shape, 8)
    bound = largest_value(what)
    assert bound < LIMIT
    run = record(what)
    unit = 2.0**-5 / 8 / 16  # rate, batch, averages of two windows of 4
    for arrays in (*run.gradients, *run.weights):
        for array in arrays.values():
            assert array.any()
            assert np.abs(array).max() <= bound
            assert np.array_equal(array / unit, np.rint(array / unit))


@pytest.mark.sampled(4)
@pytest.mark.ranks(1, 2, 3, 4)
@pytest.mark.parametrize(("build", "shape"), [(small, (1, 8, 8)), (deep, (8,)), (averaged, (1, 4, 4))])
def test_bit_by_bit(comm, build, shape):
    layouts = [layout for layout in layouts_of(comm.size, build(), shape) if program_of(build(), layout) is None]
    tasks = [("it", layout) for layout in layouts]
    for cell in verify(comm, {"it": exact_experiment(build, shape, 8, seed=3)}, tasks, exact=True):
        if comm.rank == 0:
            assert cell.equal, cell
            assert (cell.worst["error"], cell.worst["bound"], cell.noise) == (0, 0, None)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Linear(4, 3), nn.Tanh()], r"exact: layer 1 \(Tanh\) rounds"),
        ([nn.Linear(4, 3), nn.Dropout(0.3)], "1 divides by 0.7; expected a power of two"),
        ([nn.Linear(4, 3), nn.LayerNorm(3)], r"\(LayerNorm\) rounds"),
    ],
)
def test_what_rounds_is_refused(layers, words):
    with pytest.raises(InputError, match=words):
        exact_experiment(lambda: nn.Sequential(*layers), (4,))


def test_batches_that_round_are_refused():
    with pytest.raises(InputError, match="batch_size 12: exact divides by it; expected a power of two"):
        exact_experiment(small, (1, 8, 8), 12)
    with pytest.raises(InputError, match=r"not stay below 2\^53|too many gradients are zero"):
        exact_experiment(lambda: networks.MLP((8,), 4, hidden=(8,) * 60), (8,))
