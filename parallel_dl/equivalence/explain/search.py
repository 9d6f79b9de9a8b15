"""Goes through the traces of a step in the order in which things were computed, to the first tensor that differs.

Weights before the step, samples, layer by layer forward, the loss, layer by layer backward, gradients, the update: what
comes first is the cause; what comes after it follows from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from parallel_dl.equivalence.compare import patterns
from parallel_dl.equivalence.explain import causes, layer_causes
from parallel_dl.equivalence.explain.causes import Pieces
from parallel_dl.equivalence.explain.forward import cause_of_output
from parallel_dl.equivalence.explain.pieces import Step, relative
from parallel_dl.equivalence.explain.trace import At

_GATHERED = (
    "gathered wrongly, though it is right on the ranks that have it: a broadcast from a wrong rank, or pieces put "
    "together out of place"
)
_WORDS = {
    "weights before": "{} before the step",
    "samples": "the samples",
    "targets": "the targets",
    "forward": "output of {}",
    "loss": "the loss",
    "backward": "gradient of the output of {}",
    "gradient": "gradient of {}",
    "update": "{} after the update",
}


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first tensor that differs from the serial run."""

    kind: str
    """weights before, samples, targets, forward, loss, backward, gradient, update"""
    name: str
    """of the layer, or of the weight"""
    step: int
    microbatch: int | None
    rank: int
    error: float
    """largest difference / largest value of the serial tensor, or of the parallel one if that is negligible"""
    factor: float | None
    """parallel / serial, where it is the same for all elements"""
    cause: str | None
    """what it is likely to be, where that can be told"""

    def __str__(self) -> str:
        where = _WORDS[self.kind].format(self.name)
        number = "" if self.microbatch is None else f", microbatch {self.microbatch}"
        factor = "" if self.factor is None else f", {self.factor:.6g} times the serial one"
        by = f"off by {self.error:.1e}{factor}"
        line = f"first divergence: {where} at step {self.step} on rank {self.rank}{number}: {by}"
        return line if self.cause is None else f"{line}; likely {self.cause}"


class Search(Step):
    """Goes through the traces of one step, on one rank."""

    def first(self) -> Divergence | None:
        """The first one, if any."""
        for search in (self._before, self._samples, self._forward, self._loss, self._backward, self._gradients):
            found = next(search(), None)
            if found is not None:
                misplaced = causes.of_mesh([of.place for of in self.traces], self.layout)
                return found if misplaced is None else dataclasses.replace(found, cause=misplaced)
        return next(self._update(), None)

    def _report(
        self, kind: str, name: str, microbatch: int | None, rank: int, error: float, pieces: Pieces, cause: str | None
    ) -> Divergence:
        got, expected = pieces[rank]
        return Divergence(kind, name, self.step, microbatch, rank, error, patterns.factor(expected, got), cause)

    # -- in the order of the computation ---------------------------------------------------------------------------
    def _before(self) -> Iterator[Divergence]:
        for name, whole in self.serial.before.items():
            own = self.having_of_weight(name, whole)
            gathered = {rank: (of.before[name], whole) for rank, of in enumerate(self.traces) if name in of.before}
            for pieces in (own, gathered):
                for rank, error in self.compare(pieces, whole):
                    cause = self._cause_of_weights(name, rank, pieces, own)
                    yield self._report("weights before", name, None, rank, error, pieces, cause)

    def _cause_of_weights(self, name: str, rank: int, pieces: Pieces, own: Pieces) -> str:
        if pieces is not own and own:
            return _GATHERED
        moved = causes.of_another_piece(own, rank, self.neighbours(rank, "model")) if own else None
        return moved or causes.of_weights(*pieces[rank], self.layout, self.step == 0, name in self.buffers)

    def _samples(self) -> Iterator[Divergence]:
        for kind, name in (("inputs", "samples"), ("targets", "targets")):
            serial: dict[At, np.ndarray] = getattr(self.serial, kind)
            for at, whole in serial.items():
                pieces = {
                    rank: (getattr(of, kind)[at], whole[self.share_of(rank, at.microbatch)])
                    for rank, of in enumerate(self.traces)
                    if at in getattr(of, kind)
                }
                for rank, error in self.compare(pieces, whole):
                    cause = causes.of_samples(pieces[rank][0], np.concatenate(list(serial.values())), name)
                    yield self._report(name, "", at.microbatch, rank, error, pieces, cause)

    def _forward(self) -> Iterator[Divergence]:
        for microbatch in range(len(self.serial.shares)):
            for layer in self.layers:
                at = At(microbatch, layer)
                for pieces, rank, error in self.different("outputs", at):
                    cause = cause_of_output(self, at, rank, pieces)
                    yield self._report("forward", layer, microbatch, rank, error, pieces, cause)

    def _loss(self) -> Iterator[Divergence]:
        if self.run is None or self.step >= len(self.parallel.losses):
            return
        ours, theirs = self.run.losses[self.step], self.parallel.losses[self.step]
        magnitudes = None if self.run.magnitudes is None else self.run.magnitudes[self.step]["losses"][""]
        error = relative(abs(ours - theirs), abs(ours) if magnitudes is None else float(magnitudes.max()), abs(theirs))
        if not error <= self.tolerance:
            loss = {0: (np.array([theirs]), np.array([ours]))}
            yield self._report("loss", "", None, 0, error, loss, self._cause_of_loss(ours, theirs))

    def _cause_of_loss(self, ours: float, theirs: float) -> str | None:
        returned = self._cause_of_what_returns(theirs / ours if ours else None)
        if returned is not None:
            return returned
        for rank, of in enumerate(self.traces):
            if self.layout.dp > 1 and of.losses and abs(sum(of.losses.values()) - theirs) < 1e-9 * abs(theirs):
                return f"the loss of rank {rank}'s share alone: not summed over the ranks"
        for rank, (got, expected) in self._what_returns():
            if causes.are_other_targets(got, expected, sum(size for _, size in self.serial.shares)):
                return f"rank {rank} takes the loss of its samples with the targets of others"
        return causes.of_loss(ours, theirs, self.layout) or (causes.PENALTY if self._scores_are_right() else None)

    def _what_returns(self) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """(rank, (what it has, what it should have)) of the gradient that the loss gives back, by microbatch."""
        for microbatch in range(len(self.serial.shares)):
            yield from self.having("returned", self._scores(microbatch))[0].items()

    def _cause_of_what_returns(self, of_loss: float | None) -> str | None:
        """What the factor of the gradient that the loss gives back says, and which it is, if it is not the loss's."""
        total = sum(size for _, size in self.serial.shares)
        for microbatch, (_, size) in enumerate(self.serial.shares):
            pieces, _ = self.having("returned", self._scores(microbatch))
            for rank, (got, expected) in pieces.items():
                factor = patterns.factor(expected, got)
                if factor is None or patterns.whole(factor) == 1:
                    continue
                share = sum(size for _, size in self.traces[rank].shares)
                cause = causes.of_divisor(factor, total, size, share)
                if cause is not None:
                    return cause
                cause = causes.of_factor(factor, self.layout)
                if cause is None or (of_loss is not None and abs(of_loss - factor) <= patterns.SAME * abs(factor)):
                    return cause
                return f"that the gradient it gives back is {factor:.6g} times the serial one: {cause}"
        return None

    def _scores(self, microbatch: int) -> At:
        """The network's outputs."""
        return At(microbatch, self.layers[-1] if self.layers else "")

    def _scores_are_right(self) -> bool:
        """Whether the network's outputs, and what the loss gives back to them, are those of the serial run."""
        found = 0
        for microbatch in range(len(self.serial.shares)):
            for kind in ("outputs", "returned"):
                compared = self.having(kind, self._scores(microbatch))
                if not compared[0] or next(self.compare(*compared), None) is not None:
                    return False
                found += len(compared[0])
        return found > 0

    def _backward(self) -> Iterator[Divergence]:
        for microbatch in range(len(self.serial.shares)):
            for layer in reversed(self.layers):
                for pieces, rank, error in self.different("returned", At(microbatch, layer)):
                    neighbours, edges = self.neighbours(rank, "model"), self.inner_edges(layer, rank)
                    cause = layer_causes.of_backward(pieces, rank, neighbours, self.layout, edges)
                    yield self._report("backward", layer, microbatch, rank, error, pieces, cause)

    def _gradients(self) -> Iterator[Divergence]:
        for name in reversed(list(self.serial.gradients)):
            whole = self.serial.gradients[name]
            pieces = {
                rank: (of.gradients[name], whole[of.pieces.get(name, ())])
                for rank, of in enumerate(self.traces)
                if name in of.gradients
            }
            for rank, error in self.compare(pieces, self.magnitudes_of("gradients", name, whole)):
                yield self._report("gradient", name, None, rank, error, pieces, self._of_gradient(name, rank, pieces))

    def _of_gradient(self, name: str, rank: int, pieces: Pieces) -> str | None:
        whole, index = self.serial.gradients[name], self.traces[rank].pieces.get(name, ())
        replicas, partners = (
            [other for other in self.neighbours(rank, axis) if other in pieces] for axis in ("data", "model")
        )
        parts = [of_part.get(name, np.zeros_like(whole))[index] for of_part in self.serial.own]
        return (
            causes.of_gradient(pieces, rank, replicas, partners, parts, self.layout)
            or causes.of_summands(pieces[rank][0], {other: self.traces[other].summands.get(name) for other in replicas})
            or causes.of_itself(*pieces[rank], self.serial.before[name][index])
        )

    def _update(self) -> Iterator[Divergence]:
        """Gradients are alike: it is what the optimizer made of them, or what was gathered."""
        if self.run is None:
            return
        for kind in ("gradients", "state", "weights"):
            arrays, others = getattr(self.run, kind)[self.step], getattr(self.parallel, kind)[self.step]
            for name, whole in arrays.items():
                got = others.get(name, np.zeros(0))
                magnitudes = self.magnitudes_of(kind, name, whole)
                for _, error in self.compare({0: (got, whole)}, magnitudes):
                    rank = self.owner_of(name.partition(" ")[0], got, whole, magnitudes)
                    what = "gradient" if kind == "gradients" else "update"
                    before = self.serial.before.get(name) if kind == "weights" else None
                    cause = causes.of_update(got, whole, before, self.layout)
                    yield self._report(what, name, None, rank, error, {rank: (got, whole)}, cause)
