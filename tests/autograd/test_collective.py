"""Operations that meet other ranks in backward are run by every rank, with a recording stand-in for communication."""

import numpy as np
import pytest

from parallel_dl.autograd import Tensor, abandon, no_grad, ops, primitive
from parallel_dl.autograd.meeting import awaited


class Recorder:
    """A collective operation that communicates with nobody and writes down when it would, and what it would send."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, np.ndarray]] = []

        @primitive(collective=True)
        def replicate(a, *, name):
            def pullback(g):
                self.calls.append((name, g))
                return g

            return a.copy(), (pullback,)

        @primitive(collective=True)
        def halves(a, *, name):
            def pullback(gs):
                self.calls.append((name, np.concatenate(gs)))
                return np.concatenate(gs)

            return (a[:1], a[1:]), (pullback,)

        self.replicate, self.halves = replicate, halves

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def recorder():
    abandon()
    yield Recorder()
    abandon()


def leaf(*values: float, dtype=np.float64, requires_grad: bool = True) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=requires_grad)


def test_on_the_path_it_is_an_operation_like_any_other(recorder):
    x = leaf(1.0, 2.0)
    (recorder.replicate(x, name="a") * 3).sum().backward()
    assert recorder.names == ["a"]
    np.testing.assert_array_equal(x.grad, [3, 3])
    assert not awaited()


def test_unreached_by_the_root_it_runs_with_zeros(recorder):
    x = leaf(1.0, 2.0, dtype=np.float32)
    recorder.replicate(x, name="unused")
    (x * 2).sum().backward()
    assert recorder.names == ["unused"]
    np.testing.assert_array_equal(recorder.calls[0][1], [0, 0])
    assert recorder.calls[0][1].dtype == np.float32
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_zeros_travel_on_to_older_collectives(recorder):
    x = leaf(1.0)
    recorder.replicate(recorder.replicate(x, name="older") * 2, name="newer")
    (x * 2).sum().backward()
    assert recorder.names == ["newer", "older"]
    np.testing.assert_array_equal(x.grad, [2])


def test_a_frozen_input_is_no_reason_to_stay_away(recorder):
    frozen, w = leaf(1.0, requires_grad=False), leaf(2.0)
    y = recorder.replicate(frozen, name="frozen")
    assert y.requires_grad
    (y * w).sum().backward()
    assert recorder.names == ["frozen"]
    np.testing.assert_array_equal(recorder.calls[0][1], [2])
    assert frozen.grad is None
    np.testing.assert_array_equal(w.grad, [1])


def test_a_loss_that_depends_on_nothing_still_meets_the_others(recorder):
    recorder.replicate(leaf(1.0, requires_grad=False), name="a")
    Tensor(np.zeros(())).backward()
    assert recorder.names == ["a"]
    with pytest.raises(RuntimeError, match="depends on nothing"):
        Tensor(np.zeros(())).backward()


def test_newest_first_whether_reached_or_not(recorder):
    x = leaf(1.0)
    a = recorder.replicate(x, name="a")
    b = recorder.replicate(x, name="b, unreached")
    c = recorder.replicate(a, name="c")
    recorder.replicate(c, name="d, unreached")
    recorder.replicate(b.detach(), name="e, unreached and frozen")
    f = recorder.replicate(c, name="f")
    f.sum().backward()
    assert recorder.names == ["f", "e, unreached and frozen", "d, unreached", "c", "b, unreached", "a"]
    np.testing.assert_array_equal(x.grad, [1])


def test_the_order_is_that_of_a_rank_whose_root_reaches_everything(recorder):
    def forward(use_all: bool) -> Tensor:
        x = leaf(1.0)
        first = recorder.replicate(x, name="first")
        second = recorder.replicate(x if use_all else x.detach(), name="second")
        third = recorder.replicate(first * second, name="third")
        return (third + second).sum() if use_all else (first * 2).sum()

    forward(use_all=True).backward()
    reached, recorder.calls = recorder.names, []
    forward(use_all=False).backward()
    assert recorder.names == reached == ["third", "second", "first"]


def test_it_does_not_run_twice(recorder):
    x = leaf(1.0)
    y = recorder.replicate(x, name="a")
    (y + y).sum().backward()
    (x * 2).sum().backward()
    assert recorder.names == ["a"]
    np.testing.assert_array_equal(x.grad, [4])


def test_later_backward_passes_skip_abandoned_nodes(recorder):
    """A forward pass that an error has ended."""
    recorder.replicate(leaf(1.0), name="before")
    abandon()
    recorder.replicate(leaf(1.0), name="after")
    (leaf(1.0) * 2).sum().backward()
    assert recorder.names == ["after"]


def test_an_array_makes_no_node(recorder):
    y = recorder.replicate(np.ones(2), name="array")
    assert not y.requires_grad
    (y * leaf(1.0, 2.0)).sum().backward()
    assert recorder.names == []
    assert not awaited()


def test_integers_and_no_grad_make_no_node(recorder):
    assert not recorder.replicate(Tensor(np.arange(2)), name="integers").requires_grad
    with no_grad():
        assert not recorder.replicate(leaf(1.0), name="no_grad").requires_grad
    (leaf(1.0) * 2).sum().backward()
    assert recorder.names == []


def test_two_losses_in_the_order_of_their_forwards(recorder):
    x = leaf(1.0)
    first = (recorder.replicate(x, name="first") * 2).sum()
    recorder.replicate(x, name="first, unreached")
    between = first * 1.0
    second = (recorder.replicate(x, name="second") * 3).sum()
    between.backward()
    assert recorder.names == ["first, unreached", "first"]
    second.backward()
    assert recorder.names == ["first, unreached", "first", "second"]
    np.testing.assert_array_equal(x.grad, [5])


def test_forwards_of_other_stages_that_are_outstanding_are_left_alone(recorder):
    # one rank has stages 0 and 2 of a pipeline: forward of both, then backward of 2, later of 0
    inputs, outputs = [], []
    for stage in (0, 2):
        x = leaf(1.0)
        inputs.append(x)
        y = recorder.replicate(x, name=f"stage {stage}") * 2
        recorder.replicate(x, name=f"stage {stage}, unreached")
        outputs.append(y * 1.0)
    outputs[1].backward(np.ones(1), since=inputs[1])
    assert recorder.names == ["stage 2, unreached", "stage 2"]
    outputs[0].backward(np.ones(1), since=inputs[0])
    assert recorder.names[2:] == ["stage 0, unreached", "stage 0"]
    np.testing.assert_array_equal(inputs[0].grad, [2])


def test_several_results_unreached(recorder):
    x = leaf(1.0, 2.0)
    recorder.halves(x, name="unreached")
    left, _ = recorder.halves(x, name="left only")
    recorder.halves(leaf(3.0, 4.0, requires_grad=False), name="frozen")
    (left * 5).sum().backward()
    # `left` is older than "frozen", but the root was made after it
    assert recorder.names == ["frozen", "left only", "unreached"]
    for (_, sent), expected in zip(recorder.calls, ([0, 0], [5, 0], [0, 0])):
        np.testing.assert_array_equal(sent, expected)
    np.testing.assert_array_equal(x.grad, [5, 0])
    assert not awaited()


def test_messages_have_the_dtype_of_the_value_on_every_rank(recorder):
    x = leaf(1.0, 2.0, dtype=np.float32)
    y = recorder.replicate(x, name="reached")
    a, _ = recorder.halves(x, name="halves")
    (y * np.ones(2) + a * np.ones(1)).sum().backward()  # in float64 from here on
    assert [sent.dtype for _, sent in recorder.calls] == [np.float32, np.float32]


def test_hooks_count_the_uses_by_unreached_collectives(recorder):
    x = leaf(1.0)
    x.register_post_accumulate_grad_hook(lambda t: recorder.calls.append(("complete", t.grad.copy())))
    recorder.replicate(x, name="unreached")
    (x * 2).sum().backward()
    assert recorder.names == ["unreached", "complete"]


def test_deferred_weight_gradients_and_collectives(recorder):
    x, w = leaf(1.0), leaf(2.0)
    y = ops.multiply(recorder.replicate(x, name="input"), recorder.replicate(w, name="weight"))
    deferred = y.sum().backward(defer=[w])
    assert recorder.names == ["input"] or recorder.names == ["weight", "input"]
    deferred.run()
    assert sorted(recorder.names) == ["input", "weight"]
    np.testing.assert_array_equal(w.grad, [1])
