"""LeNet-5, and a small version that takes any image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from parallel_dl import nn
from parallel_dl.networks.images import channels_of, values_after
from parallel_dl.networks.initialization import initialize_for_tanh


class LeNet5(nn.Sequential):
    """Two convolutions with tanh and average pooling, then fully connected layers.

    LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", section II.B, in
    the form that is usual today: without the trained scale and bias of the pooling, with a full convolution in place of
    the sparse table after pool1, and a linear layer in place of the distances to prototypes. The 28 x 28 images are
    padded by 2, as theirs were.

    tanh and averages are smooth: in float32, too, runs that add up in another order stay together for thousands of
    updates. (With ReLU and max pooling, a rounding error that tips a maximum to the other side changes a gradient by
    1e-4 at once.)

    Input (samples, *input_shape), output (samples, classes): 61,706 parameters with the defaults. `padding` is that of
    conv1 and of conv2. Raises InputError for an input that is not an image, or too small.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        classes: int = 10,
        kernels: tuple[int, int] = (6, 16),
        padding: tuple[int, int] = (2, 0),
        hidden: Sequence[int] = (120, 84),
    ) -> None:
        channels = channels_of(input_shape)
        layers: dict[str, nn.Module] = {}
        for number, (before, after) in enumerate(pairwise((channels, *kernels)), start=1):
            layers[f"conv{number}"] = nn.Conv2d(before, after, 5, padding=padding[number - 1])
            layers[f"tanh{number}"] = nn.Tanh()
            layers[f"pool{number}"] = nn.AvgPool2d(2)
        widths = (values_after(layers.values(), input_shape), *hidden)
        layers["flatten"] = nn.Flatten()
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after)
            layers[f"tanh{number + 2}"] = nn.Tanh()
        layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
        initialize_for_tanh(layers.values())
        super().__init__(**layers)


def lenet5_small(input_shape: Sequence[int], classes: int) -> LeNet5:
    """LeNet-5 with padding in conv2, too, so that images from 4 x 4 on fit."""
    return LeNet5(input_shape, classes, padding=(2, 2))
