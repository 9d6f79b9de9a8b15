"""Completion hooks, and weight gradients that are computed later."""

import numpy as np
import pytest

from parallel_dl.autograd import Deferred, Tensor, ops, primitive


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
    with pytest.raises(ValueError, match="work only on leaves"):
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


def test_deferred_gradients_are_computed_in_the_order_of_backward():
    log: list[str] = []
    named = recording(log)
    weights = [leaf(1.0) for _ in range(3)]
    total = leaf(0.0)
    for i, w in enumerate(weights):
        total = total + named(w, name=f"weight {i}")
    deferred = total.sum().backward(defer=weights)
    assert log == []
    deferred.run()
    assert log == ["weight 2", "weight 1", "weight 0"]


def test_microbatches_deferred_and_run_later_add_up():
    w, xs = leaf(2.0), [leaf(1.0), leaf(5.0)]
    pending = [(x * w).sum().backward(defer=[w]) for x in xs]
    for deferred in pending:
        deferred.run()
    np.testing.assert_array_equal(w.grad, [6])
