"""What each rank has of every tensor of a step, and should have according to the serial run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from parallel_dl import partition
from parallel_dl.equivalence.explain.causes import Pieces
from parallel_dl.equivalence.explain.layer_causes import Edges
from parallel_dl.equivalence.explain.trace import At, Trace
from parallel_dl.equivalence.runs.record import Experiment, Run
from parallel_dl.layout import Layout
from parallel_dl.mesh import Invariant, MeshShape, Placement, Shard
from parallel_dl.nn import Module

WHOLE = Placement(MeshShape(model=1), (Invariant(),))
_BESIDE = 1e6  # times a value: a difference as large as this makes it negligible
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}  # of the largest value in the serial tensor


class Step:
    """The traces of one step, the serial one and those of all ranks, on one rank."""

    def __init__(
        self,
        experiment: Experiment,
        layout: Layout,
        step: int,
        serial: Trace,
        traces: Sequence[Trace],
        run: Run | None,
        parallel: Run,
    ) -> None:
        self.layout, self.step, self.serial, self.traces = layout, step, serial, traces
        self.run, self.parallel, self.experiment = run, parallel, experiment
        self.tolerance = TOLERANCES[experiment.dtype]
        self.network = experiment.build()
        self.layers = list(dict.fromkeys(at.layer for at in serial.outputs))
        self.buffers = {name for name, _ in self.network.named_buffers()}

    def share_of(self, rank: int, microbatch: int) -> slice:
        """The rows of the microbatch that the rank should have."""
        _, size = self.serial.shares[microbatch]
        return partition.share(size, self.layout.dp, self.traces[rank].place["data"])

    def piece_of(self, whole: np.ndarray, rank: int, at: At) -> np.ndarray:
        """What the rank should have of a layer's whole output."""
        rows = whole[self.share_of(rank, at.microbatch)]
        model = self.traces[rank].place["model"]
        return rows[self.placement_of(rank, at.layer).index(model, rows.shape)]

    def having(self, kind: str, at: At) -> tuple[Pieces, np.ndarray]:
        """By rank, what it has and should have of a layer's output, or of its gradient; and the whole."""
        whole = getattr(self.serial, kind).get(at)
        if whole is None:
            return {}, np.zeros(0)
        found = {}
        for rank, of in enumerate(self.traces):
            owner = of.owners.get(at.layer)
            if at in getattr(of, kind) and owner in (None, of.place["model"]):
                found[rank] = getattr(of, kind)[at], self.piece_of(whole, rank, at)
        return found, whole

    def different(self, kind: str, at: At) -> Iterator[tuple[Pieces, int, float]]:
        """(what all ranks have, rank, error) of those ranks that have something else of it than they should."""
        pieces, whole = self.having(kind, at)
        for rank, error in self.compare(pieces, whole):
            yield pieces, rank, error

    def having_of_weight(self, name: str, whole: np.ndarray) -> Pieces:
        """By rank, what it holds itself of a weight, and should hold; only where the shapes are the same."""
        found = {
            rank: (of.own_before[name], whole[of.pieces.get(name, ())])
            for rank, of in enumerate(self.traces)
            if name in of.own_before
        }
        return {rank: (got, expected) for rank, (got, expected) in found.items() if got.shape == expected.shape}

    def placement_of(self, rank: int, layer: str) -> Placement:
        """How a layer's output lies on the rank's model axis."""
        return self.traces[rank].placements.get(layer, WHOLE)

    def inner_edges(self, layer: str, rank: int) -> Edges:
        """By axis of an image, whether another rank's tile is before ours, and after."""
        placement, model = self.placement_of(rank, layer), self.traces[rank].place["model"]
        edges = {2: (False, False), 3: (False, False)}
        for (axis, size), state in zip(placement.mesh.items(), placement.states):
            if isinstance(state, Shard) and state.axis in edges:
                at = placement.mesh.index(model, axis)
                edges[state.axis] = at > 0, at < size - 1
        return edges

    def layer_of(self, name: str, network: Module | None = None) -> Module:
        """The layer of this name, of the serial network unless another is given."""
        layer = self.network if network is None else network
        for child in name.split("."):
            layer = layer._modules[child]
        return layer

    def neighbours(self, rank: int, axis: str) -> list[int]:
        """The ranks that differ from this one only in their place along an axis, itself included."""
        own = self.traces[rank].place
        return [
            other
            for other, of_other in enumerate(self.traces)
            if all(of_other.place[name] == index for name, index in own.items() if name != axis)
        ]

    def magnitudes_of(self, kind: str, name: str, whole: np.ndarray) -> np.ndarray:
        """What an error is judged against: the magnitudes that were added, or the values where none are known."""
        if self.run is None or self.run.magnitudes is None:
            return whole
        return self.run.magnitudes[self.step][kind].get(name, whole)

    def compare(self, pieces: Pieces, whole: np.ndarray) -> Iterator[tuple[int, float]]:
        """(rank, error) of those that differ. Equal infinities do not."""
        finite = np.abs(whole[np.isfinite(whole)])
        largest = float(finite.max()) if finite.size else 0.0
        for rank, (got, expected) in pieces.items():
            if got.shape != expected.shape:
                yield rank, np.inf
                continue
            wrong = (got != expected) & ~((got != got) & (expected != expected))
            ours, theirs = expected[wrong], got[wrong]
            if not (np.isfinite(ours) & np.isfinite(theirs)).all():
                yield rank, np.inf
                continue
            error = float(np.abs(theirs - ours).max()) if ours.size else 0.0
            if error > self.tolerance * largest:
                yield rank, relative(error, largest, float(np.abs(theirs).max()))

    def differ(self, rank: int, got: np.ndarray, expected: np.ndarray) -> bool:
        """Whether these are not the same up to rounding."""
        return any(True for _ in self.compare({rank: (got, expected)}, expected))

    def owner_of(self, name: str, got: np.ndarray, whole: np.ndarray, magnitudes: np.ndarray) -> int:
        """The first rank whose piece of the weight is wrong in the gathered array."""
        for rank, of in enumerate(self.traces):
            index = of.pieces.get(name, ())
            if name not in of.own_before or got.shape != whole.shape:
                continue
            if any(True for _ in self.compare({rank: (got[index], whole[index])}, magnitudes)):
                return rank
        return next((rank for rank, of in enumerate(self.traces) if name in of.own_before), 0)


def relative(difference: float, serial: float, parallel: float) -> float:
    """A difference / the largest serial value; or / the largest value of both, if the serial one is negligible."""
    if not difference:
        return 0.0
    if not math.isfinite(difference):
        return math.inf
    return difference / (serial if difference < _BESIDE * serial else max(serial, parallel))
