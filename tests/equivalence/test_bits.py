"""Reproducible layouts must give the bits of one rank, not only its values within a bound."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.equivalence import Experiment, assert_equivalent
from parallel_dl.equivalence.runs.kept import Kept
from parallel_dl.equivalence.verify import verify
from parallel_dl.layout import Layout
from parallel_dl.trainer import Trainer

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(11, 5)), RANDOM.integers(0, 3, 11)
BUILD = lambda: nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.3), nn.Tanh(), nn.Linear(7, 3))  # noqa: E731
EXPERIMENT = Experiment(BUILD, X, Y, lambda p: optim.SGD(p, 0.1, momentum=0.9), 11, 3)
LAYOUTS = [Layout(dp=2, reproducible=True), Layout(mp=2, reproducible=True, microbatches=2)]


@pytest.fixture
def other_last_bits(monkeypatch):
    """With several ranks, one gradient has other last bits."""
    original = Trainer.compute_gradients

    def moved(self, *given):
        loss = original(self, *given)
        if self.mesh.world.size > 1:
            weight = self.parameters[0]
            weight.grad = weight.grad * (1 + 2.0**-52)
            weight.grad.flags.writeable = False
        return loss

    monkeypatch.setattr(Trainer, "compute_gradients", moved)


@pytest.mark.ranks(2)
def test_equal_bits(comm):
    for layout in LAYOUTS:
        assert_equivalent(BUILD, layout, (X, Y), 3, comm=comm)
    cells = list(verify(comm, {"mlp": EXPERIMENT}, [("mlp", layout) for layout in LAYOUTS]))
    assert all(cell is None or cell.equal for cell in cells)


@pytest.mark.ranks(2)
def test_other_bits(comm, other_last_bits):
    for layout in LAYOUTS:
        said = "gradient of 0.weight at step 0 does not have the bits of one rank"
        with pytest.raises(AssertionError, match=said):
            assert_equivalent(BUILD, layout, (X, Y), 3, comm=comm)
        (cell,) = verify(comm, {"mlp": EXPERIMENT}, [("mlp", layout)])
        if cell is not None:
            assert not cell.equal
            assert cell.worst["quantity"] == "bits: gradient of 0.weight is equal only within the bound,"


@pytest.mark.ranks(2)
def test_the_serial_run_is_shared_with_other_layouts(comm, monkeypatch):
    """Only the reproducible run of one rank is added, once for all layouts."""
    made = []
    monkeypatch.setattr(
        Kept,
        "get",
        lambda self, key, make, get=Kept.get: get(self, key, lambda: (made.append(key), make())[1]),
    )
    layouts = [Layout(dp=2), *[Layout(dp=2, reproducible=True)] * 2]
    list(verify(comm, {"mlp": EXPERIMENT}, [("mlp", layout) for layout in layouts]))
    assert made == ([("mlp", None, 1), ("mlp", "bits", 1)] if comm.rank == 0 else [])
