"""Samples that come in at a rate: when they can be taken, and what is measured of it; on a clock of the test's own."""

import numpy as np
import pytest

from parallel_dl import networks, optim
from parallel_dl.datasets import Arrivals
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer


class Clock:
    """Time passes by sleeping, and by work."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def run(rate, seconds_of_work, microbatches=10, samples=4):
    clock = Clock()
    arrivals = Arrivals(rate, clock, clock.pass_by)
    entries = []
    for _ in range(microbatches):
        arrivals.take(samples)
        entries.append(clock.now - 50)
        clock.pass_by(seconds_of_work)
    return entries, arrivals.measured()


def test_slow_samples_are_waited_for():
    """4 samples at 8 per second: a microbatch every half second, of which work takes a fifth."""
    entries, stream = run(8, 0.1)
    np.testing.assert_allclose(entries, np.arange(10) / 2)
    assert stream.throughput == pytest.approx(8)
    assert (stream.queue, stream.queue_growth) == (0, pytest.approx(0))
    assert stream.seconds_waited == pytest.approx(9 * 0.4)


def test_fast_samples_queue_up():
    """Work takes 4 a second, 10 come in: the queue grows by 6 a second."""
    entries, stream = run(10, 1)
    np.testing.assert_allclose(entries, np.arange(10))
    assert stream.throughput == pytest.approx(4)
    assert stream.queue == 9 * 6
    assert stream.queue_growth == pytest.approx(6)
    assert stream.seconds_waited == 0


def test_too_little_to_say():
    assert run(8, 1, microbatches=3)[1].throughput is None
    assert Arrivals(8).measured().throughput is None


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e-7])
def test_rates(rate):
    with pytest.raises(InputError, match="input_rate"):
        Arrivals(rate)


@pytest.mark.ranks(1, 2, 4)
@pytest.mark.parametrize("pp", [1, 2])
def test_training_takes_what_has_come(comm, pp):
    """Every microbatch of the whole batch, once, by the ranks with the first layers; and nothing enters before."""
    if comm.size % pp:
        pp = 1
    layout = Layout(dp=comm.size // pp, pp=pp, microbatches=3)
    network = networks.MLP((6,), 4, hidden=(5, 5)).initialize(0, "float64", fill=False)
    mesh = Mesh(comm, data=layout.dp, pipe=pp)
    trainer = Trainer(network, lambda p: optim.SGD(p, 0.1), layout, mesh, input_shape=(6,))
    random = np.random.default_rng(0)
    clock = Clock()
    trainer.arrivals = Arrivals(2, clock, clock.pass_by)
    for batch in trainer.loader(random.random((24, 6)), random.integers(0, 4, 24), 11, seed=0).epoch(0):
        trainer.step(batch)
    first = mesh.pipe.rank == 0
    assert clock.now - 50 == pytest.approx((24 - 4) / 2 if first else 0)
    assert trainer.arrivals.measured().queue == 0
    trainer.free()
