"""`parallel-dl train` for every network: the small ones learn the digits, the full ones refuse other data."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import HANG, ROOT

from parallel_dl import launch, networks
from parallel_dl.cli import main
from parallel_dl.cli.flags import TrainingFlags
from parallel_dl.cli.training import _WORK_FOR_THREADS, Job, _work_in_products
from parallel_dl.cost import cost_of
from parallel_dl.datasets import places
from parallel_dl.layout import Layout
from parallel_dl.nn import Parameter, initializers


def train(*arguments):
    run = subprocess.run(
        [sys.executable, "-m", "parallel_dl", "train", *map(str, arguments), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("lenet5_small", ("--dp", 2)),
        *(pytest.param(name, (), marks=pytest.mark.grid) for name in ("alexnet_small", "vgg_small")),
    ],
)
def test_small_networks_learn_the_digits(name, more):
    """With the default settings."""
    run = train(name, *more)
    assert run["test_accuracy"] >= 0.95
    assert run["steps"] == 20 * 23
    assert run["losses"][0] > 1.5


@pytest.mark.grid
@pytest.mark.skipif(
    not (places.DEBIAN / "fashion-mnist").is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
@pytest.mark.parametrize(
    ("flags", "accuracy"), [(("--steps", 150), 0.7), pytest.param(("--epochs", 3), 0.88, marks=pytest.mark.grid)]
)
def test_lenet5_learns_fashion_mnist_alike_on_one_rank_and_on_two(flags, accuracy):
    """88 % within three epochs; in float32 the losses of all updates stay together, too."""
    one, two = (train("lenet5", "--dataset", "fashion-mnist", *flags, "--dp", dp) for dp in (1, 2))
    assert min(one["test_accuracy"], two["test_accuracy"]) >= accuracy
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)


@pytest.mark.grid
def test_a_full_network_on_data_of_its_shape(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20) % 4
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    one, two = (train("lenet5", "--dataset", tmp_path / "d.npz", "--dtype", "float64", "--dp", dp) for dp in (1, 2))
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-10)
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.grid
@pytest.mark.parametrize("name", ["alexnet_small", "vgg_small"])
def test_ranks_are_the_serial_run(name):
    """Dropout on, uneven shares. Maxima and ReLU have corners, which rounding may cross after many updates only."""
    common = (name, "--dtype", "float64", "--steps", 4, "--batch-size", 41)
    one, three = train(*common), train(*common, "--dp", 3)
    np.testing.assert_allclose(three["losses"], one["losses"], rtol=1e-10)


@pytest.mark.parametrize("dp", [1, 3])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lenet5", "--dataset digits: network lenet5: takes 1 x 28 x 28, not 1 x 8 x 8; try lenet5_small"),
        ("alexnet", "--dataset digits: network alexnet: takes 3 x 224 x 224, not 1 x 8 x 8; try alexnet_small"),
        ("vgg16", "--dataset digits: network vgg16: takes 3 x 224 x 224, not 1 x 8 x 8; try vgg_small"),
    ],
)
def test_data_that_does_not_fit(name, said, dp, capfd, monkeypatch):
    """Before any rank is started."""
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))
    assert main(["train", name, "--dp", str(dp)]) == 2
    assert capfd.readouterr() == ("", f"parallel-dl: {said}\n")


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_each_network_has_a_rate_of_its_own(name):
    def rate(optimizer, lr):
        parameter = Parameter((1,), initializers.constant(0.0))
        made = Job(name, Layout(), TrainingFlags(optimizer=optimizer, lr=lr)).make_optimizer([parameter], 1)
        parameter.grad = np.ones(1, np.float32)
        made.step()
        return -parameter.data[0]  # the first step of SGD is rate x gradient, of Adam the rate

    assert rate("sgd", None) == pytest.approx(networks.NETWORKS[name].lr)
    assert rate("sgd", 0.25) == pytest.approx(0.25)
    assert rate("adam", None) == pytest.approx(0.001)


def test_threads_share_large_products_only():
    """A convolution is a product per row: alexnet_small has many multiply-adds, but no product to share."""
    assert cost_of(networks.create("alexnet_small", (1, 8, 8), 10), (1, 8, 8)).multiply_adds * 64 > _WORK_FOR_THREADS

    def work(name, size, samples):
        return _work_in_products(cost_of(networks.create(name, size, 10), size, samples))

    assert work("alexnet_small", (1, 8, 8), 64) < _WORK_FOR_THREADS
    assert work("alexnet", (3, 224, 224), 64) > _WORK_FOR_THREADS
    assert work("mlp", (1, 8, 8), 64) == 64 * (64 * 128 + 128 * 64 + 64 * 10)
