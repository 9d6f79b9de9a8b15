"""Asks a layer's rule how the layer is done. Of a user's own rule nothing that is wrong goes further than here."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator
from typing import Any

from parallel_dl.errors import InputError, named, number_of, one_of, shown
from parallel_dl.from_file import failure
from parallel_dl.mesh import Invariant, Partial, Placement, Replicated, Shape, Shard, State, Windows, even
from parallel_dl.splits.rule import Division, Finish, Rule, Site, rule_of
from parallel_dl.splits.samples import by_samples, is_along_samples
from parallel_dl.splits.way import Way


def divide(site: Site, name: str) -> Division:
    """How the layer `name` is done here: one that has no rule, a user's own, by every rank, with all weights.

    A slice along features or weights whose sizes a user's rule left open is even. Raises InputError, one line with the
    layer, the rule and its place, for an exception in a user's rule and for a division that cannot be carried out.
    """
    way = site.way
    if way is None and is_along_samples(site.before):
        way = Way("samples")
    rule = rule_of(site.layer, way) or (by_samples if way is not None and way.name == "samples" else None)
    if rule is None:
        assert way is None, f"{name}={way} was not refused"
        return Division(site.invariant, site.invariant)
    if rule.__module__.startswith("parallel_dl."):
        return rule(site)
    return _Asked(rule, site, name).division()


class _Asked:
    """A user's rule, asked for one layer."""

    def __init__(self, rule: Rule, site: Site, name: str) -> None:
        self.rule, self.site = rule, site
        self.called = f"layer {name}: rule {getattr(rule, '__name__', type(rule).__name__)}"
        code = getattr(rule, "__code__", None)
        self.file = code.co_filename if code is not None else ""
        self.by = f"{self.called} ({named(self.file)}, line {code.co_firstlineno})" if code is not None else self.called

    def division(self) -> Division:
        """What it says, with all sizes."""
        try:
            said = self.rule(self.site)
        except Exception as error:
            raise failure(self.called, self.file, error) from error
        if not isinstance(said, Division):
            raise self._error(f"returns a value of type {type(said).__name__}; expected a Division")
        x, y = (1, *self.site.x), (1, *self.site.y)
        division = dataclasses.replace(
            said,
            output=self._placed("output", said.output, y, (Invariant, Shard, Partial, Replicated)),
            input=said.input
            if said.input is None
            else self._placed("input", said.input, x, (Invariant, Replicated, Shard, Windows)),
            weights=dict(self._weights(said)),
            by=self.by,
        )
        if division.output.has(Replicated) and not self.site.before.has(Replicated):
            raise self._error("output is Replicated; expected Invariant, Shard or Partial")
        self._require_summed(division)
        self._require_local(division)
        return division

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.by}: {what}")

    # -- placements ------------------------------------------------------------------------------------------------
    def _placed(self, what: str, placement: Any, whole: Shape, kinds: tuple[type[State], ...]) -> Placement:
        """The placement with all sizes, of an array of shape `whole`."""
        if not isinstance(placement, Placement):
            made = f"; expected a placement, site.on({placement})" if isinstance(placement, State) else ""
            raise self._error(f"{what} is {shown(placement)}{made or '; expected a placement, like site.on(Shard(1))'}")
        if placement.mesh.ranks != self.site.ranks:
            raise self._error(
                f"{what} is placed on {number_of(placement.mesh.ranks, 'rank')}; expected {self.site.ranks}"
            )
        states = []
        for axis, state in zip(placement.mesh, placement.states):
            if not isinstance(state, kinds):
                valid = ", ".join(kind.__name__ for kind in kinds)
                raise self._error(f"{what} is {type(state).__name__}; expected one of {valid}")
            states.append(self._with_sizes(what, state, whole, placement.mesh[axis]))
        return dataclasses.replace(placement, states=tuple(states))

    def _with_sizes(self, what: str, state: State, whole: Shape, ranks: int) -> State:
        if not isinstance(state, Shard | Windows):
            return state
        is_weight = what.startswith("weight")
        if not 0 <= state.axis < len(whole):
            has = f"shape {whole}" if is_weight else f"axis 0, the samples, and then {whole[1:]}"
            raise self._error(f"{what} is cut along axis {state.axis}, but it has {has}")
        length = whole[state.axis]
        if isinstance(state, Windows):
            if len(state.wanted) != ranks or any(one.start < 0 or one.stop > length for one in state.wanted):
                raise self._error(f"{what} is {state}; expected {ranks} slices of {length}")
            return state
        if state.axis == 0 and not is_weight:  # the samples, whose number is known when a batch is there
            return Shard(0)
        sizes = even(length, ranks) if state.sizes is None else tuple(state.sizes)
        if len(sizes) != ranks or sum(sizes) != length or min(sizes) < 0:
            raise self._error(
                f"{what} is cut along axis {state.axis} into {sizes}; expected {ranks} sizes that add up to {length}"
            )
        return Shard(state.axis, sizes)

    def _weights(self, said: Division) -> Iterator[tuple[str, Placement]]:
        layer = self.site.layer
        shapes = {name: one.whole_shape for name, one in layer.named_parameters()}
        shapes |= {name: one.shape for name, one in layer.named_buffers()}
        finish = said.finish.names if isinstance(said.finish, Finish) else ()
        for name in (*said.weights, *finish):
            if name not in shapes:
                near = difflib.get_close_matches(str(name), shapes, 1)
                meant = f"did you mean {near[0]}? " if near else ""
                raise self._error(f"the layer has no weight {shown(name)}; {meant}{one_of(list(shapes) or ['none'])}")
        for name, placement in said.weights.items():
            yield name, self._placed(f"weight {name}", placement, shapes[name], (Invariant, Replicated, Shard))

    # -- what has to go together -----------------------------------------------------------------------------------
    def _require_summed(self, division: Division) -> None:
        """If each rank computes something of its own, no summand, value or gradient, may be mistaken for a whole."""
        comes, output = division.input or self.site.before, division.output
        cut = [name for name, one in division.weights.items() if one.has(Shard)]
        if not (cut or comes.has((Shard, Windows)) or output.has((Shard, Partial))):
            return
        of_its_own = f"weight {cut[0]} is cut" if cut else "each rank does its own part"
        if comes.is_whole:
            raise self._error(
                f"{of_its_own}, so the gradient of x is a summand on each rank; use input=site.on(Replicated()), "
                "or a Shard of x"
            )
        if output.is_whole and not division.messages:
            raise self._error(
                f"output is Invariant, but {of_its_own}; use a Shard, or Partial for summands, or messages that "
                "say what the local maths combines"
            )
        for name, _ in self.site.layer.named_parameters():
            state = division.weights.get(name)
            if (state is None or state.is_whole) and (division.finish is None or name not in division.finish.names):
                if output.has(Partial):
                    raise self._error(
                        f"output is Partial, and weight {name} whole on every rank: what it adds would count once "
                        f"per rank; use a local that leaves it out, and finish=Finish(add, ({name!r},), 1), which "
                        "adds it after the sum, or a Shard of it"
                    )
                raise self._error(
                    f"weight {name} is whole on every rank, but each does its own part, so its gradient is a summand; "
                    f"use site.weights(Replicated(), {name!r}), or a Shard"
                )

    def _require_local(self, division: Division) -> None:
        if division.local is None:
            return
        try:
            inspect.signature(division.local).bind("layer", "x", "position")
        except TypeError:
            raise self._error("local is called as local(layer, x, position), which it does not take") from None
        except ValueError:  # without a signature
            return
