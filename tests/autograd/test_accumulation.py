"""How gradients add up: several uses, buffers, arrays of their own, several results, shared work."""

import numpy as np
import pytest

from parallel_dl.autograd import Tensor, ops, primitive
from parallel_dl.autograd.tape import once


def leaf(*values: float, dtype=np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


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


@pytest.mark.parametrize("buffered", [False, True])
def test_a_copy_of_a_gradient_is_kept_the_gradient_itself_may_not_be(buffered):
    """As the first sentence on `grad` says: with a buffer (an optimizer gives one) the next backward writes there."""
    w = Tensor(np.array([1.0, 1.0]), requires_grad=True)
    w.grad_buffer = np.zeros(2) if buffered else None
    (w * 2).sum().backward()
    first, kept = w.grad, w.grad.copy()
    w.grad = None
    (w * 3).sum().backward()
    np.testing.assert_array_equal(kept, [2, 2])
    np.testing.assert_array_equal(first, [3, 3] if buffered else [2, 2])
    said = Tensor.__doc__.split("\n\n")[1].split(".")[0]
    assert "`grad` is overwritten by the next backward after `zero_grad`" in " ".join(said.split())
