"""The tape: order, memory, what is recorded, errors."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

from parallel_dl.autograd import Tensor, backward, is_grad_enabled, no_grad, ops, primitive


def leaf(*values: float, dtype=np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


def recording(log: list):
    """An identity that writes its name into `log` when its pullback runs."""

    @primitive
    def identity(a, *, name):
        def pullback(g):
            log.append(name)
            return g

        return a.copy(), (pullback,)

    return identity


# -- order -------------------------------------------------------------------------------------------------------------
def test_newest_node_first():
    log: list[str] = []
    named = recording(log)
    x = leaf(1.0)
    first = named(x, name="first")
    second = named(x, name="second")
    third = named(first, name="third")
    (second + third + named(second, name="fourth")).sum().backward()
    assert log == ["fourth", "third", "second", "first"]


def test_depth_20000():
    x = leaf(1.0, 2.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_a_deep_history_that_is_never_run_backward_is_dropped():
    y = leaf(1.0)
    for _ in range(100_000):
        y = y * 1.0
    data = weakref.ref(y.data)
    del y
    assert data() is None


ORDER = """
import numpy as np
from parallel_dl.autograd import Tensor, primitive

log = []

@primitive
def mix(*arrays, name):
    def pullback(i):
        def run(g):
            log.append(f"{name}.{i}")
            return g
        return run
    return sum(arrays), tuple(pullback(i) for i in range(len(arrays)))

random = np.random.default_rng(5)
made = [Tensor(np.ones(2), requires_grad=True) for _ in range(4)]
for name in range(60):
    made.append(mix(*[made[i] for i in random.integers(0, len(made), 3)], name=name))
for tensor in made[:4]:
    tensor.register_post_accumulate_grad_hook(lambda t: log.append(f"complete {made.index(t)}"))
mix(*made, name="last").sum().backward()
print(" ".join(log))
"""


def test_order_is_equal_in_processes_with_other_hash_seeds():
    orders = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", ORDER]
        orders.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert orders[0] == orders[1]
    assert orders[0].split()[:2] == ["last.0", "last.1"]
    assert orders[0].count("complete") == 4


# -- memory ------------------------------------------------------------------------------------------------------------
def test_memory_is_freed_in_passing():
    alive: list[int] = []
    arrays: list[weakref.ref] = []

    @primitive
    def step(a):
        value = a + 1

        def pullback(g):
            alive.append(sum(array() is not None for array in arrays))
            return g * (value > 0)  # keeps its value for backward

        return value, (pullback,)

    x = leaf(1.0, 2.0)
    y = x
    gc.disable()
    try:
        for _ in range(10):
            y = step(y)
            arrays.append(weakref.ref(y.data))
        y = y.sum()
        y.backward()
    finally:
        gc.enable()
    # node i runs with the arrays of nodes 0..i alive, and none of those that were passed
    assert alive == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert not any(array() is not None for array in arrays)


def test_deferred_gradients_free_their_memory_in_passing():
    alive: list[int] = []
    kept: list[weakref.ref] = []

    @primitive
    def product(a, w):
        own = a * w
        kept.append(weakref.ref(own))

        def for_weight(g):
            alive.append(sum(array() is not None for array in kept))
            return g * a + 0 * own

        return own.copy(), (lambda g: g * w, for_weight)

    weights = [leaf(2.0) for _ in range(4)]
    y = leaf(1.0)
    for w in weights:
        y = product(y, w)
    deferred = y.backward(defer=weights)
    del y
    assert alive == []
    deferred.run()
    assert alive == [4, 3, 2, 1]


def test_a_second_backward_raises():
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="already run backward and freed"):
        y.backward()


def test_backward_through_a_freed_part_raises():
    x = leaf(1.0)
    trunk = x * x
    (trunk * 2).sum().backward()
    with pytest.raises(RuntimeError, match="call backward once on the sum of the losses"):
        (trunk * 3).sum().backward()


# -- what is recorded --------------------------------------------------------------------------------------------------
def test_no_grad_records_nothing():
    x = leaf(1.0)
    with no_grad():
        assert not is_grad_enabled()
        y = x * 2
        with no_grad():
            pass
        assert not is_grad_enabled()
    assert is_grad_enabled()
    assert not y.requires_grad
    assert y.is_leaf
    assert (x * 2).requires_grad


def test_no_grad_ends_with_an_exception():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_detach_cuts_the_history():
    x = leaf(3.0)
    y = x * 2
    assert y.detach().data is y.data
    (y.detach() * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [6])


def test_leaves():
    x = leaf(1.0)
    assert x.is_leaf
    assert not (x * 2).is_leaf
    assert (Tensor(2.0) * 3).is_leaf
    y = x * 2
    y.sum().backward()
    assert y.grad is None


def test_backward_from_a_leaf():
    x = leaf(1.0, 2.0)
    given = np.array([3.0, 4.0])
    x.backward(given)
    x.backward(given)
    np.testing.assert_array_equal(x.grad, [6, 8])
    np.testing.assert_array_equal(given, [3, 4])


# -- errors ------------------------------------------------------------------------------------------------------------
def test_errors_of_backward():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"backward of a tensor of shape \(2,\) needs a gradient"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"gradient of shape \(3,\) for a tensor of shape \(2,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="depends on nothing that requires a gradient"):
        Tensor(1.0).backward()
    with pytest.raises(RuntimeError, match="depends on nothing"):
        backward(Tensor(1.0) * 2)
    (x * 2).backward([1.0, 2.0])
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_integers_cannot_require_a_gradient():
    for data in (np.arange(3), 1, [True, False], np.int64(3)):
        with pytest.raises(TypeError, match="only floating-point tensors can require a gradient, not"):
            Tensor(data, requires_grad=True)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_pullback_with_a_wrong_shape_is_named(buffered):
    @primitive
    def wrong(a):
        return a * 2, (lambda g: g.sum(),)

    x = leaf(1.0, 2.0)
    x.grad_buffer = np.zeros(2) if buffered else None
    with pytest.raises(ValueError, match=r"gradient of shape \(\) to a tensor of shape \(2,\)"):
        wrong(x).backward(np.ones(2))


def test_a_tensor_that_requires_a_gradient_is_no_keyword():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    bias = Tensor(np.ones(4), requires_grad=True)
    with pytest.raises(TypeError, match="linear: bias requires a gradient, but keyword arguments are constants"):
        ops.linear(x, np.ones((4, 3)), bias=bias)
    np.testing.assert_array_equal(ops.linear(x, np.ones((4, 3)), bias=bias.detach()).data, np.full((2, 4), 4))


@pytest.mark.parametrize("operation", [ops.sum, ops.mean, ops.max])
def test_axes_that_do_not_exist_are_refused(operation):
    for axis in (2, -3, (0, 5)):
        with pytest.raises(np.exceptions.AxisError):
            operation(Tensor(np.ones((2, 3))), axis=axis)
    with pytest.raises(ValueError, match="duplicate"):
        operation(Tensor(np.ones((2, 3))), axis=(0, -2))
