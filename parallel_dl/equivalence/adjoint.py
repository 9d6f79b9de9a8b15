"""The adjoint test: is the backward pass of a function that communicates the adjoint of its forward pass?

Over all ranks together, a function F that is linear in x and its backward pass F* satisfy <F x, y> = <x, F* y> for
every x and y. Both are drawn at random, independently of each other and on every rank: with the same draw on all ranks,
a shift in the wrong direction would pass. A replicated value is one value, even though each rank holds it: it is drawn
once, and counted once.

After Hewett and Grady, "A Linear Algebraic Approach to Model Parallelism in Deep Learning", arXiv 2006.03108.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from parallel_dl.autograd import Tensor, no_grad
from parallel_dl.mpi import Communicator

KINDS = ("varying", "replicated", "rooted")
BOUNDS = {"float32": 1e-4, "float64": 1e-10}
_SHOWN = 6  # ways between two ranks that a message names


def assert_adjoint(
    forward: Callable[[Any], Any],
    shape: Sequence[int],
    comm: Communicator,
    x: str = "varying",
    y: str = "varying",
    root: int = 0,
    dtype: str = "float64",
    seed: int = 0,
    bound: float | None = None,
) -> None:
    """Raises AssertionError, on every rank, unless backward through `forward` is its adjoint; all ranks call it.

    `forward(x)` takes and returns a Tensor; it is linear in x and communicates over `comm`. `shape` is that of x on
    this rank; shapes may differ between ranks and may be empty. `x` and `y` say how input and output are distributed
    over the ranks:

    - "varying": every rank has its own, a slice, a summand, or a copy that it uses in its own way;
    - "replicated": one value that every rank has; backward relies on every rank using it in the same way;
    - "rooted": on rank `root` only; x is None, and y not looked at, on the others.

    Both sides may differ by `bound` (1e-10 in float64, 1e-4 in float32) times the larger one of |F x| |y| and
    |x| |F* y|. The message gives both sides, their ratio and what it points to, and between which ranks they differ;
    for that, `forward` is called several times. ValueError for an unknown kind or dtype.
    """
    __tracebackhide__ = True
    if x not in KINDS or y not in KINDS:
        raise ValueError(f"x={x!r}, y={y!r}: expected one of {', '.join(KINDS)}")
    if dtype not in BOUNDS:
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(BOUNDS)}")
    test = _Test(forward, tuple(shape), comm, x, y, root, dtype, seed)
    faults = test.faults(BOUNDS[dtype] if bound is None else bound)
    if faults:
        raise AssertionError("\n  ".join(faults))


class _Test:
    """One function and its draws; every method is collective."""

    def __init__(
        self,
        forward: Callable[[Any], Any],
        shape: tuple[int, ...],
        comm: Communicator,
        x_kind: str,
        y_kind: str,
        root: int,
        dtype: str,
        seed: int,
    ) -> None:
        self.forward, self.comm, self.x_kind, self.y_kind, self.root = forward, comm, x_kind, y_kind, root
        self.dtype, self.seed = np.dtype(dtype), seed
        self.x = self.draw("x", x_kind, shape)

    def draw(self, role: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """This rank's values; replicated values are the same on every rank."""
        rank = 0 if kind == "replicated" else self.comm.rank
        return np.random.default_rng([self.seed, *role.encode(), rank]).standard_normal(shape).astype(self.dtype)

    def owner(self, kind: str) -> int | None:
        """The one rank that counts; None: all do."""
        return {"varying": None, "replicated": 0, "rooted": self.root}[kind]

    def counts(self, kind: str) -> bool:
        return self.owner(kind) in (None, self.comm.rank)

    def value(self, x: np.ndarray) -> Any:
        """F x; every rank's x is given, and not looked at where it is rooted elsewhere."""
        absent = self.x_kind == "rooted" and self.comm.rank != self.root
        self.leaf = None if absent else Tensor(x.copy(), requires_grad=True)
        return self.forward(self.leaf)

    def gradient(self, result: Any, y: np.ndarray) -> np.ndarray:
        """F* y on this rank, zeros where backward does not reach x."""
        if isinstance(result, Tensor) and result.requires_grad:
            result.backward(y)
        if self.leaf is None or self.leaf.grad is None:
            return np.zeros_like(self.x)
        return np.asarray(self.leaf.grad)

    def faults(self, bound: float) -> list[str]:
        """What is wrong, line by line; the same on every rank."""
        result = self.value(self.x)
        found = np.array(result.data if isinstance(result, Tensor) else result)
        self.y = self.draw("y", self.y_kind, found.shape)
        gradient = self.gradient(result, self.y)
        facts = self.comm.all_gather_object(
            {
                "type": None if isinstance(result, Tensor) else type(result).__name__,
                "forward": _inner(found, self.y) if self.counts(self.y_kind) else 0.0,
                "adjoint": _inner(self.x, gradient) if self.counts(self.x_kind) else 0.0,
                "squares": [
                    [float(np.vdot(a, a).real) for a in pair] if self.counts(kind) else [0.0, 0.0]
                    for kind, pair in ((self.y_kind, (found, self.y)), (self.x_kind, (self.x, gradient)))
                ],
                "value": found if self.y_kind == "replicated" else None,
                "gradient": gradient if self.x_kind == "replicated" else None,
                "reached": self.leaf is None or self.leaf.grad is not None,
            }
        )
        other = next((fact["type"] for fact in facts if fact["type"]), None)
        if other:
            return [f"forward gives a {other}, not a Tensor: autograd has not seen what it does"]
        for kind, what, name in (
            (self.y_kind, "value", "F x"),
            (self.x_kind, "gradient", "the gradient of x"),
        ):
            first, *others = (fact[what] for fact in facts)
            for rank, one in enumerate(others, start=1):
                if kind == "replicated" and not _close(first, one, bound):
                    which = "x" if what == "gradient" else "y"
                    return [
                        f'{name} is not the same on ranks 0 and {rank}, but {which}="replicated" says so:',
                        "a sum over the ranks is missing in backward" if which == "x" else 'is it "varying"?',
                    ]
        forward, adjoint = (sum(fact[side] for fact in facts) for side in ("forward", "adjoint"))
        norms = np.sqrt(np.sum([fact["squares"] for fact in facts], axis=0)).prod(axis=1)
        if abs(forward - adjoint) <= bound * norms.max():
            return []
        lines = [
            "backward is not the adjoint of forward:",
            f"<F x, y> = {forward:.10g}, but <x, F* y> = {adjoint:.10g}",
        ]
        silent = [str(rank) for rank, fact in enumerate(facts) if not fact["reached"]]
        if silent:
            lines.append(f"no gradient reaches x on rank{'s' if len(silent) > 1 else ''} {', '.join(silent)}")
        if not self.is_linear(bound):
            return [*lines, "forward is not linear in x: the test says nothing of other functions"]
        ways = self.ways()
        return [*lines, *self.explained(forward, adjoint, ways, bound), *_between(ways, bound * norms.max())]

    def is_linear(self, bound: float) -> bool:
        """Whether F(x + 2 z) = F x + 2 F z for another z."""
        z = self.draw("z", self.x_kind, self.x.shape)
        with no_grad():
            both, one, other = (np.asarray(self.value(v).data) for v in (self.x + 2 * z, self.x, z))
        return all(self.comm.all_gather_object(_close(both, one + 2 * other, 100 * bound)))

    def ways(self) -> dict[tuple[int, int], tuple[float, float]]:
        """(from rank, to rank) -> <F x, y> and <x, F* y>, where only these two ranks' parts are not zero."""
        sources, targets = (self.ranks_of(kind) for kind in (self.x_kind, self.y_kind))
        own: dict[tuple[int, int], list[float]] = {(i, j): [0.0, 0.0] for i in sources for j in targets}
        for i in sources:
            with no_grad():
                value = np.asarray(self.value(self.only(self.x, self.x_kind, i)).data)
            for j in targets:
                own[i, j][0] = _inner(value, self.y) if self.comm.rank == j else 0.0
        for j in targets:
            gradient = self.gradient(self.value(self.x), self.only(self.y, self.y_kind, j))
            for i in sources:
                own[i, j][1] = _inner(self.x, gradient) if self.comm.rank == i else 0.0
        of_ranks = self.comm.all_gather_object(own)
        return {
            way: (sum(one[way][0] for one in of_ranks), sum(one[way][1] for one in of_ranks)) for way in of_ranks[0]
        }

    def ranks_of(self, kind: str) -> Iterable[int]:
        owner = self.owner(kind)
        return range(self.comm.size) if owner is None else [owner]

    def only(self, array: np.ndarray, kind: str, rank: int) -> np.ndarray:
        """With zeros on all other ranks; what is replicated is one value, which stays."""
        return array if kind == "replicated" or self.comm.rank == rank else np.zeros_like(array)

    def explained(
        self, forward: float, adjoint: float, ways: dict[tuple[int, int], tuple[float, float]], bound: float
    ) -> list[str]:
        """The ratio of both sides, and what it suggests; it counts if it is the same between all ranks."""
        if forward == 0:
            return []
        ratio, ranks = adjoint / forward, self.comm.size
        largest = max(abs(side) for pair in ways.values() for side in pair)
        if any(abs(theirs - ratio * ours) > 1e3 * bound * largest for ours, theirs in ways.values()):
            return ["their ratio is not the same everywhere: values come back from other ranks, or at other indices"]
        line = f"the backward side is {ratio:.6g} x the forward side everywhere"
        many = f"{ranks} is the number of ranks: a sum over the ranks too many in backward, "
        few = f"{ranks} is the number of ranks: a sum over the ranks is missing in backward, "
        of_ranks = {
            float(ranks): many + "or a division by their number in forward only",
            1 / ranks: few + "or there is a division by their number too many",
        }
        others = {
            -1.0: "the sign is wrong",
            2.0: "something is added up twice in backward",
            0.5: "something is left out, or halved, in backward",
            0.0: "backward gives zeros",
        }
        near = {**others, **(of_ranks if ranks > 1 else {})}  # on two ranks 2 and 1/2 are those of the ranks
        return [line, *(meaning for value, meaning in near.items() if abs(ratio - value) <= 1e-6)]


def _between(ways: dict[tuple[int, int], tuple[float, float]], bound: float) -> list[str]:
    """The ways between ranks in which both sides differ."""
    wrong = [(way, pair) for way, pair in ways.items() if abs(pair[0] - pair[1]) > bound]
    lines = [f"from rank {i} to rank {j}: forward {a:.6g}, backward {b:.6g}" for (i, j), (a, b) in wrong[:_SHOWN]]
    return [*lines, f"... and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else lines


def _inner(a: np.ndarray, b: np.ndarray) -> float:
    """In float64, whatever was computed in."""
    return float(np.vdot(a.astype(float), b.astype(float)))


def _close(a: np.ndarray, b: np.ndarray, bound: float) -> bool:
    if a.shape != b.shape:
        return False
    return not a.size or bool(np.abs(a - b).max() <= bound * max(1e-300, np.abs(a).max(), np.abs(b).max()))
