"""Where a parallel run leaves the serial one: the first tensor that differs, on which rank, by which factor, and why.

Both runs are traced at the step in which they part, and compared in the order in which things were computed: weights
before the step, samples, layer by layer forward, the loss, layer by layer backward, gradients, the update. What comes
first is the cause; what comes after it follows from it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.equivalence.compare.runs import first_different_step
from parallel_dl.equivalence.explain import causes
from parallel_dl.equivalence.explain.causes import Pieces
from parallel_dl.equivalence.explain.pieces import Step, relative
from parallel_dl.equivalence.explain.trace import At, Trace, trace
from parallel_dl.equivalence.runs.record import Experiment, Run
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh, one_rank
from parallel_dl.nn import Module
from parallel_dl.splits import Whole

_GATHERED = (
    "gathered wrongly, though it is right on the ranks that have it: a broadcast from a wrong rank, or pieces put "
    "together out of place"
)
_PENALTY = (
    "a term of the loss that does not come from the outputs, such as a penalty on weights: each call adds it, so "
    "scale it by len(targets) / total; if other ranks have some of the weights, use the optimizer's weight_decay"
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


def first_divergence(
    experiment: Experiment,
    layout: Layout,
    mesh: Mesh,
    serial: Run | None,
    parallel: Run,
    exact: bool = False,
    alone: Mapping[int, Trace] | None = None,
    allreduce: str | Mapping[str, Any] = "auto",
    bound: float | None = None,
) -> Divergence | None:
    """Runs both again, and finds where they part; on rank 0, None on the others and when nothing is found.

    `bound` and `exact` are those of the comparison: they decide which step is the first that differs.

    All ranks call it together; `serial`, and `alone`, the serial traces by step if there are any already, are needed on
    rank 0 only. What makes the runs differ must be deterministic.
    """
    if layout.reproducible:  # it goes through each leaf by itself: other shares than the serial run has
        return None
    step = None if serial is None else first_different_step(serial, parallel, bound, exact)
    step = mesh.world.broadcast_object(step)
    found = None
    for number in range(experiment.steps) if step is None else (step,):  # replicas differ, but not rank 0: look at all
        traces = mesh.world.all_gather_object(trace(experiment, layout, mesh, number, allreduce))
        if mesh.world.rank == 0:
            try:
                if alone is None:
                    with one_rank():
                        serially = trace(experiment, Layout(microbatches=layout.microbatches), Mesh.serial(), number)
                else:
                    serially = alone[number]
                found = _Search(experiment, layout, number, serially, traces, serial, parallel).first()
            except Exception as error:  # the other ranks wait, and that the runs differ is known already
                words = f"where the runs part was not found: the search ends with {type(error).__name__}: {error}"
                warnings.warn(words, stacklevel=2)
        if mesh.world.broadcast_object(found is not None):
            break
    return found


class _Search(Step):
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
        return Divergence(kind, name, self.step, microbatch, rank, error, causes.factor(got, expected), cause)

    # -- in the order of the computation ---------------------------------------------------------------------------
    def _before(self) -> Iterator[Divergence]:
        for name, whole in self.serial.before.items():
            own = self.having_of_weight(name, whole)
            for rank, error in self.compare(own, whole):
                cause = causes.of_another_piece(own, rank, self.neighbours(rank, "model")) or causes.of_weights(
                    *own[rank], self.layout, self.step == 0, name in self.buffers
                )
                yield self._report("weights before", name, None, rank, error, own, cause)
            gathered = {rank: (of.before[name], whole) for rank, of in enumerate(self.traces) if name in of.before}
            for rank, error in self.compare(gathered, whole):
                cause = _GATHERED if own else None
                cause = cause or causes.of_weights(*gathered[rank], self.layout, self.step == 0, name in self.buffers)
                yield self._report("weights before", name, None, rank, error, gathered, cause)

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
                compared = self.having("outputs", at)
                if compared is None:
                    continue
                pieces, whole = compared
                for rank, error in self.compare(pieces, whole):
                    cause = (
                        self._of_arrival(at, rank)
                        or self._of_own_layer(at, rank, pieces[rank])
                        or causes.of_forward(
                            self.layer_of(layer),
                            pieces,
                            rank,
                            self.neighbours(rank, "model"),
                            self.serial.before,
                            layer,
                            self.layout,
                            self.inner_edges(layer, rank),
                        )
                        or self._stale(at, *pieces[rank], rank)
                        or self._of_share(at, rank, pieces[rank][0])
                    )
                    yield self._report("forward", layer, microbatch, rank, error, pieces, cause)

    def _of_arrival(self, at: At, rank: int) -> str | None:
        """Whether the layer's input is wrong already, although what it comes from is right: on the way."""
        got, whole = self.traces[rank].arrived.get(at), self.serial.arrived.get(at)
        if got is None or whole is None:
            return None
        expected = whole[self.share_of(rank, at.microbatch)]
        if got.shape != expected.shape or causes.close(got, expected):
            return None
        return causes.of_arrival(got, expected, self.layout)

    def _of_own_layer(self, at: At, rank: int, piece: tuple[np.ndarray, np.ndarray]) -> str | None:
        """For a layer of the user's own that is not split: with the right input, the layer itself is at fault."""
        got, expected = piece
        x, whole = self.traces[rank].arrived.get(at), self.serial.arrived.get(at)
        is_ours = type(self.layer_of(at.layer)).__module__.startswith("parallel_dl.")
        if is_ours or x is None or whole is None or not isinstance(self.placement_of(rank, at.layer), Whole):
            return None
        right = whole[self.share_of(rank, at.microbatch)]
        if got.shape != expected.shape or x.shape != right.shape or self.differ(rank, x, right):
            return None
        return self._of_share(at, rank, got) or (
            f"the layer itself: on rank {rank} its output for the same input differs from the serial one"
        )

    def _of_share(self, at: At, rank: int, got: np.ndarray) -> str | None:
        """Whether the serial layer, given the rank's samples alone, gives what the rank has: then it mixes samples."""
        x = self.traces[rank].arrived.get(at)
        if self.layout.dp == 1 or x is None or len(x) == self.serial.shares[at.microbatch][1]:
            return None
        network = self._before_the_step(self.serial.before)
        network.at(self.step, self.traces[rank].shares[at.microbatch][0])
        try:
            with one_rank(), no_grad():
                y = self.layer_of(at.layer, network)(Tensor(x))
        except Exception:  # it needs more than its input
            return None
        alone = np.asarray(y.data if isinstance(y, Tensor) else y)
        if alone.shape != got.shape or not causes.close(got, alone):
            return None
        return (
            "a layer that depends on which samples it is given, or how many: its output for a share alone is not the "
            "same as within the whole batch"
        )

    def _before_the_step(self, state: Mapping[str, np.ndarray]) -> Module:
        """The serial network, with these weights and buffers, in training mode."""
        network = self.experiment.build().initialize(self.experiment.seed, self.experiment.dtype)
        network.load_state_dict(state)
        return network.train()

    def _stale(self, at: At, got: np.ndarray, expected: np.ndarray, rank: int) -> str | None:
        """Whether the layer's output is that with the weights before the last update."""
        if self.step == 0 or self.run is None:
            return None
        network = self._before_the_step(self.run.weights[self.step - 2] if self.step > 1 else _initial(self.experiment))
        first, _ = self.serial.shares[at.microbatch]
        x: Any = self.serial.inputs[At(at.microbatch, "")]
        network.at(self.step, first)
        outputs: dict[str, Any] = {}
        for name, layer in network.named_modules():
            layer.register_forward_hook(_keep(outputs, name))
        with one_rank():
            network(x)
        y = outputs[at.layer]
        old = self.piece_of(y.data if isinstance(y, Tensor) else y, rank, at)
        if old.shape == got.shape and causes.close(got, old):
            return "weights of an earlier version: before the last update"
        return None

    def _loss(self) -> Iterator[Divergence]:
        if self.run is None or self.step >= len(self.parallel.losses):
            return
        ours, theirs = self.run.losses[self.step], self.parallel.losses[self.step]
        magnitudes = None if self.run.magnitudes is None else self.run.magnitudes[self.step]["losses"][""]
        error = relative(abs(ours - theirs), abs(ours) if magnitudes is None else float(magnitudes.max()), abs(theirs))
        if not error <= self.tolerance:
            cause = self._cause_of_loss(ours, theirs)
            factor = causes.factor(np.array([theirs]), np.array([ours]))
            yield Divergence("loss", "", self.step, None, 0, error, factor, cause)

    def _cause_of_loss(self, ours: float, theirs: float) -> str | None:
        total = sum(size for _, size in self.serial.shares)
        for microbatch, (_, size) in enumerate(self.serial.shares):
            compared = self.having("returned", At(microbatch, self.layers[-1])) if self.layers else None
            for rank, (got, expected) in ({} if compared is None else compared[0]).items():
                factor = causes.factor(got, expected)
                if factor is not None and abs(factor - 1) > 1e-6:
                    share = sum(size for _, size in self.traces[rank].shares)
                    return causes.of_divisor(factor, total, size, share, self.layout)
        for rank, of in enumerate(self.traces):
            if self.layout.dp > 1 and of.losses and abs(sum(of.losses.values()) - theirs) < 1e-9 * abs(theirs):
                return f"the loss of rank {rank}'s share alone: not summed over the ranks"
        return causes.of_loss(ours, theirs, self.layout) or (_PENALTY if self._scores_are_right() else None)

    def _scores_are_right(self) -> bool:
        """Whether the network's outputs, and what the loss gives back to them, are those of the serial run."""
        found = 0
        for microbatch in range(len(self.serial.shares)):
            at = At(microbatch, self.layers[-1] if self.layers else "")
            for compared in (self.having("outputs", at), self.having("returned", at)):
                if compared is None or next(self.compare(*compared), None) is not None:
                    return False
                found += len(compared[0])
        return found > 0

    def _backward(self) -> Iterator[Divergence]:
        for microbatch in range(len(self.serial.shares)):
            for layer in reversed(self.layers):
                compared = self.having("returned", At(microbatch, layer))
                if compared is None:
                    continue
                pieces, whole = compared
                for rank, error in self.compare(pieces, whole):
                    neighbours = self.neighbours(rank, "model")
                    edges = self.inner_edges(layer, rank)
                    cause = causes.of_backward(pieces, rank, neighbours, self.layout, edges)
                    yield self._report("backward", layer, microbatch, rank, error, pieces, cause)

    def _gradients(self) -> Iterator[Divergence]:
        for name in reversed(list(self.serial.gradients)):
            whole = self.serial.gradients[name]
            scale = self.magnitudes_of("gradients", name, whole)
            pieces = {}
            for rank, of in enumerate(self.traces):
                if name in of.gradients:
                    pieces[rank] = of.gradients[name], whole[of.pieces.get(name, ())]
            for rank, error in self.compare(pieces, scale):
                own = [of_part.get(name, np.zeros_like(whole)) for of_part in self.serial.own]
                index = self.traces[rank].pieces.get(name, ())
                replicas = [other for other in self.neighbours(rank, "data") if other in pieces]
                partners = [other for other in self.neighbours(rank, "model") if other in pieces]
                parts = [array[index] for array in own]
                cause = causes.of_gradient(pieces, rank, replicas, partners, parts, self.layout) or causes.of_summands(
                    pieces[rank][0], {other: self.traces[other].summands.get(name) for other in replicas}
                )
                if cause is None and causes.of_itself(*pieces[rank], self.serial.before[name][index]):
                    cause = _PENALTY
                yield self._report("gradient", name, None, rank, error, pieces, cause)

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


def _keep(outputs: dict[str, Any], name: str) -> Callable[[Module, tuple[Any, ...], Any], Any]:
    def hook(layer: Module, arguments: tuple[Any, ...], result: Any) -> Any:
        outputs[name] = result
        return result

    return hook


def _initial(experiment: Experiment) -> dict[str, np.ndarray]:
    network = experiment.build().initialize(experiment.seed, experiment.dtype)
    if experiment.prepare is not None:
        experiment.prepare(network)
    return network.state_dict()
