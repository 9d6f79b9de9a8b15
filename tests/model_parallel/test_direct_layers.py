"""Sharded matmul in a module of your own: the layers alone, against nn.Linear."""

import numpy as np
import pytest

from parallel_dl import nn
from parallel_dl.autograd import Tensor, ops
from parallel_dl.errors import InputError
from parallel_dl.mesh import even, slices
from parallel_dl.model_parallel import ColumnParallelLinear, RowParallelLinear
from parallel_dl.mpi import Communicator, Ledger

SAMPLES = 4
WIDTHS = [(7, 10), (8, 8), (2, 5), (5, 1), (1, 3)]
# in front of the features: sequences as long as a rank's share, or not, images, one sample, nothing
LEADING = [(SAMPLES,), (2, 5), (3, 2, 1), (2, 4, 3, 2), (), (2, 0)]
CASES = [(leading, *WIDTHS[0]) for leading in LEADING] + [((SAMPLES,), *widths) for widths in WIDTHS[1:]]
CASES += [((2, 4), 8, 8), ((3, 1), 2, 5), ((2, 3), 5, 1)]


class Holder(nn.Module):
    """The layer as `fc` in somebody's network: the name decides how the weights are drawn."""

    def __init__(self, layer):
        super().__init__()
        self.fc = layer

    def forward(self, x):
        return self.fc(x)


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def run(network, x, weights, own=slice(None)):
    """(y, gradient of x, gradients by name) of the sum of y * weights; this rank has the features `own` of both."""
    network.initialize(5, "float64")
    x = Tensor(x, requires_grad=True)
    y = network(x)
    ops.sum(ops.multiply(y, weights[..., own])).backward()
    return y.data, x.grad, {name: parameter.grad for name, parameter in network.named_parameters()}


def close(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def uneven(width, ranks):
    """One feature at the first rank, all others at the last."""
    return (width,) if ranks == 1 else (1, *[0] * (ranks - 2), width - 1)


@pytest.mark.ranks(1, 2, 3, 4)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output", ["whole", "split"])
@pytest.mark.parametrize("input", ["whole", "split"])
def test_column_parallel(comm, input, output, bias):
    for leading, before, after in CASES:
        x, weights = draw(*leading, before), draw(*leading, after)
        y, x_gradient, gradients = run(Holder(nn.Linear(before, after, bias)), x, weights)
        rows = slices(even(after, comm.size))[comm.rank]
        for given in (None, uneven(before, comm.size)) if input == "split" else (None,):
            own = slice(None)
            if input == "split":
                own = slices(even(before, comm.size) if given is None else given)[comm.rank]
            layer = ColumnParallelLinear(before, after, comm, bias, input, output, given)
            seen = rows if output == "split" else slice(None)
            our_y, our_x_gradient, our_gradients = run(Holder(layer), x[..., own], weights, seen)
            close(our_y, y[..., seen])
            close(our_x_gradient, x_gradient[..., own])
            assert our_gradients.keys() == gradients.keys()
            for name, gradient in our_gradients.items():
                close(gradient, gradients[name][rows])


@pytest.mark.ranks(1, 2, 3, 4)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input", ["whole", "split"])
def test_row_parallel(comm, input, bias):
    for leading, before, after in CASES:
        x, weights = draw(*leading, before), draw(*leading, after)
        y, x_gradient, gradients = run(Holder(nn.Linear(before, after, bias)), x, weights)
        for given in (None, uneven(before, comm.size)):
            columns = slices(even(before, comm.size) if given is None else given)[comm.rank]
            layer = RowParallelLinear(before, after, comm, bias, input, given)
            own = columns if input == "split" else slice(None)
            our_y, our_x_gradient, our_gradients = run(Holder(layer), x[..., own], weights)
            close(our_y, y)
            close(our_x_gradient, x_gradient[..., own])
            close(our_gradients["fc.weight"], gradients["fc.weight"][:, columns])
            assert our_gradients.keys() == gradients.keys()
            if bias:
                close(our_gradients["fc.bias"], gradients["fc.bias"])


class Block(nn.Module):
    """Megatron's block, with the serial layers or, given a communicator, with the sharded ones."""

    def __init__(self, comm=None):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        if comm is None:
            self.up, self.down = nn.Linear(6, 11), nn.Linear(11, 6)
        else:
            self.up = ColumnParallelLinear(6, 11, comm, output="split")
            self.down = RowParallelLinear(11, 6, comm)
        self.act = nn.GELU()

    def forward(self, x):
        return ops.add(x, self.down(self.act(self.up(self.norm(x)))))


@pytest.mark.ranks(1, 2, 3, 8)
def test_own_block(comm):
    """Twice the same block, one after the other, with one all-reduce in either direction for each."""
    counted = Communicator(comm.mpi, checked=False, ledger=Ledger())
    x, weights = draw(SAMPLES, 6), draw(SAMPLES, 6)
    y, x_gradient, gradients = run(nn.Sequential(a=Block(), b=Block()), x, weights)
    with counted.ledger.counting():
        ours = run(nn.Sequential(a=Block(counted), b=Block(counted)), x, weights)
    close(ours[0], y)
    close(ours[1], x_gradient)
    own = slices(even(11, comm.size))[comm.rank]
    pieces = {"up.weight": own, "up.bias": own, "down.weight": (slice(None), own)}
    for name, gradient in gradients.items():
        close(ours[2][name], gradient[pieces.get(name[2:], slice(None))])
    sent = {(row.layer, row.direction, row.call, row.messages, row.values) for row in counted.ledger.rows()}
    backward = {(f"{block}.up", "backward", "all_reduce", 1, 6 * SAMPLES) for block in "ab"}
    forward = {(f"{block}.down", "forward", "all_reduce", 1, 6 * SAMPLES) for block in "ab"}
    assert sent == (backward | forward if comm.size > 1 else set())


# -- wrong arguments -----------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: ColumnParallelLinear(4, 4, c, input="half"), "unknown input 'half': "),
        (lambda c: ColumnParallelLinear(4, 4, c, output="wholes"), "unknown output 'wholes': did you mean 'whole'?"),
        (lambda c: RowParallelLinear(4, 4, c, input="Split"), "unknown input 'Split': did you mean 'split'?"),
        (lambda c: ColumnParallelLinear(-1, 4, c), "widths must not be negative"),
        (
            lambda c: ColumnParallelLinear(4, 4, c, input="split", input_sizes=(1, 2)),
            "input sizes (1, 2): must be 2 numbers, one per rank, that add up to 4",
        ),
        (
            lambda c: ColumnParallelLinear(4, 4, c, input="split", input_sizes=(5, -1)),
            "input sizes (5, -1): must be 2 numbers, one per rank, that add up to 4",
        ),
        (
            lambda c: RowParallelLinear(4, 4, c, sizes=(1, 2, 1)),
            "input sizes (1, 2, 1): must be 2 numbers, one per rank, that add up to 4",
        ),
    ],
)
def test_wrong_arguments(comm, make, message):
    with pytest.raises(InputError) as raised:
        make(comm)
    assert message in str(raised.value)


@pytest.mark.ranks(2)
def test_inputs_of_another_width(comm):
    column, row = Holder(ColumnParallelLinear(4, 3, comm)), Holder(RowParallelLinear(4, 3, comm))
    with pytest.raises(InputError, match=r"layer fc: got an input of shape \(2, 5\), needs \(\.\.\., 4\)"):
        column(np.ones((2, 5), np.float32))
    with pytest.raises(InputError, match=r"layer fc: .* needs \(\.\.\., 2\), its slice of 4 \(for whole ones give"):
        row(np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match=r"needs \(\.\.\., 2\), its slice of 4$"):
        row(np.ones((2, 3), np.float32))


@pytest.mark.ranks(2)
def test_what_they_say_of_themselves(comm):
    assert "5 -> 3, output" in repr(ColumnParallelLinear(5, 3, comm)).splitlines()[0]
    assert f"input {3 - comm.rank} of 5" in repr(RowParallelLinear(5, 3, comm)).splitlines()[0]
