"""Rules: what a way of splitting does with a kind of layer, and how a rule is registered for a layer of your own.

A rule is a function from a `Site`, a layer in its place in the network, to a `Division`: which placement the layer
wants its input in, how its weights are placed, what each rank computes, and in which placement that leaves the output.
Everything else follows from the placements: the moves, their adjoints, their bytes, which gradients are summed.

    @splits.rule(MyLayer, "output")
    def by_output(site):
        return splits.Division(
            input=site.on(splits.Replicated()),
            weights=site.weights(splits.Shard(0), "weight"),
            output=site.on(splits.Shard(1)),
        )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parallel_dl import nn
from parallel_dl.errors import InputError, shown
from parallel_dl.mesh import Invariant, MeshShape, Message, Path, Placement, Replicated, Shape, Shard, State, even
from parallel_dl.nn.shapes import OneSample, kind_among
from parallel_dl.splits.way import ALIASES, Way


@dataclass(frozen=True)
class Position:
    """One rank's position in a layer: all that local maths, which does not communicate, knows of the other ranks."""

    rank: int
    """along the model axis"""
    input: Shape
    """the shape of one whole sample before the layer"""
    output: Shape
    """the shape of one whole sample after it"""
    combine: Callable[..., np.ndarray]
    """(array, op="sum") -> the ranks' arrays combined; a layer that uses it declares the messages in its `Division`,
    and a primitive whose pullbacks call it is declared with `collective=True`"""
    samples: Callable[[], slice]
    """the samples of the current batch that this rank has, if it has a share of them"""
    reshard: Callable[[Path, Any], Any]
    """(path, x) -> x after the moves"""


Local = Callable[[Any, Any, Position], Any]
"""(layer, x, position) -> this rank's part of the result: serial maths on its part of the weights"""


@dataclass(frozen=True)
class Finish:
    """What a layer adds to its output after the summands are summed: `apply(layer, y)`.

    It uses the weights `names`, which have one value per feature or channel: array axis `axis` of the output.
    """

    apply: Callable[[Any, Any], Any]
    names: tuple[str, ...]
    axis: int

    def weights(self, output: Placement) -> dict[str, Placement]:
        """The placements of these weights for this placement of the output."""
        state = output.states[0]
        if not isinstance(state, Shard):
            return {}
        own: State = Shard(0, state.sizes) if state.axis == self.axis else Replicated()
        return {name: Placement.on(output.mesh, model=own) for name in self.names}


@dataclass(frozen=True)
class Ending:
    """Where a branch ends, with its output's shape (one sample, whole), and the path from there to the join."""

    placement: Placement
    output: Shape
    path: Path


@dataclass(frozen=True)
class Division:
    """How the ranks compute one layer together."""

    output: Placement
    """the placement of the result of the local maths"""
    input: Placement | None = None
    """the placement it needs for x; None takes x as it comes"""
    weights: Mapping[str, Placement] = field(default_factory=dict)
    """attribute of the layer -> its placement; those not named are invariant"""
    local: Local | None = None
    """the local maths; None for the layer's own forward"""
    finish: Finish | None = None
    """what is applied after the sum of a Partial output"""
    messages: Sequence[Message] | Callable[[int], Sequence[Message]] = ()
    """what every rank sends in the local maths; a function if it depends on the number of samples"""
    work_input: Callable[[int], Shape] | None = None
    """rank -> the shape of a sample's input that counts for its work; None if work is proportional to the output"""
    owners: tuple[int, ...] = ()
    """for branches assigned to ranks: the rank of each"""
    endings: tuple[Ending, ...] = ()
    """for branches with different output placements: the placement of each"""
    by: str = ""
    """the layer, its rule and where that is defined; set for a user's own rule"""

    def sent(self, samples: int) -> Sequence[Message]:
        """What every rank sends in the local maths for this many samples."""
        return self.messages(samples) if callable(self.messages) else self.messages


class Cutting:
    """Where the layers of a network may be cut: here, anywhere."""

    may_overlap = True
    """whether ranks may take slices that overlap, and the gradients are added up where they do"""

    def sizes(self, layer: Any, dimension: str, ranks: int) -> tuple[int, ...]:
        """By rank, of the layer's `dimension` "inputs" or "outputs"."""
        side = {"inputs": "in", "outputs": "out"}[dimension]
        kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
        return even(getattr(layer, f"{side}_{kind}"), ranks)

    def require(self, layer: nn.Module, name: str, way: Way) -> None:
        """InputError for a way in which the layer `name` must not be cut."""


ANYWHERE = Cutting()


@dataclass(frozen=True)
class Site:
    """A layer in its network: its input and output, and the number of ranks of the model axis."""

    layer: Any
    way: Way | None
    """its split; None for a layer that is not split by name"""
    before: Placement
    """the placement of the incoming input"""
    x: Shape
    """the shape of one whole input sample"""
    y: Shape
    """the shape of one whole output sample"""
    ranks: int
    next_way: str | None = None
    """the way of the next layer with weights"""
    cutting: Cutting = ANYWHERE
    """where it may be cut: anywhere, or between leaves only; `cutting.may_overlap`: whether slices may overlap"""

    @property
    def mesh(self) -> MeshShape:
        """The model axis as a mesh of one axis."""
        return MeshShape(model=self.ranks)

    def on(self, state: State) -> Placement:
        """The placement in this state along the model axis."""
        return Placement(self.mesh, (state,))

    @property
    def invariant(self) -> Placement:
        """The placement that is the same on every rank."""
        return self.on(Invariant())

    @property
    def batch(self) -> OneSample:
        """A stand-in for x that a layer's own methods accept."""
        return OneSample(self.x)

    @property
    def features(self) -> Shard | None:
        """The slices of the incoming features or channels; None if they are whole."""
        return self.before.shard(1)

    def even(self, dimension: str) -> tuple[int, ...]:
        """The sizes, by rank, of the layer's `dimension`, "inputs" or "outputs": its features or channels.

        They are even; in a network that computes in leaves, as even as cuts between leaves allow.
        """
        return self.cutting.sizes(self.layer, dimension, self.ranks)

    def weights(self, state: State, *names: str) -> dict[str, Placement]:
        """Places those of the attributes `names` that the layer has in this state."""
        return {name: self.on(state) for name in names if getattr(self.layer, name) is not None}

    def all_weights(self, state: State) -> dict[str, Placement]:
        """Places all parameters of the layer, and of everything in it, in this state."""
        return {name: self.on(state) for name, _ in self.layer.named_parameters()}


Rule = Callable[[Site], Division]
_NAME = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(frozen=True)
class _Registered:
    rule: Rule
    where: Callable[[Any], bool]
    """whether it is for this very layer"""
    names: tuple[str, ...]
    """the ways that have it"""


_rules: dict[type[nn.Module], dict[str | None, _Registered]] = {}


def rule(
    kind: type[nn.Module],
    way: str | None = None,
    where: Callable[[Any], bool] = lambda layer: True,
    names: Iterable[str] = (),
) -> Callable[[Rule], Rule]:
    """Registers a rule for a split `way` of layers of this `kind`, or, with `way` None, for layers not split by name.

    The latter follow the placement of their input. `where` restricts the rule to some layers of the kind; `names` lists
    the ways if several share the rule. Subclasses of `kind` have the rule, too, unless they override forward. A rule
    for the same kind and way replaces an earlier one. Raises InputError for anything but a Module class, and for a way
    that cannot be written as `--split LAYER=WAY`.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError(f"rule({shown(kind)}): expected the class of a layer, derived from nn.Module")
    if way is not None and not _NAME.fullmatch(str(way)):
        raise InputError(f"rule({kind.__name__}, {shown(way)}): expected one word, like output")
    way = ALIASES.get(way, way) if way else None

    def register(function: Rule) -> Rule:
        _rules.setdefault(kind, {})[way] = _Registered(function, where, tuple(names) or ((way,) if way else ()))
        return function

    return register


def rule_of(layer: nn.Module, way: Way | None) -> Rule | None:
    """The rule for this layer and way; None if there is none."""
    kind = kind_among(layer, _rules)
    if kind is None:
        return None
    name = None if way is None else "rows-columns" if way.grid is not None else way.name
    keys = (name, None if way is None else way.rule)  # one for each that cuts the image, or one for all
    found = next((_rules[kind][key] for key in keys if key in _rules[kind]), None)
    return found.rule if found is not None and found.where(layer) else None


def ways_of(layer: nn.Module) -> tuple[str, ...]:
    """The names of the ways in which this layer can be split."""
    kind = kind_among(layer, _rules)
    of_kind = (
        () if kind is None else tuple(name for one in _rules[kind].values() if one.where(layer) for name in one.names)
    )
    if isinstance(layer, nn.Branches | nn.Sequential) or "samples" in of_kind:
        return of_kind
    return (*of_kind, "samples")


def can(layer: nn.Module, way: Way) -> bool:
    """Whether this layer can be split in this way."""
    valid = ways_of(layer)
    return way.name in valid or (way.grid is not None and "rows-columns" in valid)
