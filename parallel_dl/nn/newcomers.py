"""Detects weights that were added to a network, or unfrozen, after an optimizer or an all-reduce got the others.

Otherwise they would silently not be updated, or their gradients not summed over the ranks, and replicas would drift
apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from parallel_dl.nn.module import Module
from parallel_dl.nn.parameter import Parameter


class Newcomers:
    """Watches the networks of `given` for new parameters that nobody was given.

    New parameters are those that were not in the networks, or were frozen, when this was made. Trainable parameters
    that were there but not given were left out on purpose; their names are `left_out`, which is passed on to copies.
    The method `is_given(parameter)` says whether somebody else has a parameter; it is held weakly.
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
        """The whole networks being watched."""
        return list(self._networks)

    def give(self, parameters: Iterable[Parameter]) -> None:
        """Counts these parameters as given, too, from now on."""
        self._given.update(parameters)
        self._networks.update(networks_of(self._given))
        self._look_around()

    def _look_around(self) -> None:
        self._registrations = Module.registrations
        self._networks.update(network.path("")[1] for network in list(self._networks))  # parts of larger ones by now
        present = [p for network in self._networks for p in network.parameters()]
        self._others = [p for p in present if p not in self._given and p not in self._left_out]

    def found(self) -> list[Parameter]:
        """New parameters with a gradient that nobody was given. Costs nothing while the networks do not change."""
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
    """The parameters as a list; TypeError for anything else, such as a set, whose order differs between ranks."""
    if isinstance(parameters, Parameter):
        raise TypeError(f"{whose} takes a list of parameters; for a single one: [parameter]")
    if isinstance(parameters, set | frozenset | weakref.WeakSet):
        raise TypeError(f"{whose} got a set, whose order differs from rank to rank: give a list")
    found = list(parameters)
    for place, parameter in enumerate(found):
        if not isinstance(parameter, Parameter):
            raise TypeError(f"{whose}: item {place} is a {type(parameter).__name__}, expected nn.Parameter")
    return found
