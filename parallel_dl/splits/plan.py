"""A plan: how each layer of a serial network is done by the ranks of the model axis, from shapes alone.

It is made before any rank is started, and refuses what cannot be done. `parallel_dl.model_parallel` carries it out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import computes_as
from parallel_dl.splits.default import computes_in_leaves, default_splits
from parallel_dl.splits.moves import AllReduce, Gather, Message, Moves, Pick, Replicate, Take, to_whole
from parallel_dl.splits.names import resolve
from parallel_dl.splits.placement import Grid, Placement, Shape, Sliced, Tiled, Whole, even, slices
from parallel_dl.splits.rules import Division, Piece, Site, divide
from parallel_dl.splits.ways import Way, ways_of


@dataclass(frozen=True)
class Ending:
    """Where a branch ends, with its output's shape (one sample, whole), and the moves from there to the join."""

    placement: Placement
    output: Shape
    moves: Moves


@dataclass(frozen=True)
class Step:
    """One layer: what it is, how it is done, and what each rank has before and after it."""

    name: str
    layer: nn.Module
    way: Way | None
    input: Shape
    """of one sample, whole"""
    output: Shape
    before: Placement
    division: Division
    constant: bool = False
    """its input is the network's own, which has no gradient: nothing is sent for it"""
    owner: int | None = None
    """the only rank that runs it, for a layer inside a branch that one rank has"""
    joined: tuple[Ending, ...] = ()
    """of Branches whose ends are not alike: where each of them ends"""

    @property
    def after(self) -> Placement:
        """What each rank has of its output."""
        return self.division.after

    def parameter_pieces(self) -> Iterator[tuple[str, nn.Parameter, tuple[Piece, ...] | None]]:
        """(name in the network, parameter, piece by rank or None) of each parameter of the layer itself."""
        if isinstance(self.layer, nn.Branches):
            return
        for name, parameter in self.layer.named_parameters():
            yield f"{self.name}.{name}", parameter, self.division.pieces.get(name)


@dataclass(frozen=True)
class Plan:
    """All layers of a network, in order, for so many ranks; `splits` are the ways by name of layer or group."""

    ranks: int
    splits: dict[str, str]
    steps: list[Step]
    input_shape: Shape
    output: Placement
    """what each rank has of the network's output"""
    finish: Moves = field(default=())
    """the moves that make the output whole, where it is to be"""
    partial_input: bool = False
    """the gradient of the network's input is a summand on each rank; otherwise, if it has one, whole on all of them"""

    def pieces(self) -> dict[str, tuple[Piece, ...]]:
        """Name of a parameter or buffer in the network -> which part of it each rank has; for those that are cut."""
        return {f"{step.name}.{name}": pieces for step in self.steps for name, pieces in step.division.pieces.items()}

    def parameters(self, rank: int) -> int:
        """Values in the weights and biases that `rank` has."""
        return sum(self.layer_parameters(rank).values())

    def layer_parameters(self, rank: int) -> dict[str, int]:
        """The same by layer; a parameter used in two layers is counted in the first."""
        counted: set[int] = set()
        found = {}
        for step in self.steps:
            found[step.name] = 0
            for _, parameter, pieces in step.parameter_pieces():
                if id(parameter) not in counted:
                    counted.add(id(parameter))
                    found[step.name] += _size(parameter, pieces[rank] if pieces else None)
        return found


def _size(parameter: nn.Parameter, piece: Piece | None) -> int:
    lengths = [part.stop - part.start for part in piece or ()]
    return math.prod((*lengths, *parameter.whole_shape[len(lengths) :]))


def plan(
    network: nn.Module,
    input_shape: Sequence[int],
    ranks: int,
    splits: Mapping[str, str] | None = None,
    split_output: bool = True,
    partial_input: bool = False,
) -> Plan:
    """The plan for samples (*input_shape) and that many ranks of the model axis.

    `splits` maps names of layers to ways (`ways`), like {"fc1": "output", "fc2": "input", "features": "rows"}. A name
    may also be that of a Sequential, or "features" and "classifier" for the layers before and after the first Flatten:
    then the way is for all layers in it that can be split that way, unless they are named themselves. Without `splits`
    there is a default. With `split_output` False the output is made whole: a loss of the user's own takes no slices.
    The same holds for an output with more axes than (samples, classes).

    With `partial_input` the input has a gradient, which may stay a summand on each rank: nothing is sent for it, if the
    first layer with weights is a fully connected one that is split. `Plan.partial_input` says whether it is so.

    Raises InputError for an unknown name or way, with the nearest valid one.
    """
    if not isinstance(input_shape, Sequence):
        raise InputError(f"input_shape {input_shape!r}: is the shape of one sample, like (64,) or (1, 28, 28)")
    if splits is not None and not isinstance(splits, Mapping):
        raise InputError(f'splits {splits!r}: are a dictionary of layers and ways, like {{"fc1": "output"}}')
    shapes = {passed.name: passed for passed in nn.layer_shapes(network, input_shape)}
    if "" in shapes:
        raise InputError(f"a {type(network).__name__} alone cannot be split: put it into a Sequential")
    if splits is None:
        splits = default_splits(network, input_shape, ranks)
    walk = _Walk(shapes, resolve(splits, shapes, ranks), ranks, partial_input)
    if walk.in_leaves:
        _require_leaves(walk)
    output = walk.walk(network, "", Whole(), constant=not partial_input)
    last = walk.steps[-1] if walk.steps else None
    finish: Moves = ()
    slices_fit = split_output and last is not None and len(last.output) == 1  # (samples, classes)
    if isinstance(output, Tiled) or not (slices_fit or isinstance(output, Whole)):
        finish = to_whole(output, ranks, replicated=True)
        left = walk.left_split
        if left is not None and left.way is not None:
            raise InputError(
                f"`split` {left.name}={left.way}: leaves its output split, but the loss needs it whole; "
                f"valid is {left.name}={left.way.name}"
            )
    _require_equal_ties(walk.steps)
    canonical = {name: str(Way.parse(text)) for name, text in splits.items()}
    return Plan(ranks, canonical, walk.steps, tuple(input_shape), output, finish, walk.partial_input)


def _require_leaves(walk: _Walk) -> None:
    """Refuses ways that cut what has no leaves."""
    for name, way in walk.ways.items():
        if way.cuts_image or way.name == "towers":
            valid = [other for other in ways_of(walk.shapes[name].layer) if other in ("filters", "channels")]
            raise InputError(
                f"`split` {name}={way}: `reproducible` divides only channels and features; "
                f"valid for {name}: {', '.join(valid) or 'none'}"
            )


# -- the walk ------------------------------------------------------------------------------------------------------
class _Walk:
    """Follows an activation through the network, from placement to placement."""

    def __init__(
        self, shapes: Mapping[str, nn.LayerShape], ways: Mapping[str, Way], ranks: int, partial_input: bool = False
    ) -> None:
        self.shapes, self.ways, self.ranks = shapes, ways, ranks
        self.partial_input = False
        self._may_be_partial = partial_input  # until a layer has weights or moves
        self.steps: list[Step] = []
        self.in_leaves = computes_in_leaves(passed.layer for passed in shapes.values())
        self.left_split: Step | None = None  # the layer, not followed by another yet, that must stay split
        names = list(shapes)
        weighted = [name for name in names if isinstance(shapes[name].layer, nn.Linear | nn.Conv2d)]
        self._next = {
            name: next((other for other in weighted if names.index(other) > at), None) for at, name in enumerate(names)
        }

    def walk(self, module: nn.Module, name: str, before: Placement, constant: bool) -> Placement:
        """Adds the steps of the module and what is in it; returns where its output is."""
        if isinstance(module, nn.Branches) and computes_as(module, nn.Branches):
            self._may_be_partial = False
            return (self._towers if name in self.ways else self._branches)(module, name, before, constant)
        if computes_as(module, nn.Sequential):
            for child, layer in module._modules.items():
                before = self.walk(layer, _below(name, child), before, constant)
                constant = constant and _passes_arrays(layer)
            return before
        return self._layer(module, name, before, constant)

    def _layer(self, layer: nn.Module, name: str, before: Placement, constant: bool) -> Placement:
        passed, way = self.shapes[name], self.ways.get(name)
        following = self._next[name]
        next_way = self.ways[following].name if following is not None and following in self.ways else None
        site = Site(layer, way, before, passed.input, passed.output, self.ranks, next_way, self.in_leaves)
        several_axes = len(passed.input) > 1
        if way is not None and isinstance(layer, nn.Linear) and several_axes and way.ending == "split":
            raise InputError(
                f"`split` {name}={way}: its input {passed.input} has several axes, and slices of the last are not left "
                f"split; valid is {name}={way.name}"
            )
        division = divide(site, name)
        if self._may_be_partial and (division.arrive or layer._parameters):
            if isinstance(layer, nn.Linear) and way is not None and not several_axes:
                division = dataclasses.replace(division, arrive=_on_the_spot(division.arrive))
                self.partial_input = True
            self._may_be_partial = False
        self._take_left_split(name, division.arrive)
        if division.after != before:
            self.left_split = None
        if way is not None and way.ending == "whole" and division.after != Whole():
            moves = to_whole(division.after, self.ranks, replicated=True)
            division = dataclasses.replace(division, made=division.after, after=Whole(), depart=moves)
        self._add(Step(name, layer, way, passed.input, passed.output, before, division, constant))
        return division.after

    def _take_left_split(self, name: str, moves: Moves) -> None:
        """Refuses moves, in front of the layer `name`, of what was asked to be left split."""
        left = self.left_split
        if left is None or not moves:
            return
        assert left.way is not None
        layer, way = self.shapes[name].layer, self.ways.get(name)
        takes: dict[type[nn.Module], str] = {nn.Linear: "input", nn.Conv2d: "channels"}
        other = next((how for kind, how in takes.items() if isinstance(layer, kind) and how in ways_of(layer)), None)
        instead = f", or {name}={other} with it" if other and (way is None or way.name != other) else ""
        whole = any(isinstance(move, Gather) for move in moves)
        needs, does = ("it whole", "gathers") if whole else ("other slices of it", "moves")
        raise InputError(
            f"`split` {left.name}={left.way}: leaves its output split, but {name} needs {needs}; "
            f"valid are {left.name}={left.way.name}, which {does} it{instead}"
        )

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        if step.way is not None and step.way.ending == "split":
            self.left_split = step

    def _branches(self, module: nn.Branches, name: str, before: Placement, constant: bool) -> Placement:
        """Every rank does its part of every branch."""
        endings: list[Ending] = []
        left: list[Step | None] = []
        for child, branch in module._modules.items():
            below = _below(name, child)
            end = self.walk(branch, below, before, constant)
            moves = to_whole(end, self.ranks, replicated=True)
            endings.append(Ending(end, nn.output_shape(branch, self.shapes[name].input), moves))
            left.append(self.left_split)
            self.left_split = None
        after = endings[0].placement
        alike = all(ending.placement == after for ending in endings)
        if not alike or (module.join == "concatenate" and isinstance(after, Sliced)):
            after, joined = Whole(), tuple(endings)
            for self.left_split, ending in zip(left, endings):
                self._take_left_split(name, ending.moves)
        else:
            joined = ()
        passed = self.shapes[name]
        self._add(
            Step(name, module, None, passed.input, passed.output, before, Division((), after), constant, joined=joined)
        )
        return after

    def _towers(self, module: nn.Branches, name: str, before: Placement, constant: bool) -> Placement:
        """Each rank has some of the branches, and no other; they meet where they are joined."""
        way, passed = self.ways[name], self.shapes[name]
        owners = [rank for rank, count in enumerate(even(len(module), self.ranks)) for _ in range(count)]
        widths = [0] * self.ranks
        for (child, branch), owner in zip(module._modules.items(), owners):
            for inner in nn.layer_shapes(branch, passed.input, _below(name, child)):
                if inner.name in self.ways:
                    raise InputError(
                        f"`split` {inner.name}={self.ways[inner.name]}: it is in a branch that one rank has, "
                        f"since {name}={way}; valid is one of the two"
                    )
                division = _on_one(inner.layer, owner, self.ranks)
                self._add(
                    Step(inner.name, inner.layer, None, inner.input, inner.output, Whole(), division, owner=owner)
                )
            widths[owner] += nn.output_shape(branch, passed.input)[0]
        arrive = to_whole(before, self.ranks, replicated=False)
        self._take_left_split(name, arrive)
        division = Division(arrive, Sliced(tuple(widths)), detail=tuple(owners))
        if module.join == "sum":
            depart = (AllReduce(Grid(self.ranks, 1), "model"),)
            division = dataclasses.replace(division, made=Whole(), after=Whole(), depart=depart)
            if way.ending is not None:
                raise InputError(f"`split` {name}={way}: a sum of branches is whole; valid is {name}={way.name}")
        elif way.ending == "whole":
            moves = to_whole(division.after, self.ranks, replicated=True)
            division = dataclasses.replace(division, made=division.after, after=Whole(), depart=moves)
        self._add(Step(name, module, way, passed.input, passed.output, before, division, constant))
        return division.after


def _on_the_spot(moves: Moves) -> Moves:
    """Moves of what every rank has in full, without the exchange that their adjoint makes: its gradient is partial."""
    return tuple(
        Pick(move.grid, move.over, move.wanted) if isinstance(move, Take) else move
        for move in moves
        if not isinstance(move, Replicate)
    )


def _passes_arrays(layer: nn.Module) -> bool:
    """Whether it gives an array for an array: what comes out has no gradient, either."""
    if computes_as(layer, nn.Sequential):
        return all(map(_passes_arrays, layer._modules.values()))
    return isinstance(layer, nn.Flatten | nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def _on_one(layer: nn.Module, owner: int, ranks: int) -> Division:
    """Its weights are on one rank; the others have none of them."""
    pieces: dict[str, tuple[Piece, ...]] = {}
    if isinstance(layer, nn.Branches):
        return Division((), Whole())
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    shapes |= {name: array.shape for name, array in layer.named_buffers()}
    lengths = {name: shape[0] for name, shape in shapes.items() if shape}
    for name, length in lengths.items():
        pieces[name] = tuple((part,) for part in slices([length * (rank == owner) for rank in range(ranks)]))
    return Division((), Whole(), pieces=pieces)


def _below(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _require_equal_ties(steps: list[Step]) -> None:
    """A parameter or buffer that two layers share, or two places of one, has to be cut in one way."""
    first: dict[int, tuple[str, Any]] = {}
    for step in steps:
        shared: list[tuple[str, Any, str, Any]] = [
            (name, parameter, "weight", (pieces, step.division.summed))
            for name, parameter, pieces in step.parameter_pieces()
        ]
        if not isinstance(step.layer, nn.Branches):
            shared += (
                (f"{step.name}.{name}", buffer, "buffer", step.division.pieces.get(name))
                for name, buffer in step.layer.named_buffers()
            )
        for name, values, kind, cut in shared:
            other, known = first.setdefault(id(values), (name, cut))
            if known != cut:
                raise InputError(f"{other} and {name} are one {kind}, but would be cut differently: split both alike")


# -- what is sent --------------------------------------------------------------------------------------------------
def messages(plan: Plan, rank: int) -> Iterator[tuple[str, Message]]:
    """(layer, message) of everything that `rank` sends over the model axis for one microbatch in training.

    The loss's are not in it: that of a split cross-entropy sends 3 values per sample in two all-reduces.
    """
    if plan.ranks == 1:
        return
    for number, step in enumerate(plan.steps):
        found: list[Message] = []
        if not step.constant:
            found += _along(step.division.arrive, rank, step.before.shape(rank, step.input))
        found += step.division.messages
        if step.division.summed:
            found += (Message("backward", "all_reduce", 1, 0, p.size) for _, p, _ in step.parameter_pieces())
        made = step.division.made or step.division.after
        found += _along(step.division.depart, rank, made.shape(rank, step.output))
        for ending in step.joined:
            found += _along(ending.moves, rank, ending.placement.shape(rank, ending.output))
        if number == len(plan.steps) - 1:
            found += _along(plan.finish, rank, step.after.shape(rank, step.output))
        for message in found:
            yield step.name, message


def _along(moves: Moves, rank: int, x: Shape) -> Iterator[Message]:
    for move in moves:
        if move.ranks > 1:
            yield from move.messages(rank, x)
        x = move.shape(rank, x)
