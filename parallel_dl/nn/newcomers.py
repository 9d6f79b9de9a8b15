"""Notices weights that came into a network, or were unfrozen, after an optimizer or an all-reduce was given the others.

Nobody would update them, or sum their gradients over the ranks, and nothing would say so: the replicas of a network
would drift apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from parallel_dl.nn.module import Module
from parallel_dl.nn.parameter import Parameter


class Newcomers:
    """Looks after the networks of `given` for parameters that somebody should have been given.

    These are all that were not in the networks, or were frozen, when this was made. What was there, trainable and not
    given was left out on purpose; its names in the networks are `left_out`, which a copy is made with.
    `is_given(parameter)`, a method, says whether somebody else has it; it is held weakly.
    """

    def __init__(
        self,
        given: Iterable[Parameter],
        is_given: Callable[[Parameter], bool],
        left_out: Iterable[str] | None = None,
    ) -> None:
        self._given = weakref.WeakSet(given)
        self._is_given = weakref.WeakMethod(is_given)
        # remembered: of a layer that was replaced, nothing leads to its network any more
        self._networks = weakref.WeakSet(networks_of(self._given))
        present = [p for network in self._networks for p in network.parameters()]
        names = None if left_out is None else set(left_out)
        self._left_out = weakref.WeakSet(
            p for p in present if p not in self._given and (p.requires_grad if names is None else p.name in names)
        )
        self._look_around()

    @property
    def left_out(self) -> list[str]:
        """The names of the parameters that were left out on purpose."""
        return [parameter.name for parameter in self._left_out]

    @property
    def networks(self) -> list[Module]:
        """The whole networks that are looked after."""
        return list(self._networks)

    def give(self, parameters: Iterable[Parameter]) -> None:
        """These, too, are given from now on."""
        self._given.update(parameters)
        self._networks.update(networks_of(self._given))
        self._look_around()

    def _look_around(self) -> None:
        self._registrations = Module.registrations
        self._networks.update(network.path("")[1] for network in list(self._networks))  # parts of larger ones by now
        present = [p for network in self._networks for p in network.parameters()]
        self._others = [p for p in present if p not in self._given and p not in self._left_out]

    def found(self) -> list[Parameter]:
        """Those that have a gradient and that nobody was given. Costs nothing while the networks stay what they are."""
        if self._registrations != Module.registrations:
            self._look_around()
        if not self._others:
            return []
        is_given = self._is_given()
        assert is_given is not None
        return [p for p in self._others if p.requires_grad and p.grad is not None and not is_given(p)]


def networks_of(parameters: Iterable[Parameter]) -> list[Module]:
    """The whole networks that the parameters belong to, each once."""
    found: list[Module] = []
    for parameter in parameters:
        network = parameter.network
        if network is not None and not any(network is other for other in found):
            found.append(network)
    return found


def ordered(parameters: Iterable[Parameter], whose: str) -> list[Parameter]:
    """The parameters as a list; TypeError for a set, whose order differs between ranks, and for other things."""
    if isinstance(parameters, Parameter):
        raise TypeError(f"{whose} takes a list of parameters; for a single one: [parameter]")
    if isinstance(parameters, set | frozenset | weakref.WeakSet):
        raise TypeError(f"{whose} got a set, whose order differs from rank to rank: give a list")
    found = list(parameters)
    for place, parameter in enumerate(found):
        if not isinstance(parameter, Parameter):
            raise TypeError(f"{whose}: item {place} is a {type(parameter).__name__}, expected nn.Parameter")
    return found
