"""The walk through a network that makes a plan: from layer to layer, from placement to placement."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.mesh import (
    Invariant,
    MeshShape,
    Partial,
    Path,
    Placement,
    Replicated,
    Shard,
    State,
    Windows,
    even,
    reshard,
)
from parallel_dl.nn.shapes import computes_as
from parallel_dl.splits import kinds  # noqa: F401
from parallel_dl.splits.branches import joined, on_one
from parallel_dl.splits.divide import divide
from parallel_dl.splits.leaves import cutting_of
from parallel_dl.splits.rule import Division, Ending, Site, rule_of, ways_of
from parallel_dl.splits.samples import is_along_samples
from parallel_dl.splits.step import Step
from parallel_dl.splits.way import Way


class Walk:
    """Follows an activation through the network; afterwards `steps`, and in which placement the `output` is.

    `input` is the state of the network's input, `has_gradient` whether it has one. NotOffered if some
    layer cannot take an input in that state.
    """

    def __init__(
        self,
        network: nn.Module,
        shapes: Mapping[str, nn.LayerShape],
        ways: Mapping[str, Way],
        ranks: int,
        split_output: bool,
        has_gradient: bool,
        input: State,
    ) -> None:
        self.shapes, self.ways, self.ranks = shapes, ways, ranks
        self.steps: list[Step] = []
        self.cutting = cutting_of(shapes.values())
        for name, way in ways.items():
            self.cutting.require(shapes[name].layer, name, way)
        self._left_split: Step | None = None  # the layer, not followed by another yet, that must stay split
        names = list(shapes)
        weighted = [name for name in names if isinstance(shapes[name].layer, nn.Linear | nn.Conv2d)]
        self._next = {
            name: next((other for other in weighted if names.index(other) > at), None) for at, name in enumerate(names)
        }
        self.input = self._on(input)
        self.output = self._through(network, "", self.input, not has_gradient)
        self._finish(split_output)

    def _on(self, state: State) -> Placement:
        return Placement(MeshShape(model=self.ranks), (state,))

    # -- through modules -------------------------------------------------------------------------------------------
    def _through(self, module: nn.Module, name: str, before: Placement, constant: bool) -> Placement:
        """Adds the steps of the module and its layers; returns the placement of its output."""
        if isinstance(module, nn.Branches) and computes_as(module, nn.Branches):
            return (self._towers if name in self.ways else self._branches)(module, name, before, constant)
        if computes_as(module, nn.Sequential):
            for child, layer in module._modules.items():
                before = self._through(layer, _below(name, child), before, constant)
                constant = constant and _passes_arrays(layer)
            return before
        return self._layer(module, name, before, constant)

    def _site(self, name: str, before: Placement) -> Site:
        passed, following = self.shapes[name], self._next[name]
        next_way = self.ways[following].name if following is not None and following in self.ways else None
        way = self.ways.get(name)
        return Site(passed.layer, way, before, passed.input, passed.output, self.ranks, next_way, self.cutting)

    def _layer(self, layer: nn.Module, name: str, before: Placement, constant: bool) -> Placement:
        site = self._site(name, Placement.on(before.mesh) if before.has(Partial) else before)
        division = divide(site, name)
        if before.has(Partial):
            before = self._settle(_asked(division.input, site) if site.way is not None else Invariant())
            site = dataclasses.replace(site, before=before)
            division = divide(site, name)
        if division.input is None and before.has(Replicated) and layer.parameters():
            division = dataclasses.replace(division, input=site.invariant)  # their gradient is to count once
        way = site.way
        if way is not None and isinstance(layer, nn.Linear) and len(site.x) > 1 and way.ending == "split":
            raise InputError(
                f"`split` {name}={way}: its input {site.x} has several axes, and slices of the last are not left "
                f"split; use {name}={way.name}"
            )
        inside = way is not None and isinstance(layer, nn.Linear) and len(site.x) > 1 and way.name == "output"
        return self._add(site, name, division, constant, whole=inside)

    def _add(self, site: Site, name: str, division: Division, constant: bool, whole: bool = False) -> Placement:
        """Adds a step; returns the placement of its output, which with `whole` is made whole."""
        arrive = reshard(site.before, division.input or site.before, (1, *site.x))
        self._take_left_split(name, arrive)
        after = division.output
        depart: Path = ()
        if after != site.before:
            self._left_split = None
        way = site.way
        if whole or (way is not None and way.ending == "whole" and not after.is_whole):
            depart = reshard(after, site.invariant, (1, *site.y))
            after = site.invariant
        step = Step(name, site.layer, way, site.x, site.y, site.before, arrive, division, after, depart, constant)
        self.steps.append(step)
        if way is not None and way.ending == "split":
            self._left_split = step
        return after

    def _settle(self, state: State) -> Placement:
        """Ends the sum that the last step has left open: from here on the output is in this state."""
        step, after = self.steps[-1], self._on(state)
        depart = reshard(step.division.output, after, (1, *step.output))
        self.steps[-1] = dataclasses.replace(step, after=after, depart=depart)
        return after

    def _whole_sum(self, before: Placement) -> Placement:
        return self._settle(Invariant()) if before.has(Partial) else before

    def _finish(self, split_output: bool) -> None:
        """The network's output, as the loss takes it: a slice of classes, a share of the samples, or whole."""
        self.output = self._whole_sum(self.output)
        if self.output.uniform() is not None or is_along_samples(self.output):
            return
        last, left = self.steps[-1], self._left_split
        if split_output and len(last.output) == 1:  # (samples, classes)
            return
        path = reshard(self.output, self._on(Invariant()), (1, *last.output))
        self.output = self._on(Invariant())
        self.steps[-1] = dataclasses.replace(last, after=self.output, depart=(*last.depart, *path))
        if left is not None and left.way is not None:
            raise InputError(
                f"`split` {left.name}={left.way}: leaves its output split, but the loss needs it whole; "
                f"use {left.name}={left.way.name}"
            )

    def _take_left_split(self, name: str, path: Path) -> None:
        """Refuses moves, before the layer `name`, of what was asked to be left split."""
        left = self._left_split
        if left is None or not path:
            return
        assert left.way is not None
        layer, way = self.shapes[name].layer, self.ways.get(name)
        takes: dict[type[nn.Module], str] = {nn.Linear: "input", nn.Conv2d: "channels"}
        other = next((how for kind, how in takes.items() if isinstance(layer, kind) and how in ways_of(layer)), None)
        instead = f", or {name}={other} with it" if other and (way is None or way.name != other) else ""
        whole = any(move.name in ("unshard", "all_gather") for move in path)
        needs, does = ("it whole", "gathers") if whole else ("other slices of it", "moves")
        raise InputError(
            f"`split` {left.name}={left.way}: leaves its output split, but {name} needs {needs}; "
            f"use {left.name}={left.way.name}, which {does} it{instead}"
        )

    # -- branches --------------------------------------------------------------------------------------------------
    def _branches(self, module: nn.Branches, name: str, before: Placement, constant: bool) -> Placement:
        """Every rank does its part of every branch."""
        before = self._whole_sum(before)
        site = self._site(name, before)
        if before.has(Replicated):
            reshard(before, site.invariant, (1, *site.x))  # not offered: every branch adds to its gradient
        endings: list[Ending] = []
        left: list[Step | None] = []
        for child, branch in module._modules.items():
            end = self._whole_sum(self._through(branch, _below(name, child), before, constant))
            output = nn.output_shape(branch, site.x)
            endings.append(Ending(end, output, reshard(end, site.invariant, (1, *output))))
            left.append(self._left_split)
            self._left_split = None
        division = joined(site, endings)
        for self._left_split, ending in zip(left, division.endings):
            self._take_left_split(name, ending.path)
        self.steps.append(
            Step(name, module, None, site.x, site.y, before, (), division, division.output, constant=constant)
        )
        return division.output

    def _towers(self, module: nn.Branches, name: str, before: Placement, constant: bool) -> Placement:
        """Each rank has some of the branches, and no other; they meet where they are joined."""
        site = self._site(name, self._whole_sum(before))
        way = self.ways[name]
        rule = rule_of(module, way)
        assert rule is not None
        division = rule(site)
        for (child, branch), owner in zip(module._modules.items(), division.owners):
            for inner in nn.layer_shapes(branch, site.x, _below(name, child)):
                if inner.name in self.ways:
                    raise InputError(
                        f"`split` {inner.name}={self.ways[inner.name]}: it is in a branch that a single rank runs, "
                        f"because of {name}={way}; use one of the two"
                    )
                own, whole = on_one(inner.layer, owner, site), site.invariant
                self.steps.append(
                    Step(inner.name, inner.layer, None, inner.input, inner.output, whole, (), own, whole, owner=owner)
                )
        if module.join == "sum" and way.ending is not None:
            raise InputError(f"`split` {name}={way}: a sum of branches is whole; use {name}={way.name}")
        return self._add(site, name, division, constant)


def _asked(wanted: Placement | None, site: Site) -> State:
    """The state in which the sum before a layer is to end that wants its input so: slices, or whole."""
    if wanted is None or len(wanted.mesh) != 1:
        return Invariant()
    (state,) = wanted.states
    if isinstance(state, Windows):
        return Shard(state.axis, even(site.x[state.axis - 1], site.ranks))
    return state if isinstance(state, Shard) else Invariant()


def _passes_arrays(layer: nn.Module) -> bool:
    """Whether it gives an array for an array: what comes out has no gradient, either."""
    if computes_as(layer, nn.Sequential):
        return all(map(_passes_arrays, layer._modules.values()))
    return isinstance(layer, nn.Flatten | nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def _below(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child
