"""GradientAllReduce sums exactly what it was given, and notices, on every rank, what changed since."""

import numpy as np
import pytest

from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.errors import InputError

METHODS = [("window", None), ("mpi", False), ("mpi", True)]
ALL = [*METHODS, ("tree", None)]
SAMPLES = 11  # not divisible by 2 or 3 ranks


def network():
    layers = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3)
    return nn.Sequential(*layers).initialize(1, "float64")


def backward(model, seed=0, comm=None):
    """Backward for this rank's share of a batch; for all of it without `comm`."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(SAMPLES, 4)), random.integers(0, 3, SAMPLES)
    own = (
        slice(0, SAMPLES)
        if comm is None
        else slice(SAMPLES * comm.rank // comm.size, SAMPLES * (comm.rank + 1) // comm.size)
    )
    nn.cross_entropy(model(x[own]), y[own], total=SAMPLES).backward()


def all_reduce(comm, model, method, overlap=None, of=None):
    parameters = model.parameters() if of is None else [p for layer in of for p in model[layer].parameters()]
    return GradientAllReduce(parameters, comm, method, overlap, bucket_bytes=64)


def assert_same(comm, model, plain):
    for (name, own), other in zip(model.named_parameters(), plain.parameters()):
        np.testing.assert_allclose(own.data, other.data, rtol=1e-12, atol=1e-14, err_msg=name)
    bits = comm.all_gather_object([p.data.tobytes() for p in model.parameters()])
    assert all(of_rank == bits[0] for of_rank in bits)


def train(comm, change=None, steps=4, method="window", overlap=None, frozen=(), make=None):
    """Trains in parallel and serially; `change(model, optimizers, comm or None)` comes after two updates."""
    make = make or (lambda model: [optim.SGD(model.parameters(), 0.3, momentum=0.9)])
    model, plain = network(), network()
    for one in (model, plain):
        for layer in frozen:
            for parameter in one[layer].parameters():
                parameter.requires_grad = False
    gradients = all_reduce(comm, model, method, overlap)
    runs = [(model, make(model), comm), (plain, make(plain), None)]
    for step in range(steps):
        for one, optimizers, ranks in runs:
            if step == 2 and change is not None:
                change(one, optimizers, ranks)
            one.zero_grad()
            backward(one, step, ranks)
            if ranks is not None:
                gradients.all_reduce()
            for optimizer in optimizers:
                optimizer.step()
    assert_same(comm, model, plain)
    gradients.free()
    return model


# -- exactly those --------------------------------------------------------------------------------------------------
@pytest.mark.ranks(1, 2, 3)
@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam, optim.LARS])
def test_two_rates_for_body_and_head(comm, rule):
    def make(model):
        return [rule(model[4].parameters(), lr=0.3), rule([*model[0].parameters(), *model[2].parameters()], lr=0.01)]

    train(comm, make=make)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), ALL)
def test_a_part_is_summed_whatever_optimizer_there_is(comm, method, overlap):
    for optimizer_first in (True, False):
        model, plain = network(), network()
        if optimizer_first:
            optim.SGD(model.parameters(), 0.1)
        gradients = all_reduce(comm, model, method, overlap, of=[4])
        if not optimizer_first:
            optim.SGD(model.parameters(), 0.1)
        backward(model, comm=comm)
        own = [p.grad.copy() for p in model.parameters()[:4]]
        gradients.all_reduce()
        backward(plain)
        for parameter, expected in zip(model.parameters(), [*own, *(p.grad for p in plain[4].parameters())]):
            np.testing.assert_allclose(parameter.grad, expected, rtol=1e-12, atol=1e-15)
        gradients.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
@pytest.mark.parametrize("freed", ["before", "between", "after", "never"])
def test_an_all_reduce_is_not_disturbed_by_another(comm, method, overlap, freed):
    """The older one is freed before the newer is made, before or after backward, or never."""
    model, plain = network(), network()
    older = all_reduce(comm, model, method, overlap)
    if freed == "before":
        older.free()
    newer = all_reduce(comm, model, method, overlap)
    optimizer = optim.SGD(model.parameters(), 0.1)
    if freed == "between":
        older.free()
    backward(plain)
    for turn in range(2):
        optimizer.zero_grad()
        backward(model, comm=comm)
        newer.all_reduce()
        if freed == "after" and turn == 0:
            older.free()
        for own, other in zip(model.parameters(), plain.parameters()):
            np.testing.assert_allclose(own.grad, other.grad, rtol=1e-12, atol=1e-15)
    if freed == "never":  # and the older one still sums, too
        model.zero_grad()
        backward(model, comm=comm)
        older.all_reduce()
        for own, other in zip(model.parameters(), plain.parameters()):
            np.testing.assert_allclose(own.grad, other.grad, rtol=1e-12, atol=1e-15)
        older.free()
    newer.free()


@pytest.mark.ranks(2)
def test_gradients_outlive_the_shared_memory(comm):
    model, plain = network(), network()
    gradients = all_reduce(comm, model, "window")
    backward(plain)
    backward(model, comm=comm)
    gradients.all_reduce()
    gradients.free()
    for own, other in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(own.grad, other.grad, rtol=1e-12, atol=1e-15)
    backward(model, comm=comm)  # onto the sum
    again = all_reduce(comm, model, "mpi")
    with pytest.raises(RuntimeError, match="call zero_grad"):
        again.all_reduce()
    again.free()


@pytest.mark.ranks(2)
def test_unsummed_gradients_can_be_summed_by_the_next_all_reduce(comm):
    model, plain = network(), network()
    backward(plain)
    first = all_reduce(comm, model, "window")
    backward(model, comm=comm)
    own = [p.grad.copy() for p in model.parameters()]
    first.free()
    other = all_reduce(comm, network(), "window")  # in the memory that the first has left
    for parameter, kept in zip(model.parameters(), own):
        np.testing.assert_array_equal(parameter.grad, kept)
    second = all_reduce(comm, model, "window")
    second.all_reduce()
    for parameter, expected in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(parameter.grad, expected.grad, rtol=1e-12, atol=1e-15)
    second.free()
    other.free()


# -- several backward passes ----------------------------------------------------------------------------------------
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(("method", "overlap"), ALL)
def test_several_backward_passes_are_summed(comm, method, overlap):
    if method == "tree" and comm.size == 3:
        return
    model, plain = network(), network()
    gradients = all_reduce(comm, model, method, overlap)
    for turn in range(2):
        for one in (model, plain):
            one.zero_grad()
        for seed in range(3):
            backward(plain, seed)
            if comm.rank != 1 or seed != 1:  # a rank may have fewer
                backward(model, seed, comm)
        if comm.rank == 1:
            backward(model, 1, comm)
        if turn:  # begins again
            model.zero_grad()
            plain.zero_grad()
            backward(plain, 7)
            backward(model, 7, comm)
        gradients.all_reduce()
        for own, other in zip(model.parameters(), plain.parameters()):
            np.testing.assert_allclose(own.grad, other.grad, rtol=1e-12, atol=1e-15)
    gradients.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_a_gradient_changed_in_place_before_the_sum(comm, method, overlap):
    model = network()
    gradients = all_reduce(comm, model, method, overlap)
    backward(model, comm=comm)
    if comm.rank == 0:
        for parameter in model[2].parameters():
            parameter.grad[...] = parameter.grad[::-1].copy()  # the same numbers in another order
    summands = comm.all_gather_object([p.grad.copy() for p in model[2].parameters()])
    gradients.all_reduce()
    for own, expected in zip(model[2].parameters(), map(sum, zip(*summands))):
        np.testing.assert_allclose(own.grad, expected, rtol=1e-12, atol=1e-15)
    gradients.free()


# -- what changes afterwards ----------------------------------------------------------------------------------------
def unfreeze(model, optimizers, comm):
    for parameter in model[0].parameters():
        parameter.requires_grad = True


def unfreeze_on_the_last_rank(model, optimizers, comm):
    """The others then receive its share of the gradient: on one rank alone it would be all of it."""
    if comm is None or comm.rank == comm.size - 1:
        unfreeze(model, optimizers, comm)


def freeze(model, optimizers, comm):
    for parameter in model[2].parameters():
        parameter.requires_grad = False


def assign_arrays(model, optimizers, comm):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
@pytest.mark.parametrize("change", [unfreeze, freeze, assign_arrays])
def test_training_goes_on_as_serially(comm, method, overlap, change):
    train(comm, change, method=method, overlap=overlap, frozen=[0] if change is unfreeze else [])


@pytest.mark.ranks(2)
def test_everything_is_unfrozen(comm):
    """Nothing was summed before."""

    def change(model, optimizers, comm):
        for parameter in model.parameters():
            parameter.requires_grad = True

    def make(model):
        model[1].forward = lambda x: (x + nn.Parameter((5,), nn.initializers.constant(0.0))).tanh()  # for backward
        return [optim.SGD(model.parameters(), 0.3)]

    train(comm, change, frozen=[0, 2, 4], make=make)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
@pytest.mark.parametrize("frozen", [[0], [0, 2, 4]])
def test_one_rank_unfreezes(comm, method, overlap, frozen):
    """Its gradient is the sum, on every rank; also where nothing was summed before."""
    model = network()
    for layer in frozen:
        for parameter in model[layer].parameters():
            parameter.requires_grad = False
    gradients = all_reduce(comm, model, method, overlap)
    optimizer = optim.SGD(model.parameters(), 0.1)
    before = model[0].weight.data.copy()
    for step in range(2):
        unfreeze_on_the_last_rank(model, [optimizer], comm)
        optimizer.zero_grad()
        if len(frozen) < 3 or comm.rank == comm.size - 1:  # elsewhere there is nothing to go back to
            backward(model, step, comm)
        of_last = comm.broadcast_object([p.grad for p in model[0].parameters()], comm.size - 1)
        gradients.all_reduce()
        for parameter, expected in zip(model[0].parameters(), of_last, strict=True):
            np.testing.assert_array_equal(parameter.grad, expected)
        optimizer.step()
    assert not np.array_equal(model[0].weight.data, before)
    bits = comm.all_gather_object([p.data.tobytes() for p in model.parameters()])
    assert all(other == bits[0] for other in bits)
    gradients.free()


def replaced_layer(model):
    model.replace("2", nn.Linear(5, 3))


def added_weight(model):
    model[4].scale = nn.Parameter((3,), nn.initializers.constant(1.0))
    forward = type(model[4]).forward
    model[4].forward = lambda x: forward(model[4], x) * model[4].scale


def unfrozen_but_never_given(model):
    unfreeze(model, [], None)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
@pytest.mark.parametrize("change", [replaced_layer, added_weight, unfrozen_but_never_given])
@pytest.mark.parametrize("everywhere", [True, False])
def test_weights_that_nobody_would_sum_are_refused_on_every_rank(comm, method, overlap, change, everywhere):
    model = network()
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    gradients = all_reduce(comm, model, method, overlap, of=[2, 4])
    backward(model, comm=comm)
    gradients.all_reduce()
    if everywhere or comm.rank == 1:
        change(model)
    model.zero_grad()
    backward(model, comm=comm)
    who = "" if everywhere else "rank 1: "
    with pytest.raises(
        InputError, match=rf"^{who}\d.\w+ has a gradient but is in no GradientAllReduce: it was added to"
    ):
        gradients.all_reduce()
    gradients.free()


@pytest.mark.ranks(2)
def test_what_another_all_reduce_has_is_not_refused(comm):
    model, plain = network(), network()
    first = all_reduce(comm, model, "window")
    for one in (model, plain):
        one.replace("2", nn.Linear(5, 3))
        one.initialize(1)
    second = GradientAllReduce(model[2].parameters(), comm)
    backward(model, comm=comm)
    backward(plain)
    first.all_reduce()
    second.all_reduce()
    for own, other in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(own.grad, other.grad, rtol=1e-12, atol=1e-15)
    second.free()
    model.zero_grad()
    backward(model, comm=comm)
    with pytest.raises(InputError, match=r"^2\.weight has a gradient but is in no GradientAllReduce"):
        first.all_reduce()
    first.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
@pytest.mark.parametrize("when", ["before the sum", "before the update"])
def test_other_arrays_must_be_equal_on_all_ranks(comm, method, overlap, when):
    model = network()
    gradients = all_reduce(comm, model, method, overlap)
    optimizer = optim.SGD(model.parameters(), 0.1)
    backward(model, comm=comm)
    if when == "before the update":  # then the optimizer has them in an array of its own at the next sum
        gradients.all_reduce()
    if comm.rank == 1:
        model[2].weight.data = model[2].weight.data + 1
    if when == "before the update":
        optimizer.step()
        model.zero_grad()
        backward(model, comm=comm)
    with pytest.raises(InputError, match="replicas differ: the weights of rank 1 are not those of rank 0"):
        gradients.all_reduce()
    gradients.free()


@pytest.mark.ranks(2)
def test_another_type_is_refused(comm):
    model = network()
    gradients = all_reduce(comm, model, "window")
    model.initialize(1, "float32")
    backward(model, comm=comm)
    with pytest.raises(
        InputError, match=r"0\.weight is float32 \(5, 4\) now, but was float64 \(5, 4\) .* make a new one"
    ):
        gradients.all_reduce()
    gradients.free()


# -- ranks that differ ----------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), ALL)
def test_frozen_on_one_rank_from_the_beginning(comm, method, overlap):
    """Each rank has frozen another layer: both layers are summed, each from the rank that has its gradient."""
    model = network()
    for parameter in model[(0, 4)[comm.rank]].parameters():
        parameter.requires_grad = False
    gradients = all_reduce(comm, model, method, overlap)
    backward(model, comm=comm)
    own = comm.all_gather_object([None if p.grad is None else p.grad.copy() for p in model.parameters()])
    gradients.all_reduce()
    for parameter, summands in zip(model.parameters(), zip(*own)):
        expected = sum(grad for grad in summands if grad is not None)
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-12, atol=1e-15)
    gradients.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda rank: {"method": ("mpi", "window")[rank]}, "method is 'mpi' on rank 0 and 'window' on rank 1"),
        (lambda rank: {"method": "mpi", "overlap": bool(rank)}, "overlap is False on rank 0 and True on rank 1"),
        (lambda rank: {"bucket_bytes": 64 + rank}, "bucket_bytes is 64 on rank 0 and 65 on rank 1"),
    ],
)
def test_ranks_that_ask_for_different_things(comm, options, message):
    with pytest.raises(InputError, match=message):
        GradientAllReduce(network().parameters(), comm, **options(comm.rank))


@pytest.mark.ranks(2)
def test_ranks_that_give_different_parameters(comm):
    model = network()
    with pytest.raises(InputError, match="the parameters of rank 1 differ in shape or type from those of rank 0"):
        GradientAllReduce(model.parameters()[:: 1 - 2 * comm.rank], comm)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
@pytest.mark.parametrize("how", ["initialize", "load all", "load a part"])
def test_weights_that_one_rank_sets_anew(comm, method, overlap, how):
    model = network()
    gradients = all_reduce(comm, model, method, overlap)
    if comm.rank == 1 and how == "initialize":
        model.initialize(5)
    elif comm.rank == 1:
        part = model if how == "load all" else model[2]
        part.load_state_dict({name: values + 1 for name, values in part.state_dict().items()})
    for _ in range(2):  # and again: nothing has been settled
        model.zero_grad()
        backward(model, comm=comm)
        with pytest.raises(InputError, match="replicas differ: the weights of rank 1 are not those of rank 0"):
            gradients.all_reduce()
    model.load_state_dict(network().state_dict())
    model.zero_grad()
    backward(model, comm=comm)
    gradients.all_reduce()
    gradients.free()


# -- after a refusal ------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), ALL)
def test_a_refused_sum_is_not_made_twice(comm, method, overlap):
    model, plain = network(), network()
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    gradients = all_reduce(comm, model, method, overlap, of=[2, 4])
    unfreeze(model, [], None)
    backward(model, comm=comm)
    with pytest.raises(InputError, match="in no GradientAllReduce"):
        gradients.all_reduce()
    other = all_reduce(comm, model, method, overlap, of=[0])
    try:
        gradients.all_reduce()
    except RuntimeError:  # what was summed in place
        model.zero_grad()
        backward(model, comm=comm)
        gradients.all_reduce()
    other.all_reduce()
    backward(plain)
    for own, expected in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(own.grad, expected.grad, rtol=1e-12, atol=1e-15)
    gradients.free()
    other.free()
    with pytest.raises(RuntimeError, match="this GradientAllReduce was freed"):
        gradients.all_reduce()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("method", "overlap"), METHODS)
def test_a_replaced_layer_that_gets_an_all_reduce_of_its_own(comm, method, overlap):
    """The sum that the old layer still has disturbs nobody: the network's zero_grad does not reach it."""
    model, plain = network(), network()
    gradients = all_reduce(comm, model, method, overlap)
    backward(model, comm=comm)
    gradients.all_reduce()
    for one in (model, plain):
        one.replace("2", nn.Linear(5, 3))
    other = all_reduce(comm, model, method, overlap, of=[2])
    for _ in range(2):
        model.zero_grad()
        backward(model, comm=comm)
        gradients.all_reduce()
        other.all_reduce()
    backward(plain)
    for own, expected in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(own.grad, expected.grad, rtol=1e-12, atol=1e-15)
    gradients.free()
    other.free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("statistics", ["global", "local"])
def test_a_batch_norm_that_came_later_is_refused(comm, statistics):
    """Without weights of its own nothing else would tell: it would normalise with this rank's share."""
    model = network()
    gradients = all_reduce(comm, model, "mpi")
    model[1] = nn.BatchNorm1d(5, affine=False, statistics=statistics)
    model.initialize(1)
    backward(model, comm=comm)
    with pytest.raises(InputError, match=r"^1 is a batch norm layer that was added after"):
        gradients.all_reduce()
    gradients.free()


@pytest.mark.ranks(2)
def test_an_all_reduce_that_is_gone_has_nothing(comm):
    """Of all parameters first, then of a part: what is unfrozen then is nobody's."""
    model = network()
    gradients = all_reduce(comm, model, "mpi")
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    gradients = all_reduce(comm, model, "mpi", of=[2, 4])
    unfreeze(model, [], None)
    backward(model, comm=comm)
    with pytest.raises(InputError, match=r"0\.weight has a gradient but is in no GradientAllReduce"):
        gradients.all_reduce()
    gradients.free()
