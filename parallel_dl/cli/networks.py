"""The argument NETWORK: its help, and the network for a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from parallel_dl.cli.limits import of_flag
from parallel_dl.errors import InputError, named, number_of

if TYPE_CHECKING:
    from parallel_dl.datasets import Dataset
    from parallel_dl.nn import Module


class NetworkCommand(TyperCommand):
    """A command with the argument NETWORK. Only who asks for its help waits for the networks to be imported."""

    def names(self) -> list[str]:
        """What NETWORK may be."""
        from parallel_dl.networks import NETWORKS

        return list(NETWORKS)

    def format_help(self, *arguments: Any) -> None:
        for parameter in self.params:
            if parameter.name == "network":
                parameter.help = f"Which network: {', '.join(self.names())}."  # type: ignore[attr-defined]
        super().format_help(*arguments)


class VerifiedNetworkCommand(NetworkCommand):
    """The same for `verify`, which has networks of its own, too."""

    def names(self) -> list[str]:
        from parallel_dl.equivalence.specimens.networks import SPECIMENS

        return [*super().names(), *SPECIMENS]


def network_and_shape(name: str, dataset: str | None, data_dir: str | None) -> tuple[Module, tuple[int, ...], int]:
    """The network `name`, the shape of one sample, and the outputs: its own, or those of a data set (digits)."""
    from parallel_dl import datasets, networks

    networks.require_known(name)
    shape, classes = networks.NETWORKS[name].input_shape, networks.NETWORKS[name].classes
    if dataset is None and data_dir is not None and shape is not None:
        raise InputError(f"--data-dir {named(data_dir)}: belongs to --dataset, which is not given")
    if dataset is None and shape is not None and classes is not None:
        return networks.create(name), shape, classes
    data = datasets.load(dataset or "digits", data_dir)
    return network_for(name, data, dataset or "digits"), shape or data.input_shape, classes or data.outputs


def network_for(name: str, dataset: Dataset, flag: str) -> Module:
    """The network `name` for the data set that `--dataset flag` gave; InputError when the two do not fit together."""
    from parallel_dl import networks

    networks.require_known(name)
    with of_flag(f"--dataset {named(flag)}:"):
        outputs = networks.NETWORKS[name].classes
        if dataset.classes is None and outputs is not None and outputs != dataset.outputs:
            raise InputError(
                f"network {name}: gives {number_of(outputs, 'value')} for a sample, but a target has "
                f"{dataset.outputs}; try {networks.NETWORKS[name].small or 'mlp'}"
            )
        return networks.create(name, dataset.input_shape, dataset.outputs)
