"""The serial program of One weird trick with a variable batch: the classifier is updated after each part of a batch.

The layers before the first Flatten are updated once; both have the learning rate of the iteration. It goes sample by
sample: without batch norm the gradient of a part is the sum of those of its samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.equivalence.rounding.own_rules import before_update, magnitudes_of
from parallel_dl.equivalence.rounding.samples import Random, give_gradient, one_after_another
from parallel_dl.equivalence.runs.record import Arrays, Experiment, Run, batches, optimizer_state
from parallel_dl.layout import Layout
from parallel_dl.optim import Optimizer
from parallel_dl.trainer import Trainer


def places_of_parts(scheme: str, ranks: int, samples: int) -> list[list[int]]:
    """Indices in the batch of the samples of each part: b, rank after rank; c, a piece of every rank's in each."""
    shares = np.array_split(np.arange(samples), ranks)
    if scheme == "b":
        return [share.tolist() for share in shares]
    pieces = [np.array_split(share, ranks) for share in shares]
    return [[int(place) for of_rank in pieces for place in of_rank[number]] for number in range(ranks)]


class _Half:
    """The layers before the first Flatten, or those from it on, with an optimizer of their own."""

    def __init__(self, network: nn.Module, layers: list[nn.Module], experiment: Experiment) -> None:
        self.layers = layers
        own = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self.named = {name: p for name, p in network.named_parameters() if id(p) in own}
        self.optimizer: Optimizer = experiment.make_optimizer(list(self.named.values()))
        self.magnitudes = magnitudes_of(network, self.optimizer)

    def take_rates_of(self, iteration: Callable[[], int]) -> None:
        """Lets policies give the learning rate of the iteration, in which a half may be updated several times."""
        for group in self.optimizer.param_groups:
            if callable(policy := group["lr"]):
                group["lr"] = lambda _, policy=policy: policy(iteration())

    def forward(self, x: np.ndarray | Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if isinstance(x, Tensor) else Tensor(x)

    def step(self, sums: Arrays) -> dict[str, Arrays]:
        """An update; the magnitudes of state and weights after it."""
        before_update(self.magnitudes)
        self.optimizer.step()
        found = self.magnitudes.update(sums)
        self.optimizer.zero_grad()
        return found

    def take(self) -> Arrays:
        """The gradients there are; the parameters have none afterwards."""
        found = {name: np.array(p.grad) for name, p in self.named.items() if p.grad is not None}
        for parameter in self.named.values():
            parameter.grad = None
        return found

    def put(self, summands: list[Arrays]) -> None:
        """Sums, as gradients."""
        for name, parameter in self.named.items():
            give_gradient(parameter, one_after_another([arrays[name] for arrays in summands if name in arrays]))


def variable_batch(experiment: Experiment, layout: Layout, trainer: Trainer, run: Run, random: Random) -> None:
    network = trainer.network.train()
    layers = list(network._modules.values())
    at = next(n for n, layer in enumerate(layers) if any(isinstance(m, nn.Flatten) for _, m in layer.named_modules()))
    features, classifier = (_Half(network, half, experiment) for half in (layers[:at], layers[at:]))
    trainer.optimizer = features.optimizer
    classifier.take_rates_of(lambda: trainer.updates)
    for iteration, batch in enumerate(batches(experiment, trainer)):
        returned: dict[int, tuple[Tensor, np.ndarray]] = {}
        loss, sum_of_losses = 0.0, 0.0
        of_classifier: dict[str, Arrays] = {"weights": dict(classifier.magnitudes.weights)}
        for places in places_of_parts(layout.scheme, layout.dp, batch.size):
            summands: list[Arrays] = []
            for place in places if random is None else random.permutation(places):
                network.set_position(iteration, int(place))
                own = features.forward(batch.x[place : place + 1])
                leaf = Tensor(own.data.copy(), requires_grad=True)
                value = trainer.loss(classifier.forward(leaf), batch.y[place : place + 1], len(places))
                value.backward()
                weight = len(places) / batch.size
                loss, sum_of_losses = loss + value.item() * weight, sum_of_losses + abs(value.item()) * weight
                assert leaf.grad is not None
                returned[int(place)] = own, leaf.grad * weight
                summands.append(classifier.take())
            if places:
                classifier.put(summands)
                of_classifier = classifier.step(_magnitudes(summands))
        summands = []
        for place in sorted(returned) if random is None else random.permutation(sorted(returned)):
            own, gradient = returned[int(place)]
            own.backward(gradient)
            summands.append(features.take())
        features.put(summands)
        run.losses.append(loss)
        run.gradients.append({name: np.array(p.grad) for name, p in features.named.items() if p.grad is not None})
        sums = _magnitudes(summands)
        of_features = features.step(sums)
        trainer.updates += 1
        run.state.append(optimizer_state(trainer))
        run.weights.append(network.state_dict())
        weights = of_features["weights"] | {name: of_classifier["weights"][name] for name in classifier.named}
        if run.magnitudes is not None:
            losses = {"": np.array([sum_of_losses])}
            run.magnitudes.append(
                {"losses": losses, "gradients": sums, "state": of_features["state"], "weights": weights}
            )


def _magnitudes(summands: list[Arrays]) -> Arrays:
    found: Arrays = {}
    for arrays in summands:
        for name, array in arrays.items():
            found[name] = found.get(name, 0.0) + np.abs(array)
    return found
