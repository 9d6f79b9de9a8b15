"""Shapes told from the layers alone are those of a real forward pass, and what does not fit is refused alike."""

import numpy as np
import pytest

from parallel_dl import networks, nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import says

SIZES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 9), (3, 5, 12), (1, 4, 4), (4, 13, 6)]
KINDS = {kind for name in nn.__all__ if isinstance(kind := getattr(nn, name), type) and issubclass(kind, nn.Module)}


def real_shapes(network, input_shape):
    """(name, shape of one sample's output) of every layer, as computed for two samples."""
    x = np.random.default_rng(0).standard_normal((2, *input_shape)).astype(np.float32)
    shapes = []
    for name, layer in network._modules.items():
        x = layer(x)
        assert x.shape[0] == 2
        shapes.append((name, tuple(x.shape[1:])))
    return shapes


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", [name for name, shipped in networks.NETWORKS.items() if shipped.input_shape is None])
def test_small_networks(name, size):
    network = networks.create(name, size, 7)
    inferred = [(passed.name, passed.output) for passed in nn.layer_shapes(network, size)]
    assert not any(parameter.is_filled for parameter in network.parameters())
    assert inferred == real_shapes(network, size)
    assert nn.output_shape(network, size) == (7,)


LAYERS = [
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (4, 7, 9)),
    (nn.MaxPool2d(3, stride=2, padding=1), (4, 7, 8)),
    (nn.MaxPool2d((2, 3)), (4, 7, 8)),
    (nn.AvgPool2d(3, stride=(1, 2)), (4, 7, 8)),
    (nn.GlobalAvgPool2d(), (4, 7, 8)),
    (nn.LocalResponseNorm(3, groups=2), (4, 7, 8)),
    (nn.BatchNorm2d(4), (4, 7, 8)),
    (nn.BatchNorm1d(4), (4,)),
    (nn.BatchNorm(4), (4, 2, 2, 2)),
    (nn.LayerNorm((7, 8)), (4, 7, 8)),
    (nn.Linear(8, 3), (4, 8)),
    (nn.Flatten(), (4, 7, 8)),
    (nn.Dropout(), (4, 7, 8)),
    *((kind(), (4, 7, 8)) for kind in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity)),
]


@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=repr)
def test_every_layer(layer, size):
    assert nn.output_shape(layer, size) == tuple(layer(np.ones((2, *size), np.float32)).shape[1:])


def test_every_kind_of_layer_is_known():
    assert {type(layer) for layer, _ in LAYERS} == KINDS - {nn.Module, nn.Sequential, nn.Branches}
    assert all(says(layer, method) for layer, _ in LAYERS for method in ("output_shape", "operations"))


def test_containers_say_it_too():
    network = nn.Sequential(nn.Branches(nn.Linear(8, 3), nn.Linear(8, 4), join="concatenate"), nn.ReLU())
    assert network.output_shape((8,)) == nn.output_shape(network, (8,)) == (7,)
    with pytest.raises(InputError, match="to be concatenated"):
        network.output_shape((4, 8))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(4, 6, 3), (3, 8, 8)),
        (nn.Conv2d(4, 6, 3), (4, 8, 2)),
        (nn.Conv2d(4, 6, 3), (4,)),
        (nn.MaxPool2d(3), (4, 2, 8)),
        (nn.AvgPool2d(3), (4, 8)),
        (nn.GlobalAvgPool2d(), (4, 8)),
        (nn.LocalResponseNorm(3, groups=2), (3, 8, 8)),
        (nn.BatchNorm2d(4), (3, 8, 8)),
        (nn.BatchNorm1d(4), (4, 8, 8)),
        (nn.LayerNorm(8), (4, 7)),
        (nn.Linear(8, 3), (7,)),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused_as_in_a_forward_pass(layer, size):
    network = nn.Sequential(relu=nn.ReLU(), inner=nn.Sequential(layer=layer))
    for refuse in (
        lambda: nn.output_shape(network, size),
        lambda: network(np.ones((2, *size), np.float32)),
    ):
        with pytest.raises(InputError, match=r"layer inner\.layer: got an input of shape"):
            refuse()


class Doubled(nn.Sequential):
    """Layers whose result is doubled by adding it to itself: not a plain sequence."""

    def forward(self, x):
        y = super().forward(x)
        return y + y


class Named(nn.Sequential):
    """A plain sequence under a name of its own."""


def test_only_what_is_computed_as_the_layers_say():
    nested = Named(first=nn.Sequential(nn.Linear(3, 4), Named(nn.ReLU())), second=nn.Linear(4, 2))
    assert [passed.name for passed in nn.layer_shapes(nested, (3,))] == ["first.0", "first.1.0", "second"]
    with pytest.raises(
        InputError,
        match=r"^layer a: what a Doubled computes is not known here; expected a layer of",
    ):
        nn.output_shape(nn.Sequential(a=Doubled(nn.Linear(3, 3))), (3,))
    with pytest.raises(InputError, match=r"^what a Module computes is not known here"):
        nn.output_shape(nn.Module(), (3,))
    assert nn.output_shape(nn.Sequential(), (3, 4)) == (3, 4)


def test_branches_within_branches():
    """The layers of each branch, then the join with the input of the branches."""
    block = nn.Branches(nn.Sequential(conv=nn.Conv2d(3, 5, 3, padding=1), relu=nn.ReLU()), around=nn.Conv2d(3, 5, 1))
    towers = nn.Branches(wide=nn.Sequential(block=block, tanh=nn.Tanh()), narrow=nn.Identity(), join="concatenate")
    network = nn.Sequential(first=nn.Conv2d(1, 3, 2), towers=towers, flat=nn.Flatten())
    assert [(passed.name, passed.input, passed.output) for passed in nn.layer_shapes(network, (1, 5, 4))] == [
        ("first", (1, 5, 4), (3, 4, 3)),
        ("towers.wide.block.0.conv", (3, 4, 3), (5, 4, 3)),
        ("towers.wide.block.0.relu", (5, 4, 3), (5, 4, 3)),
        ("towers.wide.block.around", (3, 4, 3), (5, 4, 3)),
        ("towers.wide.block", (3, 4, 3), (5, 4, 3)),
        ("towers.wide.tanh", (5, 4, 3), (5, 4, 3)),
        ("towers.narrow", (3, 4, 3), (3, 4, 3)),
        ("towers", (3, 4, 3), (8, 4, 3)),
        ("flat", (8, 4, 3), (96,)),
    ]
    joins = {passed.name: passed.layer for passed in nn.layer_shapes(network, (1, 5, 4)) if passed.name.count(".") < 1}
    assert joins == network._modules
    assert nn.output_shape(network, (1, 5, 4)) == real_shapes(network, (1, 5, 4))[-1][1]
    assert nn.output_shape(nn.Branches(nn.Linear(3, 2), nn.Sequential(), join="concatenate"), (3,)) == (5,)


def test_branches_that_do_not_fit_are_refused_as_in_a_forward_pass():
    for join, shapes, needs in (
        ("sum", r"0 \(., 4, 2\), narrow \(., 4, 1\)", "to be added up, they must have one shape"),
        ("concatenate", r"0 \(., 4, 2\), narrow \(., 4, 1\)", "to be concatenated, they must be equal but for axis 1"),
    ):
        towers = nn.Branches(nn.Linear(3, 2), narrow=nn.Linear(3, 1), join=join)
        network = nn.Sequential(relu=nn.ReLU(), inner=nn.Sequential(towers=towers))
        said = rf"^layer inner\.towers: got an input of shape .*, of which the branches make {shapes}: {needs}$"
        with pytest.raises(InputError, match=said):
            nn.output_shape(network, (4, 3))
        with pytest.raises(InputError, match=said):
            network(np.ones((2, 4, 3), np.float32))
    with pytest.raises(InputError, match=r"^layer towers\.0: what a Doubled computes is not known here"):
        nn.output_shape(nn.Sequential(towers=nn.Branches(Doubled(nn.ReLU()))), (3,))
