"""AlexNet: with its two towers, with one tower, and a small version that takes any image."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_dl import nn
from parallel_dl.networks.images import channels_of, values_after
from parallel_dl.networks.initialization import initialize_for_relu


class AlexNet(nn.Sequential):
    """Five convolutions and three fully connected layers; `towers` halves of the channels, which rarely meet.

    Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks", section 3.
    In the original each half was on a GPU of its own. Here the towers are groups of channels: in conv1 and conv3 all
    filters see all of their input, in conv2, conv4 and conv5 only that of their own tower, and response normalisation
    sums over channels of one tower. The fully connected layers see both.

    Input (samples, *input_shape), output (samples, classes). `conv1` is (kernel, stride, padding) of the first
    convolution, `pool_padding` the padding of the overlapping 3 x 3 pooling with stride 2; without `response_norm`
    there are no norm1 and norm2. With the defaults 60,965,224 parameters. (The paper says 224 x 224; that conv1 then
    gives 55 x 55, as it says, takes a padding of 2.) Raises InputError for an input that is not an image, or too small,
    and for kernels that the towers do not divide.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 224, 224),
        classes: int = 1000,
        kernels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256),
        towers: int = 2,
        hidden: tuple[int, int] = (4096, 4096),
        conv1: tuple[int, int, int] = (11, 4, 2),
        pool_padding: int = 0,
        response_norm: bool = True,
        dropout: float = 0.5,
    ) -> None:
        k1, k2, k3, k4, k5 = kernels
        size, stride, padding = conv1
        layers: dict[str, nn.Module] = {}

        def convolution(
            number: int, before: int, after: int, kernel: int, padding: int, stride: int = 1, groups: int = 1
        ) -> None:
            layers[f"conv{number}"] = nn.Conv2d(before, after, kernel, stride, padding, groups=groups)
            layers[f"relu{number}"] = nn.ReLU()

        def norm(number: int) -> None:
            # Section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75. Its formula does not divide alpha by n, the layer
            # does (as in PyTorch): 5e-4 / 5 = 1e-4.
            if response_norm:
                layers[f"norm{number}"] = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0, groups=towers)

        def pool(number: int) -> None:
            layers[f"pool{number}"] = nn.MaxPool2d(3, stride=2, padding=pool_padding)  # section 3.4: overlapping

        convolution(1, channels_of(input_shape), k1, size, padding, stride)
        norm(1)
        pool(1)
        convolution(2, k1, k2, 5, 2, groups=towers)
        norm(2)
        pool(2)
        convolution(3, k2, k3, 3, 1)
        convolution(4, k3, k4, 3, 1, groups=towers)
        convolution(5, k4, k5, 3, 1, groups=towers)
        pool(5)
        values = values_after(layers.values(), input_shape)
        layers["flatten"] = nn.Flatten()
        for number, before, after in ((6, values, hidden[0]), (7, *hidden)):
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
            layers[f"fc{number}"] = nn.Linear(before, after)
            layers[f"relu{number}"] = nn.ReLU()
        layers["fc8"] = nn.Linear(hidden[1], classes)
        initialize_for_relu(layers.values())
        super().__init__(**layers)


def alexnet_one_tower(input_shape: Sequence[int] = (3, 224, 224), classes: int = 1000) -> AlexNet:
    """The network of one tower without response normalisation: 61,100,840 parameters.

    Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, section 5.
    """
    return AlexNet(input_shape, classes, kernels=(64, 192, 384, 256, 256), towers=1, response_norm=False)


def alexnet_small(input_shape: Sequence[int], classes: int) -> AlexNet:
    """AlexNet for small images: narrow, conv1 5 x 5 without stride, and padding in the pooling, so that all fit."""
    return AlexNet(
        input_shape, classes, kernels=(32, 64, 96, 96, 64), hidden=(256, 256), conv1=(5, 1, 2), pool_padding=1
    )
