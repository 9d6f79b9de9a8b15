"""VGG: blocks of 3 x 3 convolutions, each halved by pooling; VGG-16, and a small version."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from parallel_dl import nn
from parallel_dl.networks.images import channels_of, values_after
from parallel_dl.networks.initialization import initialize_for_relu

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions) of each block


class VGG(nn.Sequential):
    """Blocks of 3 x 3 convolutions with ReLU, 2 x 2 max pooling after each block, then fully connected layers.

    Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", arXiv 1409.1556,
    section 2. `blocks` has (channels, number of convolutions) per block; the defaults are configuration D, VGG-16:
    138,357,544 parameters. Dropout follows the first fully connected layers (section 3.1).

    Input (samples, *input_shape), output (samples, classes). Raises InputError for an input that is not an image, or
    too small.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 224, 224),
        classes: int = 1000,
        blocks: Sequence[tuple[int, int]] = VGG16,
        hidden: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
    ) -> None:
        layers: dict[str, nn.Module] = {}
        channels, convolutions = channels_of(input_shape), 0
        for block, (width, count) in enumerate(blocks, start=1):
            for _ in range(count):
                convolutions += 1
                layers[f"conv{convolutions}"] = nn.Conv2d(channels, width, 3, padding=1)
                layers[f"relu{convolutions}"] = nn.ReLU()
                channels = width
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        widths = (values_after(layers.values(), input_shape), *hidden)
        layers["flatten"] = nn.Flatten()
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            layers[f"relu{convolutions + number}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
        initialize_for_relu(layers.values())
        super().__init__(**layers)


def vgg_small(input_shape: Sequence[int], classes: int) -> VGG:
    """Two blocks of two convolutions each, for images from 4 x 4 on."""
    return VGG(input_shape, classes, blocks=((16, 2), (32, 2)), hidden=(128, 128))
