"""The network for a data set, and what is refused when the two do not fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_dl.cli.limits import of_flag
from parallel_dl.errors import InputError, named, number_of

if TYPE_CHECKING:
    from parallel_dl.datasets import Dataset
    from parallel_dl.nn import Module


def network_and_shape(name: str, dataset: str | None, data_dir: str | None) -> tuple[Module, tuple[int, ...], int]:
    """The network `name`, the shape of one sample, and the outputs: its own, or those of a data set (digits)."""
    from parallel_dl import datasets, networks

    shipped = networks.architecture(name)
    shape, classes = shipped.input_shape, shipped.classes
    if dataset is None and data_dir is not None and shape is not None:
        raise InputError(f"--data-dir {named(data_dir)}: needs --dataset")
    if dataset is None and shape is not None and classes is not None:
        return networks.create(name), shape, classes
    data = datasets.load(dataset or "digits", data_dir)
    return network_for(name, data, dataset or "digits"), shape or data.input_shape, classes or data.outputs


def network_for(name: str, dataset: Dataset, flag: str) -> Module:
    """The network `name` for the data set that `--dataset flag` gave; InputError when the two do not fit together."""
    from parallel_dl import from_file, networks
    from parallel_dl.nn import output_shape

    shipped = networks.architecture(name)
    if from_file.is_own(name):
        network = networks.create(name, dataset.input_shape, dataset.outputs)
        with from_file.telling("network", name):
            output_shape(network, dataset.input_shape)
        return network
    with of_flag(f"--dataset {named(flag)}:"):
        if dataset.classes is None and shipped.classes is not None and shipped.classes != dataset.outputs:
            raise InputError(
                f"network {name}: gives {number_of(shipped.classes, 'value')} for a sample, but a target has "
                f"{dataset.outputs}; try {shipped.small or 'mlp'}"
            )
        return networks.create(name, dataset.input_shape, dataset.outputs)
