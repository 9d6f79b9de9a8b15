"""The networks by name: plain serial programs, which know nothing of ranks."""

from collections.abc import Callable, Sequence

from parallel_dl.errors import unknown_name
from parallel_dl.networks.mlp import MLP
from parallel_dl.nn import Module

# name -> function of (input_shape, classes)
NETWORKS: dict[str, Callable[[Sequence[int], int], Module]] = {
    "mlp": MLP,
}


def require_known(name: str) -> None:
    """Raises InputError for a network that we do not ship, with the nearest name."""
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)


def create(name: str, input_shape: Sequence[int], classes: int) -> Module:
    """The network `name` for inputs (samples, *input_shape) and so many classes; its weights are not drawn yet."""
    require_known(name)
    return NETWORKS[name](input_shape, classes)


__all__ = ["MLP", "NETWORKS", "create", "require_known"]
