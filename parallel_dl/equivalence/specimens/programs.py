"""Programs that do more than train a new network: they begin with weights, and change their state under way.

Each goes with the specimen of its name. What it changes is a generator, which every rank has for its own trainer: what
is before its first yield is done before the first step, and so on. It knows no rank: a serial run has it as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from parallel_dl import nn
from parallel_dl.equivalence.runs.record import Experiment
from parallel_dl.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Program:
    """What is done with a network, beside training it with a loss."""

    loss: Callable[..., Any]
    prepare: Callable[[nn.Module], None]
    changes: Callable[[Trainer], Iterator[None]]

    def of(self, experiment: Experiment) -> Experiment:
        """The experiment with this program; its loss is for targets that are classes."""
        loss = self.loss if experiment.loss is nn.cross_entropy else experiment.loss
        return dataclasses.replace(experiment, loss=loss, prepare=self.prepare, changes=self.changes)


def _pretrained(network: nn.Module) -> None:
    """Has weights, other than those it would draw, before it is divided."""
    network.load_state_dict({name: 1.1 * array for name, array in network.state_dict().items()})


def _changing(trainer: Trainer) -> Iterator[None]:
    """Fine-tuning: fc1, which was built frozen, is trained from the second step on, fc3 not in the third.

    Before the fourth step mean weights are loaded, and before the fifth every weight becomes another array. A step has
    several backward passes, of which none is announced as not the last.
    """
    trainer.gradients.accumulate = nullcontext  # type: ignore
    trainer.stage.accumulate = nullcontext
    first = trainer.state_dict()
    yield
    _train(trainer, "fc1", True)
    yield
    _train(trainer, "fc3", False)
    yield
    _train(trainer, "fc3", True)
    trainer.load_state_dict({name: (first[name] + array) / 2 for name, array in trainer.state_dict().items()})
    yield
    nn.Sequential(teacher=nn.Linear(2, 2))  # a network that is made beside this one is none of its parts
    for parameter in trainer.parameters:
        parameter.data = parameter.data * 0.9
    yield


def _train(trainer: Trainer, layer: str, trained: bool) -> None:
    """Unfreezes, or freezes, what this rank has of a layer's weights."""
    for name, parameter in zip(trainer.names, trainer.parameters):
        if name.partition(".")[0] == layer:
            parameter.requires_grad = trained


PROGRAMS: dict[str, Program] = {"changing": Program(nn.logistic_loss, _pretrained, _changing)}
