"""Programs that change their state under way, as users' programs do: weights frozen, unfrozen, loaded and replaced.

Each goes with a specimen of the same name. It is a generator, which every rank has for its own trainer: what it does
before its first yield is done before the first step, and so on. It knows no rank: a serial run has it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

from parallel_dl import nn
from parallel_dl.trainer import Trainer


def changing(trainer: Trainer) -> Iterator[None]:
    """Fine-tuning: fc1, which was built frozen, is trained from the second step on, fc3 not in the third.

    Before the fourth step mean weights are loaded, and before the fifth every weight becomes another array. A step has
    several backward passes, of which none is announced as not the last.
    """
    trainer.gradients.accumulate = nullcontext  # type: ignore
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


PROGRAMS: dict[str, Callable[[Trainer], Iterator[None]]] = {"changing": changing}
