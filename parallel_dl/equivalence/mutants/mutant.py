"""What a planted bug is: a function of the package exchanged for a wrong one, and what the report has to say of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from parallel_dl.layout import Layout
from parallel_dl.mpi import world

Plant = Callable[[ExitStack], None]
RANKS = 2


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug: on which network and layout it is planted, and what its diagnosis has to say (one of the phrases)."""

    name: str
    network: str
    layout: Layout
    plant: Plant
    says: tuple[str, ...]
    refused: bool = False
    """whether it is no wrong value, but something that the package, in checked mode, refuses on every rank"""


def replaced(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Exchanges owner.name for make(owner.name) until the stack is closed."""
    before = getattr(owner, name)
    stack.callback(setattr, owner, name, before)
    setattr(owner, name, make(before))


def exchanged(owner: Any, name: str, wrong: Callable[..., Any]) -> Plant:
    """owner.name is `wrong`, which gets the right function before its arguments."""

    def make(before: Any) -> Any:
        return functools.wraps(before)(lambda *arguments, **named: wrong(before, *arguments, **named))

    return lambda stack: replaced(stack, owner, name, make)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Inside, the package has this bug."""
    with ExitStack() as stack:
        mutant.plant(stack)
        yield


def rank_in_job() -> int:
    """Of the whole job; 0 while rank 0 runs alone."""
    return world().rank
