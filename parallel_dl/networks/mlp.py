"""The multi-layer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from parallel_dl import nn
from parallel_dl.networks.initialization import initialize_for_relu


class MLP(nn.Sequential):
    """Flatten, then fully connected layers fc1, fc2, ... with ReLU (and dropout, if any) between them.

    Input (samples, *input_shape), output (samples, classes).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        widths = [math.prod(input_shape), *hidden]
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            layers[f"relu{number}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
        super().__init__(**layers)


def mlp_deep(input_shape: Sequence[int], classes: int) -> MLP:
    """Eight hidden layers of 128: a row of equal stages for pipelines."""
    network = MLP(input_shape, classes, hidden=(128,) * 8)
    initialize_for_relu(network)
    return network
