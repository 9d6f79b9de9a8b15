"""Two threads run networks at the same time and do not disturb each other: each has its own recording and settings."""

import sys
import threading

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.autograd import (
    Tensor,
    abandon,
    is_grad_enabled,
    is_in_backward,
    no_grad,
    ops,
    primitive,
)
from parallel_dl.autograd.meeting import awaited

TIMEOUT = 300


def in_threads(*functions):
    """What the functions return, each in a thread of its own, all at the same time; their first error is raised."""
    results, errors = [None] * len(functions), []

    def run(number):
        try:
            results[number] = functions[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return results


class Turns:
    """Lets threads go on only together: every call of `wait` hands over to the others."""

    def __init__(self, parties):
        self.barrier = threading.Barrier(parties)

    def wait(self):
        self.barrier.wait(TIMEOUT)


@primitive(collective=True)
def meet(x, *, wait):
    """The identity; waits for the other thread, forward and backward."""
    wait()

    def pullback(g):
        wait()
        return g

    return x.copy(), (pullback,)


class Meeting(nn.Module):
    def __init__(self, wait):
        super().__init__()
        self.wait = wait

    def forward(self, x):
        unused = meet(x, wait=self.wait)  # a collective that does not lead to the loss
        assert (unused.number in awaited()) == self.training == is_grad_enabled()
        return meet(x, wait=self.wait)


def trained(seed, dtype, wait, updates=6):
    """The bits of the weights after some updates, in this thread; `wait` is called within forward and backward."""
    nn.manual_seed(seed)
    nn.set_default_dtype(dtype)
    drop = nn.Dropout(0.3)  # in two places: told apart by the calls under way
    network = nn.Sequential(nn.Linear(6, 8), drop, Meeting(wait), nn.Tanh(), nn.BatchNorm(8), drop, nn.Linear(8, 3))
    drop.register_forward_pre_hook(lambda layer, arguments: (wait(), arguments)[1])
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    completed = []
    network[0].weight.register_post_accumulate_grad_hook(lambda leaf: completed.append(leaf))
    random = np.random.default_rng(seed)
    for step in range(updates):
        x, y = random.standard_normal((9, 6)).astype(dtype), random.integers(0, 3, 9)
        with no_grad():
            wait()
            network.eval()(x)
        network.train().set_position(step)
        loss = nn.cross_entropy(network(x), y)
        network.zero_grad()
        if step % 2:
            loss.backward(defer=network.parameters()).run()
        else:
            loss.backward()
        optimizer.step()
        assert not awaited()
    assert len(completed) == updates
    assert network.dtype == dtype
    return [values.tobytes() for values in network.state_dict().values()]


def test_two_networks_trained_at_the_same_time_get_the_bits_of_serial_runs():
    settings = (3, np.float64), (5, np.float32)
    alone = [in_threads(lambda own=own: trained(*own, lambda: None))[0] for own in settings]
    turns = Turns(2)
    together = in_threads(*(lambda own=own: trained(*own, turns.wait) for own in settings))
    assert together == alone
    assert alone[0] != alone[1]
    # and with as many switches as there can be, wherever they fall
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        settings = [(seed, (np.float32, np.float64)[seed % 2]) for seed in (3, 4, 3, 4)]
        crowd = in_threads(*(lambda own=own: trained(*own, lambda: None, 20) for own in settings))
    finally:
        sys.setswitchinterval(interval)
    assert crowd[:2] == crowd[2:]


def test_no_grad_in_one_thread_does_not_leak_into_another():
    turns, x = Turns(2), Tensor(np.ones(3), requires_grad=True)

    def silent():
        with no_grad():
            turns.wait()
            turns.wait()  # the other one computes
            return ops.exp(x).requires_grad, is_grad_enabled()

    def recording():
        turns.wait()
        found = ops.exp(x).requires_grad, is_grad_enabled()
        turns.wait()
        return found

    assert in_threads(silent, recording) == [(False, False), (True, True)]
    assert is_grad_enabled()


def test_backward_in_one_thread_is_not_that_of_another():
    turns, x = Turns(2), Tensor(np.ones(3), requires_grad=True)

    def going_back():
        y = meet(x, wait=lambda: None)
        y.edges = [(x, lambda g: (turns.wait(), turns.wait(), g)[2])]
        y.backward(np.ones(3))
        return len(awaited())

    def watching():
        node = meet(Tensor(np.ones(2), requires_grad=True), wait=lambda: None)
        turns.wait()
        found = is_in_backward()
        turns.wait()
        left = awaited()[node.number] is node  # the other thread's backward has not passed it
        abandon()
        return found, left

    assert in_threads(going_back, watching) == [0, (False, True)]


def test_a_new_thread_begins_with_the_ordinary_settings():
    def values():
        parameter = nn.Parameter((2,), nn.initializers.uniform(1))
        return parameter.data.dtype, parameter.data.tobytes()

    def other():
        nn.manual_seed(9)
        nn.set_default_dtype("float64")
        return values()

    ours = values()
    theirs = in_threads(other)[0]
    assert theirs[0] == np.float64
    assert ours == values() == in_threads(values)[0]
    with pytest.raises(ValueError, match="float16: expected float32 or float64"):
        nn.set_default_dtype("float16")
