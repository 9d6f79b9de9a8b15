"""Variable batch: the fully connected layers are updated after each sub-batch. A serial program replays that order."""

import numpy as np
import pytest
from test_one_weird_trick_equals_serial import CLASSES, SHAPE, experiment

from parallel_dl import nn, optim
from parallel_dl.autograd import Tensor
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.trainer import Trainer

ITERATIONS = 5


def order(scheme, ranks, samples):
    """The places in the batch of each part's samples, written out: shares first, then what is sent of each."""
    shares = np.array_split(np.arange(samples), ranks)
    if scheme == "b":
        return [list(share) for share in shares]
    pieces = [np.array_split(share, ranks) for share in shares]
    return [[place for of_rank in pieces for place in of_rank[step]] for step in range(ranks)]


def replay(what, scheme, ranks):
    """(losses, weights after each iteration) of the serial program."""
    network = what.build().initialize(what.seed, what.dtype).train()
    names = list(network._modules)
    after = names.index("flatten")
    layers = network._modules
    features = [p for name in names[:after] for p in layers[name].parameters()]
    classifier = [p for name in names[after:] for p in layers[name].parameters()]
    of_features, of_classifier = what.make_optimizer(features), what.make_optimizer(classifier)
    losses, weights = [], []
    for x, y in batches(what):
        iteration = len(losses)
        network.set_position(iteration, 0)
        activations = x
        for name in names[:after]:
            activations = layers[name](activations)
        gradient = np.zeros(activations.shape)
        total = 0.0
        for places in order(scheme, ranks, len(x)):
            if not places:
                continue
            network.set_position(iteration, np.array(places))
            leaf = Tensor(activations.data[places], requires_grad=True)
            scores = leaf
            for name in names[after:]:
                scores = layers[name](scores)
            loss = nn.cross_entropy(scores, y[places], len(places))
            loss.backward()
            gradient[places] = leaf.grad * len(places) / len(x)
            total += loss.item() * len(places) / len(x)
            of_classifier.step()
            of_classifier.zero_grad()
        activations.backward(gradient)
        of_features.step()
        of_features.zero_grad()
        losses.append(total)
        weights.append(network.state_dict())
    return losses, weights


def batches(what):
    """The first iterations' samples, in the order of a loader of one rank."""
    from parallel_dl.datasets import Loader

    loader = Loader(what.x, what.y, what.batch_size, seed=what.seed)
    epoch, found = 0, []
    while len(found) < ITERATIONS:
        found += [(batch.x, batch.y) for batch in loader.epoch(epoch)]
        epoch += 1
    return found[:ITERATIONS]


def train(comm, what, scheme, variable=True):
    """The same of the ranks."""
    network = what.build().initialize(what.seed, what.dtype, fill=False)
    layout = Layout(dp=comm.size, hybrid="owt", scheme=scheme, variable_batch=variable)
    trainer = Trainer(
        network, what.make_optimizer, layout, Mesh(comm, data=comm.size), loss=what.loss, input_shape=SHAPE
    )
    loader = trainer.loader(what.x, what.y, what.batch_size, what.seed)
    losses, weights, epoch = [], [], 0
    while len(losses) < ITERATIONS:
        for batch in loader.epoch(epoch):
            if len(losses) < ITERATIONS:
                losses.append(float(trainer.sum_losses(np.array(trainer.step(batch)))[0]))
                weights.append(trainer.state_dict())
        epoch += 1
    assert len(set(comm.all_gather_object(trainer.weights_sha256()))) == 1
    trainer.free()
    return losses, weights


def require_same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-10)
    for step, (one, other) in enumerate(zip(ours[1], theirs[1], strict=True)):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_allclose(array, other[name], rtol=1e-10, atol=1e-13, err_msg=f"{name}, step {step}")


@pytest.mark.ranks(1, 2, 3, 4)
@pytest.mark.parametrize("scheme", ["b", "c"])
@pytest.mark.parametrize("batch_size", [12, 13, 3])
def test_equals_the_serial_program(comm, scheme, batch_size):
    """Also where parts are of different sizes, or empty; with momentum and dropout."""
    what = experiment(batch_size=batch_size)
    require_same(train(comm, what, scheme), replay(what, scheme, comm.size))


@pytest.mark.ranks(3)
def test_the_rate_is_that_of_the_iteration(comm):
    """Not of the update of the fully connected layers, of which there are K = 3 in an iteration."""
    halving = lambda update: 0.1 * 0.5**update  # noqa: E731

    def make(parameters):
        return optim.SGD(parameters, halving, momentum=0.9)

    def make_serial(parameters):
        of_classifier = any(p.shape[0] == CLASSES for p in parameters)
        return optim.SGD(parameters, lambda n: halving(n // 3 if of_classifier else n), momentum=0.9)

    what, serial = experiment(batch_size=12, make=make), experiment(batch_size=12, make=make_serial)
    for one in (what, serial):
        one.x, one.y = one.x[:24], one.y[:24]  # no part is empty
    require_same(train(comm, what, "c"), replay(serial, "c", 3))


@pytest.mark.ranks(2)
def test_it_is_another_computation(comm):
    """Than one update with the whole batch: the second part meets other weights."""
    what = experiment(batch_size=12)
    assert not np.allclose(train(comm, what, "b")[0][0], train(comm, what, "b", variable=False)[0][0], rtol=1e-6)


def test_scheme_a_has_one_part():
    with pytest.raises(InputError, match="needs scheme b or c"):
        Layout(dp=2, hybrid="owt", scheme="a", variable_batch=True)
