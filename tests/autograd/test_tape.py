"""The tape: order, memory, accumulation, hooks, deferral."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

from parallel_dl.autograd import Deferred, Tensor, backward, is_grad_enabled, no_grad, ops, primitive
from parallel_dl.autograd.tape import once


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
    for _ in range(200_000):
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


# -- accumulation ------------------------------------------------------------------------------------------------------
def test_two_backward_passes_add_up():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    first = x.grad
    (x * 4).sum().backward()
    np.testing.assert_array_equal(x.grad, [7, 7])
    assert first is not None


def test_several_uses_add_up():
    x = leaf(2.0)
    y = x * 3
    (y + y * y + x).sum().backward()
    np.testing.assert_array_equal(x.grad, [3 + 2 * 6 * 3 + 1])


def test_gradient_buffer_is_written_without_a_copy():
    given: list = []

    @primitive
    def scaled(w):
        def pullback(g, out=None):
            given.append(out)
            return np.multiply(g, 2.0, out=out)

        return w * 2.0, (pullback,)

    w = leaf(1.0, 2.0)
    w.grad_buffer = np.full(2, np.nan)
    scaled(w).sum().backward()
    assert w.grad is w.grad_buffer
    assert given[0] is w.grad_buffer
    np.testing.assert_array_equal(w.grad_buffer, [2, 2])
    (scaled(w).sum() * 3).backward()
    assert given[1] is None
    assert w.grad is w.grad_buffer
    np.testing.assert_array_equal(w.grad_buffer, [8, 8])
    w.grad = None  # what zero_grad does: the next pass overwrites
    scaled(w).sum().backward()
    np.testing.assert_array_equal(w.grad_buffer, [2, 2])


@pytest.mark.parametrize("bias", [True, False])
def test_linear_writes_into_the_buffers_of_its_weights(bias):
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4))
    plain = [Tensor(random.standard_normal(shape), requires_grad=True) for shape in ((2, 4), (2,))]
    buffered = [Tensor(t.data, requires_grad=True) for t in plain]
    flat = np.full(10, np.nan)
    buffered[0].grad_buffer, buffered[1].grad_buffer = flat[:8].reshape(2, 4), flat[8:]
    for weight, offset in (plain, buffered):
        y = ops.linear(x, weight, offset if bias else None)
        (ops.linear(y, ops.matmul(weight, weight.data.T)) * 2).sum().backward()  # weight is used twice
    np.testing.assert_allclose(buffered[0].grad, plain[0].grad, rtol=1e-14)
    np.testing.assert_array_equal(flat[:8].reshape(2, 4), buffered[0].grad)
    if bias:
        np.testing.assert_array_equal(flat[8:], plain[1].grad)


def test_buffer_of_another_dtype_or_a_pullback_with_defaults():
    @primitive
    def doubled(w):
        return w * 2, (lambda g, factor=2: g * factor,)  # a second argument that is not `out`

    w = leaf(1.0, 2.0)
    w.grad_buffer = np.zeros(2, np.float32)
    doubled(w).sum().backward()
    np.testing.assert_array_equal(w.grad_buffer, [2, 2])
    assert w.grad is w.grad_buffer


def test_a_gradient_that_was_replaced_is_added_to():
    w = leaf(1.0)
    w.grad_buffer = np.zeros(1)
    w.grad = np.array([5.0])
    (w * 2).sum().backward()
    np.testing.assert_array_equal(w.grad, [7])
    np.testing.assert_array_equal(w.grad_buffer, [0])


# -- aliasing ----------------------------------------------------------------------------------------------------------
def owned_and_distinct(*tensors: Tensor) -> bool:
    grads = [t.grad for t in tensors]
    apart = all(not np.shares_memory(a, b) for i, a in enumerate(grads) for b in grads[:i])
    return apart and all(g.flags.owndata and g.flags.writeable for g in grads)


def test_gradients_of_a_sum_are_different_arrays():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    given = np.array([1.0, 1.0])
    (a + b).backward(given)
    assert owned_and_distinct(a, b)
    assert not np.shares_memory(a.grad, given)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a / b,
        lambda a, b: a.reshape(1, 2) + b,
        lambda a, b: ops.concatenate(a, b),
        lambda a, b: ops.concatenate(*ops.split(ops.concatenate(a, b), sizes=(1, 3))),
        lambda a, b: ops.stack(a, b).T,
        lambda a, b: (a + b) + (a + b),
        lambda a, b: ops.broadcast_to(a, shape=(2,)) + b[::-1],
        lambda a, b: a.sum() + b.mean(),
        lambda a, b: a**1 + b,
    ],
)
def test_no_gradient_shares_memory(function):
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    function(a, b).sum().backward()
    assert owned_and_distinct(a, b)


def test_changing_a_gradient_in_a_hook_does_not_change_another():
    # divide's pullbacks share g / b: the first one's gradient must not be the array they share
    a, b = leaf(1.0), leaf(2.0)
    a.register_post_accumulate_grad_hook(lambda t: np.multiply(t.grad, 100, out=t.grad))
    (a / b).sum().backward()
    np.testing.assert_array_equal(a.grad, [50])
    np.testing.assert_array_equal(b.grad, [-0.25])


# -- completion hooks --------------------------------------------------------------------------------------------------
def test_hooks_fire_once_each_in_a_fixed_order_before_the_end():
    log: list[str] = []
    named = recording(log)
    early, late, tied = leaf(1.0), leaf(2.0), leaf(3.0)
    for name, tensor in (("early", early), ("late", late), ("tied", tied)):
        tensor.register_post_accumulate_grad_hook(lambda t, name=name: log.append(f"{name} complete {t.grad[0]:g}"))
    x = named(early, name="node 0") * tied
    x = named(x, name="node 1") * late
    x = named(x, name="node 2") * tied
    x.sum().backward()
    # d/d late = 1 * 3 * 3; tied is used at both ends: 2 * 1 * 2 * 3
    assert log == ["node 2", "late complete 9", "node 1", "tied complete 12", "node 0", "early complete 18"]


def test_hooks_fire_in_every_pass_until_removed():
    x = leaf(1.0)
    calls: list[float] = []

    def hook(t):
        calls.append(float(t.grad[0]))

    before = Tensor.hooks_registered
    first, second = x.register_post_accumulate_grad_hook(hook), x.register_post_accumulate_grad_hook(hook)
    (x * 2).sum().backward()
    assert calls == [2, 2]
    first()
    first()  # removes its own registration only
    (x * 2).sum().backward()
    assert calls == [2, 2, 4]
    second()
    (x * 2).sum().backward()
    assert calls == [2, 2, 4]
    assert Tensor.hooks_registered == before


def test_hook_of_a_leaf_used_twice_by_one_operation_and_of_the_root():
    x = leaf(3.0)
    calls: list[float] = []
    x.register_post_accumulate_grad_hook(lambda t: calls.append(float(t.grad[0])))
    (x * x).sum().backward()
    x.backward(np.ones(1))
    assert calls == [6, 7]


def test_hooks_wait_for_deferred_gradients():
    w, x = leaf(2.0), leaf(3.0)
    log: list[str] = []
    for name, tensor in (("w", w), ("x", x)):
        tensor.register_post_accumulate_grad_hook(lambda t, name=name: log.append(name))
    deferred = (x * w * w).sum().backward(defer=[w])
    assert log == ["x"]
    deferred.run()
    deferred.run()
    assert log == ["x", "w"]


def test_hooks_belong_to_leaves():
    with pytest.raises(ValueError, match="belongs to a leaf"):
        (leaf(1.0) * 2).register_post_accumulate_grad_hook(print)


# -- deferred weight gradients -----------------------------------------------------------------------------------------
def two_layers(x: Tensor, weights: list[Tensor]) -> Tensor:
    hidden = ops.relu(ops.linear(x, weights[0], weights[1]))
    hidden = hidden / (weights[2] * weights[2] + 1.0)
    return ops.cross_entropy(ops.linear(hidden, weights[0], weights[1]), targets=np.array([0, 1, 2]), total=3)


def test_deferred_gradients_equal_immediate_ones():
    random = np.random.default_rng(3)
    arrays = [random.standard_normal(shape) for shape in ((3, 3), (3, 3), (3,), (3,))]
    now, later = [[Tensor(a, requires_grad=True) for a in arrays] for _ in range(2)]
    later[1].grad_buffer = np.full((3, 3), np.nan)
    two_layers(now[0], now[1:]).backward()
    deferred = two_layers(later[0], later[1:]).backward(defer=iter(later[1:]))
    assert isinstance(deferred, Deferred)
    assert len(deferred) > 0
    np.testing.assert_array_equal(later[0].grad, now[0].grad)  # the input's is there
    assert later[1].grad is None
    assert later[2].grad is None
    deferred.run()
    assert len(deferred) == 0
    for a, b in zip(now, later):
        np.testing.assert_array_equal(a.grad, b.grad)
    assert later[1].grad is later[1].grad_buffer
    deferred.run()
    np.testing.assert_array_equal(later[2].grad, now[2].grad)


def test_microbatches_deferred_and_run_later_add_up():
    w, xs = leaf(2.0), [leaf(1.0), leaf(5.0)]
    pending = [(x * w).sum().backward(defer=[w]) for x in xs]
    for deferred in pending:
        deferred.run()
    np.testing.assert_array_equal(w.grad, [6])


# -- several results ---------------------------------------------------------------------------------------------------
def test_split_with_unused_pieces():
    x = leaf(1.0, 2.0, 3.0, 4.0)
    pieces = ops.split(x, sizes=(1, 2, 0, 1))
    (pieces[1] * 10).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 10, 10, 0])


def test_all_pieces_of_a_long_split_in_one_pass():
    calls: list[int] = []

    @primitive
    def pieces(a):
        def pullback(gs):
            calls.append(len(gs))
            return np.array([float(g) for g in gs])

        return tuple(a[i : i + 1].reshape(()) for i in range(a.size)), (pullback,)

    x = Tensor(np.arange(3000.0), requires_grad=True)
    total = Tensor(np.zeros(()))
    for i, piece in enumerate(pieces(x)):
        total = total + piece * float(i)
    total.backward()
    assert calls == [3000]
    np.testing.assert_array_equal(x.grad, np.arange(3000))


def test_a_piece_is_used_twice_and_another_is_the_root():
    x = leaf(1.0, 2.0)
    a, b = ops.split(x, sizes=(1, 1))
    (a * a + b).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 1])
    ops.split(x, sizes=(1, 1))[1].backward()
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_pieces_of_what_needs_no_gradient():
    a, b = ops.split(Tensor(np.arange(3)), sizes=(1, 2))
    assert not a.requires_grad
    np.testing.assert_array_equal(b.data, [1, 2])


# -- shared work -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("results", [1, 2])
@pytest.mark.parametrize("defer", [False, True])
def test_once_shares_work(results, defer):
    calls: list[int] = []

    @primitive
    def product(a, b):
        def work(g):
            calls.append(1)
            total = g if results == 1 else g[0] + g[1]
            return total * b, total * a

        shared = once(work)
        value = a * b
        return value if results == 1 else (value, value.copy()), (lambda g: shared(g)[0], lambda g: shared(g)[1])

    a, b = leaf(2.0), leaf(3.0)
    made = product(a, b)
    deferred = (made if results == 1 else made[0] + made[1]).sum().backward(defer=[b] if defer else [])
    deferred.run()
    assert calls == [1]
    np.testing.assert_array_equal(a.grad, [3 * results])
    np.testing.assert_array_equal(b.grad, [2 * results])
    assert owned_and_distinct(a, b)


def test_once_is_done_again_for_another_gradient():
    calls: list[int] = []
    shared = once(lambda g: calls.append(1) or g * 2)
    g = np.ones(2)
    assert shared(g) is shared(g)
    assert len(calls) == 1
    np.testing.assert_array_equal(shared(np.zeros(2)), [0, 0])
    assert len(calls) == 2
    with pytest.raises(ValueError, match="read-only"):
        shared(g)[0] = 1
    g[0] = 5  # what was passed in stays writeable


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
