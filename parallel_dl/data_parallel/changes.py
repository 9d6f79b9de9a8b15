"""What has changed on one rank since the last sum of the gradients: state that was set up once is checked again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import is_

from parallel_dl.data_parallel.batch_norm import batch_norm_layers
from parallel_dl.data_parallel.exchange import Exchange
from parallel_dl.nn import BatchNorm, Module, Newcomers, Parameter


@dataclasses.dataclass(slots=True)
class News:
    """What one rank must tell the others before gradients are set; true if there is anything."""

    wrong: str = ""
    misuse: bool = False
    """whether the program is wrong (RuntimeError) rather than its input (InputError)"""
    opened: Sequence[int] = ()
    """indices of parameters that are not summed yet but should be"""
    replaced: Sequence[int] = ()
    """indices of parameters whose arrays have changed since the last sum"""
    late: bool = False
    """whether a bucket was sent before its gradients were final"""

    def __bool__(self) -> bool:
        return bool(self.wrong or self.opened or self.replaced or self.late)


class Watch:
    """Watches the weights, gradients and batch norm layers of one rank between two sums.

    `local` are the batch norm layers with local statistics that are known.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        networks: Sequence[Module],
        newcomers: Newcomers,
        local: Sequence[BatchNorm],
    ) -> None:
        self.parameters, self.networks, self.newcomers, self.local = parameters, networks, newcomers, local
        self._registrations = Module.registrations
        self.note()

    def note(self) -> None:
        """Remembers the weights as they are, now that they are known to be equal on all ranks."""
        self._data = [parameter.data for parameter in self.parameters]
        self._rewritten = [(network, network._rewritten) for network in self.networks]

    def news(self, exchanges: Sequence[Exchange]) -> News:
        """What has changed here since the last sum; notes where an optimizer has laid out the weights."""
        for parameter in self.newcomers.found():
            return News(
                f"{parameter.name} has a gradient but is in no GradientAllReduce: it was added to the network, or "
                "unfrozen, after this one was made; make one for it too, or freeze it"
            )
        unmoved = all(map(is_, [parameter.data for parameter in self.parameters], self._data))
        in_place = all(exchange.gradients.are_in_place for exchange in exchanges)
        wrong = self._batch_norm_that_came_later()
        if not wrong and not (unmoved and in_place):
            wrong = self._other_types()
        if wrong:
            return News(wrong)
        replaced: list[int] = []
        if any(network._rewritten != count for network, count in self._rewritten):
            replaced = list(range(len(self.parameters)))
        elif not unmoved:
            for place, (parameter, before) in enumerate(zip(self.parameters, self._data)):
                if parameter.data is before:
                    continue
                if parameter.flat is not None and parameter.flat.holds(parameter, since=before):
                    self._data[place] = parameter.data
                else:
                    replaced.append(place)
        if not in_place and self._contain_a_sum(exchanges):
            return News(
                "gradients were changed or all-reduced since the last zero_grad(): call zero_grad() before "
                "backward, and all_reduce() once, after the last backward of an update",
                misuse=True,
            )
        return News(opened=self._opened(exchanges), replaced=replaced)

    def _other_types(self) -> str:
        for parameter, before in zip(self.parameters, self._data):
            data, grad = parameter.data, parameter.grad
            if data is not before and (data.dtype != before.dtype or data.shape != parameter.shape):
                now, then = f"{data.dtype} {data.shape}", f"{before.dtype} {before.shape}"
                return f"{parameter.name} is {now} now, but was {then} in this GradientAllReduce: make a new one"
            if grad is not None and grad is not parameter.grad_buffer and grad.shape != parameter.shape:
                return f"the gradient of {parameter.name} has shape {grad.shape}, expected {parameter.shape}"
        return ""

    def _batch_norm_that_came_later(self) -> str:
        """What is wrong with a batch norm layer added to the networks, if there is one."""
        if self._registrations == Module.registrations or not self.networks:
            return ""
        for network in self.newcomers.networks:
            local = batch_norm_layers(network, "local")
            alone = {name: layer for name, layer in batch_norm_layers(network, "global").items() if layer.total is None}
            alone |= {name: layer for name, layer in local.items() if not any(layer is one for one in self.local)}
            for name in alone:
                return (
                    f"{name} is a batch norm layer that was added after this GradientAllReduce was made, "
                    "which does not synchronise its statistics: make a new one"
                )
        self._registrations = Module.registrations
        return ""

    def _contain_a_sum(self, exchanges: Sequence[Exchange]) -> bool:
        for exchange in exchanges:
            for parameter in exchange.parameters:
                grad, buffer = parameter.grad, parameter.grad_buffer
                if grad is None or grad is buffer or (buffer is None and grad.flags.writeable):
                    continue
                if self._is_in_a_network(parameter):
                    return True
                parameter.grad = None  # of a layer that was replaced: the network's zero_grad does not reach it
        return False

    def _is_in_a_network(self, parameter: Parameter) -> bool:
        return any(parameter is one for network in self.newcomers.networks for one in network.parameters())

    def _opened(self, exchanges: Sequence[Exchange]) -> list[int]:
        """Indices of the parameters that are not summed yet but should be."""
        if sum(len(exchange.parameters) for exchange in exchanges) == len(self.parameters):
            return []
        summed = {id(p) for exchange in exchanges for p in exchange.parameters}
        return [
            place
            for place, parameter in enumerate(self.parameters)
            if id(parameter) not in summed and (parameter.requires_grad or parameter.grad is not None)
        ]
