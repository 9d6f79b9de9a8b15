"""assert_equivalent on networks with layers of the user's own: right ones in every layout, wrong ones by name."""

import numpy as np
import pytest
from mpi4py import MPI

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor, primitive
from parallel_dl.equivalence import assert_equivalent, assertions
from parallel_dl.equivalence.explain import divergence
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator


class Gate(nn.Module):
    """x times the sigmoid of a linear map of x, (samples, n) -> (samples, n)."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter((n, n), nn.initializers.uniform(0.5))

    def forward(self, x):
        x = x if isinstance(x, Tensor) else Tensor(x)
        return x * (x @ self.weight.T).sigmoid()


class SplitGate(Gate):
    def output_shape(self, input_shape):
        return input_shape


class Centred(nn.Module):
    """Subtracts the mean of the samples that are here, which differs from share to share."""

    def forward(self, x):
        return x - x.mean(axis=0, keepdims=True)


class DoubledGradient(nn.Module):
    """A layer whose backward counts on two ranks."""

    def __init__(self, comm):
        super().__init__()
        self.comm = comm

    def forward(self, x):
        size = self.comm.size if len(x) < 8 else 1  # a share, not the whole batch
        return primitive(lambda a: (a, (lambda g: size * g,)))(x)


def network(gate=Gate):
    return nn.Sequential(nn.Linear(6, 5), gate(5), nn.Dropout(0.3), gate(5), nn.Linear(5, 4))


def drawn(samples=9):
    random = np.random.default_rng(0)
    return random.random((samples, 6)), random.integers(0, 4, samples)


@pytest.mark.ranks(1, 2, 4)
def test_data_parallel(comm):
    assert_equivalent(network, Layout(dp=comm.size, microbatches=2), drawn(), steps=3, comm=comm)


@pytest.mark.ranks(2)
def test_float32_a_module_and_drawn_samples(comm):
    made = network()
    kept = made.initialize(7).state_dict()
    assert_equivalent(made, Layout(dp=2), 10, 3, comm=comm, input_shape=(6,), dtype="float32")
    assert_equivalent(
        made, Layout(dp=2), drawn(), 2, comm=comm, seed=3, make_optimizer=lambda parameters: optim.Adam(parameters)
    )
    assert all(np.array_equal(values, kept[name]) for name, values in made.state_dict().items())
    lazy = network()
    assert_equivalent(lazy, Layout(dp=2), 10, 1, comm=comm, input_shape=(6,))
    assert not any(parameter.is_filled for parameter in lazy.parameters())


@pytest.mark.ranks(2)
def test_beside_batch_norm(comm):
    """Its statistics are those of a microbatch: the serial run has as many of them."""
    build = lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), Gate(5), nn.Linear(5, 4))  # noqa: E731
    assert_equivalent(build, Layout(dp=2, microbatches=2), drawn(13), steps=3, comm=comm)


@pytest.mark.ranks(2, 4)
def test_in_stages(comm):
    """Shapes measured, work estimated; on four ranks with two replicas."""
    layout = Layout(pp=2, dp=comm.size // 2, microbatches=3)
    assert_equivalent(network, layout, drawn(), steps=3, comm=comm)


@pytest.mark.ranks(2)
def test_among_split_layers(comm):
    split = {"0": "output", "4": "input"}
    assert_equivalent(lambda: network(SplitGate), Layout(mp=2, split=split), drawn(), 2, comm=comm)
    with pytest.raises(InputError, match=r"what a Gate computes is not known here.* defines output_shape"):
        assert_equivalent(network, Layout(mp=2, split=split), drawn(), 1, comm=comm)


@pytest.mark.ranks(1, 2)
def test_integers_exactly(comm):
    random = np.random.default_rng(1)
    x, y = (random.integers(-2, 3, (8, n)).astype(float) for n in (6, 3))

    def build():
        made = nn.Linear(6, 3, bias=False)
        made.weight.initializer = nn.initializers.constant(1.0)
        return made

    assert_equivalent(
        build,
        Layout(dp=comm.size),
        (x, y),
        2,
        comm=comm,
        make_optimizer=lambda parameters: optim.SGD(parameters, 2.0**-5),
        loss=lambda predictions, targets, total: nn.mse(predictions, targets, total=1),
        exact=True,
    )


def message(comm, *arguments, **keywords):
    """What every rank raises, the same."""
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(*arguments, comm=comm, **keywords)
    (text,) = set(comm.all_gather_object(str(caught.value)))
    return text


@pytest.mark.ranks(2)
def test_difference_is_named_on_every_rank(comm):
    text = message(comm, lambda: nn.Sequential(nn.Linear(6, 5), Centred(), nn.Linear(5, 4)), Layout(dp=2), drawn())
    assert text.startswith("Layout(dp=2) is not the serial run\n  first divergence: output of 1 at step 0 on rank ")
    assert "likely a layer that depends on which samples it is given, or how many" in text
    assert "DIFFERENT: worst is " in text
    build = lambda: nn.Sequential(nn.Linear(6, 5), DoubledGradient(comm), nn.Linear(5, 4))  # noqa: E731
    text = message(comm, build, Layout(dp=2), drawn())
    assert "first divergence: gradient of the output of 0 at step 0" in text
    assert "2 times the serial one; likely counted 2 times, once by each of the 2 replicas" in text


@pytest.mark.ranks(2)
def test_what_cannot_be(comm):
    with pytest.raises(InputError, match="expected sizes whose product is 2"):
        assert_equivalent(network, Layout(dp=3), drawn(), comm=comm)
    with pytest.raises(ValueError, match="batch=4 needs input_shape"):
        assert_equivalent(network, Layout(dp=2), 4, comm=comm)
    with pytest.raises(ValueError, match="give arrays"):
        assert_equivalent(network, Layout(dp=2), 4, comm=comm, input_shape=(6,), loss=nn.mse)
    text = message(comm, lambda: nn.Linear(7, 2), Layout(dp=2), drawn())
    assert text.startswith("the serial run ends with InputError: layer Linear: got an input of shape")


class Reading(nn.Module):
    """Reads the values of its input, which is a Tensor also where a stage, or a hybrid's second half, begins."""

    def forward(self, x):
        return x * (1 + (x.data[:, :1] > 0))

    def output_shape(self, input_shape):
        return input_shape


@pytest.mark.ranks(2)
def test_a_layer_that_reads_what_arrives_from_another_rank(comm):
    def build():
        return nn.Sequential(first=nn.Linear(6, 5), reading=Reading(), last=nn.Linear(5, 4))

    for layout in (Layout(pp=2, stages=["reading"]), Layout(pp=2, stages=["reading"], schedule="zb-h1")):
        assert_equivalent(build, layout, drawn(), steps=2, comm=comm)


@pytest.mark.ranks(2)
def test_a_layer_that_reads_what_arrives_in_a_hybrid(comm):
    def build():
        return nn.Sequential(conv=nn.Conv2d(1, 2, 2), flatten=nn.Flatten(), reading=Reading(), last=nn.Linear(8, 4))

    images = np.random.default_rng(0).random((9, 1, 3, 3))
    assert_equivalent(build, Layout(dp=2, hybrid="owt"), (images, drawn()[1]), steps=2, comm=comm)


@pytest.mark.ranks(2)
def test_a_loss_that_is_no_number_on_one_rank(comm):
    """It is said, and nobody waits for a rank that looks for the cause."""
    for value in (np.nan, np.inf):

        def loss(outputs, targets, total, value=value):
            return nn.cross_entropy(outputs, targets, total) * (value if comm.rank == 1 and len(targets) < 9 else 1.0)

        with pytest.raises(AssertionError, match="is not the serial run"):
            assert_equivalent(network, Layout(dp=2), drawn(), steps=2, comm=comm, loss=loss)


@pytest.mark.ranks(2)
def test_a_comparison_that_fails_on_one_rank(comm, monkeypatch):
    def fails(*arguments):
        raise ZeroDivisionError("by design")

    for name in ("held_against", "first_divergence"):
        with monkeypatch.context() as planted:
            if name == "held_against":
                planted.setattr(assertions, name, fails)
                with pytest.raises(AssertionError, match=r"was not compared: ZeroDivisionError: by design"):
                    assert_equivalent(network, Layout(dp=2), drawn(), steps=2, comm=comm)
            else:
                planted.setattr(divergence.Search, "first", fails)
                with pytest.raises(AssertionError, match="is not the serial run"):
                    assert_equivalent(
                        lambda: network(lambda n: DoubledGradient(comm)), Layout(dp=2), drawn(), 2, comm=comm
                    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"network": "mlp"}, "network is str: expected a Module"),
        ({"batch": np.zeros((4, 6))}, "batch is ndarray: expected a pair"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"dtype": "flaot64"}, "dtype='flaot64': expected one of float64, float32"),
        ({"bound": np.inf}, "bound=inf: must be above 0"),
        ({"bound": -1}, "bound=-1: must be above 0"),
        ({"bound": np.nan}, "bound=nan: must be above 0"),
        (
            {"make_optimizer": lambda parameters: None},
            "make_optimizer returned a NoneType: expected an optim.Optimizer",
        ),
    ],
)
def test_arguments_that_are_refused(arguments, words):
    given = {"network": network, "layout": Layout(), "batch": drawn(), "steps": 2, **arguments}
    with pytest.raises((TypeError, ValueError, AssertionError), match=words):
        assert_equivalent(**given, comm=Communicator(MPI.COMM_SELF))
