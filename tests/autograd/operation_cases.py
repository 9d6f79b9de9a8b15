"""Inputs for every primitive: what the gradient check, the dtype tests and the read-only tests all run through."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from parallel_dl import convolution
from parallel_dl.autograd import ops


class Case(NamedTuple):
    """One call of a primitive: positional arguments, keyword arguments, and what is special about it."""

    kind: str  # "ordinary", "broadcast", "zero-size" or "0-d"
    arguments: tuple
    static: dict[str, Any]


def primitives() -> dict[str, Callable]:
    """Every primitive, found by walking the modules of `ops`: "module.name" -> operation."""
    found = {}
    for module in pkgutil.iter_modules(ops.__path__):
        loaded = importlib.import_module(f"{ops.__name__}.{module.name}")
        for name, value in vars(loaded).items():
            if getattr(value, "is_primitive", False) and value.__module__ == loaded.__name__:
                found[f"{module.name}.{name}"] = value
    return found


def spread(*shape: int, seed: int = 0, offset: float = 0.02) -> np.ndarray:
    """Distinct values 0.05 apart around 0, none nearer to 0 than 0.02: no kink lies within a difference's step."""
    size = int(np.prod(shape))
    order = np.random.default_rng(seed + 1000 * size).permutation(size)
    return (0.05 * (order - size // 2) + offset).reshape(shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    """Values from 0.5 on."""
    return np.asarray(np.abs(spread(*shape, seed=seed)) + 0.5)


def relaid(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in other memory: "transposed" (Fortran order), "strided" (every second element) or "negative"."""
    if layout == "transposed":
        return array.T.copy(order="C").T
    if layout == "strided":
        wide = np.full([2 * length for length in array.shape], np.nan)
        view = wide[(..., *(slice(None, None, 2) for _ in array.shape))]
        view[...] = array
        return view
    backwards = (..., *(slice(None, None, -1) for _ in array.shape))
    return array[backwards].copy(order="C")[backwards]


LAYOUTS = ("transposed", "strided", "negative")


def _binary(left: Callable = spread, right: Callable = spread, apart: bool = False) -> list[Case]:
    # apart: the operands never meet, so that maximum and minimum have no kink nearby
    other = {"offset": -0.02} if apart else {}
    pairs = [
        ("ordinary", (3, 4), (3, 4)),
        ("ordinary", (5,), (5,)),
        ("broadcast", (2, 3, 4), (4,)),
        ("broadcast", (4,), (2, 3, 4)),
        ("broadcast", (3, 1), (1, 4)),
        ("broadcast", (2, 1, 3), (4, 1)),
        ("broadcast", (2, 3), ()),
        ("broadcast", (1, 1), (3,)),
        ("zero-size", (0, 3), (0, 3)),
        ("zero-size", (0, 3), (1, 3)),
        ("zero-size", (2, 0), ()),
        ("zero-size", (3,), (0, 3)),
        ("0-d", (), ()),
    ]
    cases = [Case(kind, (left(*a), right(*b, seed=1, **other)), {}) for kind, a, b in pairs]
    return [*cases, Case("ordinary", (left(3, 2), 2.5), {}), Case("ordinary", (1.5, right(3, 2)), {})]


def _unary(values: Callable = spread) -> list[Case]:
    return [
        Case("ordinary", (values(3, 4),), {}),
        Case("ordinary", (values(2, 3, 2),), {}),
        Case("zero-size", (values(0, 3),), {}),
        Case("0-d", (values(),), {}),
    ]


def _reduction(of_nothing: bool = True) -> list[Case]:
    axes: tuple = (None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2), ())
    cases = [Case("ordinary", (spread(2, 3, 4),), {"axis": axis, "keepdims": keep}) for axis in axes for keep in (0, 1)]
    cases += [
        Case("zero-size", (spread(0, 3),), {"axis": 1}),
        Case("zero-size", (spread(2, 0, 3),), {"axis": (0, -1), "keepdims": True}),
        Case("0-d", (spread(),), {}),
        Case("0-d", (spread(),), {"axis": ()}),
        Case("0-d", (spread(),), {"axis": 0}),
    ]
    return [*cases, Case("zero-size", (spread(0, 3),), {"axis": 0})] if of_nothing else cases


def _along_axis() -> list[Case]:
    return [
        Case("ordinary", (spread(3, 4),), {}),
        Case("ordinary", (spread(2, 3, 4) * 20,), {"axis": 1}),
        Case("ordinary", (spread(5),), {"axis": 0}),
        Case("zero-size", (spread(0, 4),), {}),
        Case("zero-size", (spread(4, 0),), {}),
        Case("0-d", (spread(),), {}),
    ]


def _matmul(*shapes: tuple) -> Case:
    kind = "zero-size" if any(0 in shape for shape in shapes) else "ordinary"
    if len({shape[:-2] for shape in shapes}) > 1:
        kind = "broadcast"
    return Case(kind, tuple(spread(*shape, seed=i) for i, shape in enumerate(shapes)), {})


def _index(*shape: int, index: Any) -> Case:
    return Case("zero-size" if 0 in shape else "ordinary" if shape else "0-d", (spread(*shape),), {"index": index})


def _batch_norm() -> list[Case]:
    return [
        Case("ordinary", (spread(5, 3),), {}),
        Case("ordinary", (spread(4, 3, 2), positive(3), spread(3, seed=1)), {"eps": 0.1}),
        Case("ordinary", (spread(3, 2, 2, 2), positive(2), spread(2, seed=1)), {}),
        Case("ordinary", (spread(1, 2, 4, 1), positive(2), None), {}),
        Case("zero-size", (spread(0, 3, 2, 2), positive(3), spread(3)), {}),
        Case("zero-size", (spread(4, 0), spread(0), spread(0)), {}),
    ]


def _conv2d(x_shape: tuple, weight_shape: tuple, bias: bool = False, **static: Any) -> Case:
    kind = "zero-size" if 0 in (*x_shape, *weight_shape) else "ordinary"
    arrays = (spread(*x_shape), spread(*weight_shape, seed=1), spread(weight_shape[0]) if bias else None)
    return Case(kind, arrays, static)


def _pooling() -> list[Case]:
    return [
        Case("ordinary", (spread(2, 3, 4, 6),), {"kernel": 2}),
        Case("ordinary", (spread(2, 2, 5, 7),), {"kernel": 3, "stride": 2}),
        Case("ordinary", (spread(2, 2, 5, 4),), {"kernel": (3, 2), "stride": (2, 3), "padding": 1}),
        Case("ordinary", (spread(1, 1, 5, 4),), {"kernel": 1, "stride": 2}),
        Case("zero-size", (spread(0, 2, 4, 4),), {"kernel": 2}),
        Case("zero-size", (spread(2, 0, 4, 4),), {"kernel": 3, "padding": 1}),
    ]


_mask = np.array([[True, False, True], [False, False, True]])

CASES: dict[str, list[Case]] = {
    "elementwise.add": _binary(),
    "elementwise.subtract": _binary(),
    "elementwise.multiply": _binary(),
    "elementwise.divide": _binary(right=positive),
    "elementwise.maximum": _binary(apart=True),
    "elementwise.minimum": _binary(apart=True),
    "elementwise.power": [
        *_binary(left=positive),
        *(Case("ordinary", (spread(3, 2), exponent), {}) for exponent in (0, 1, 2, 3, 4, 2.0)),
        Case("ordinary", (positive(3, 2), -1.5), {}),
        Case("ordinary", (np.zeros(2), 0), {}),
    ],
    "elementwise.negative": _unary(),
    "elementwise.absolute": _unary(),
    "elementwise.exp": _unary(),
    "elementwise.log": _unary(positive),
    "elementwise.sqrt": _unary(positive),
    "elementwise.tanh": _unary(),
    "elementwise.sigmoid": _unary(),
    "elementwise.relu": _unary(),
    "elementwise.gelu": _unary(),
    "linear_algebra.matmul": [
        _matmul((3, 4), (4, 2)),
        _matmul((4,), (4,)),
        _matmul((3, 4), (4,)),
        _matmul((4,), (4, 2)),
        _matmul((2, 3, 4), (2, 4, 2)),
        _matmul((2, 3, 4), (4, 2)),
        _matmul((3, 4), (2, 4, 2)),
        _matmul((2, 1, 3, 4), (3, 4, 2)),
        _matmul((2, 3, 4), (4,)),
        _matmul((4,), (2, 4, 3)),
        _matmul((0, 4), (4, 2)),
        _matmul((3, 0), (0, 2)),
        _matmul((3, 4), (4, 0)),
        _matmul((2, 3, 0), (0, 2)),
        _matmul((0, 3, 4), (4, 2)),
        _matmul((0,), (0,)),
    ],
    "linear_algebra.linear": [
        Case("ordinary", (spread(3, 4), spread(2, 4, seed=1)), {}),
        Case("ordinary", (spread(3, 4), spread(2, 4, seed=1), None), {}),
        Case("ordinary", (spread(3, 4), spread(2, 4, seed=1), spread(2)), {}),
        Case("ordinary", (spread(4), spread(2, 4, seed=1), spread(2)), {}),
        Case("broadcast", (spread(2, 3, 4), spread(5, 4, seed=1), spread(5)), {}),
        Case("zero-size", (spread(0, 4), spread(2, 4, seed=1), spread(2)), {}),
        Case("zero-size", (spread(3, 0), spread(2, 0), spread(2)), {}),
        Case("zero-size", (spread(3, 4), spread(0, 4), spread(0)), {}),
        Case("zero-size", (spread(2, 0, 4), spread(3, 4), spread(3)), {}),
        Case("zero-size", (spread(2, 3, 0), spread(3, 0), spread(3)), {}),
    ],
    "reductions.sum": _reduction(),
    "reductions.mean": _reduction(of_nothing=False),
    "reductions.max": _reduction(of_nothing=False),
    "shaping.reshape": [
        Case("ordinary", (spread(3, 4),), {"shape": (2, 6)}),
        Case("ordinary", (spread(3, 4),), {"shape": -1}),
        Case("ordinary", (spread(1, 1),), {"shape": ()}),
        Case("zero-size", (spread(0, 4),), {"shape": (2, 0)}),
        Case("0-d", (spread(),), {"shape": (1, 1)}),
    ],
    "shaping.transpose": [
        Case("ordinary", (spread(2, 3, 4),), {}),
        Case("ordinary", (spread(2, 3, 4),), {"axes": (1, 2, 0)}),
        Case("ordinary", (spread(2, 3, 4),), {"axes": (-1, 0, -2)}),
        Case("zero-size", (spread(2, 0, 4),), {"axes": (2, 0, 1)}),
        Case("0-d", (spread(),), {}),
        Case("0-d", (spread(),), {"axes": ()}),
    ],
    "shaping.broadcast_to": [
        Case("broadcast", (spread(3, 1),), {"shape": (2, 3, 4)}),
        Case("ordinary", (spread(3, 2),), {"shape": (3, 2)}),
        Case("zero-size", (spread(0, 1),), {"shape": (2, 0, 3)}),
        Case("zero-size", (spread(1, 3),), {"shape": (0, 3)}),
        Case("0-d", (spread(),), {"shape": (2, 3)}),
        Case("0-d", (spread(),), {"shape": ()}),
    ],
    "shaping.index": [
        _index(3, 4, index=1),
        _index(3, 4, index=np.int64(-1)),
        _index(3, 4, index=(1, 2)),
        _index(3, 4, index=(slice(None, None, -2), slice(1, 3))),
        _index(3, 4, index=(None, Ellipsis, 0)),
        _index(3, 4, index=slice(2, 2)),
        _index(3, 4, index=[0, 2, 0]),
        _index(3, 4, index=np.array([[0, 2], [0, 0]])),
        _index(3, 4, index=(np.array([0, 0, 2]), np.array([1, 1, 3]))),
        _index(2, 3, index=_mask),
        _index(3, 4, index=(slice(None), np.array([3, 3]))),
        _index(0, 4, index=slice(None)),
        _index(0, 4, index=np.array([], int)),
        _index(index=()),
        _index(index=None),
    ],
    "shaping.concatenate": [
        Case("ordinary", (spread(2, 3), spread(4, 3, seed=1)), {}),
        Case("ordinary", (spread(2, 3), spread(2, 1, seed=1), spread(2, 2)), {"axis": -1}),
        Case("zero-size", (spread(2, 3), spread(0, 3)), {}),
        Case("zero-size", (spread(0, 3), spread(0, 2)), {"axis": 1}),
    ],
    "shaping.split": [
        Case("ordinary", (spread(5, 3),), {"sizes": (2, 3)}),
        Case("ordinary", (spread(2, 6),), {"sizes": [1, 0, 5], "axis": -1}),
        Case("ordinary", (spread(4),), {"sizes": (4,)}),
        Case("zero-size", (spread(0, 3),), {"sizes": (0, 0)}),
        Case("zero-size", (spread(3, 0),), {"sizes": (1, 2)}),
    ],
    "classification.log_softmax": _along_axis(),
    "classification.softmax": _along_axis(),
    "classification.cross_entropy": [
        Case("ordinary", (spread(3, 4),), {"targets": np.array([0, 3, 3])}),
        Case("ordinary", (spread(3, 4) * 50,), {"targets": np.array([1, 0, 2]), "total": 7}),
        Case("ordinary", (spread(2, 3, 4),), {"targets": np.array([[0, 1, 2], [3, 0, 0]], np.uint8), "total": 6.0}),
        Case("ordinary", (spread(4),), {"targets": np.array(2)}),
        Case("zero-size", (spread(0, 4),), {"targets": np.array([], int), "total": 5}),
    ],
    "classification.logistic_loss": [
        Case("ordinary", (spread(3, 4),), {"targets": np.eye(3, 4)}),
        Case("ordinary", (spread(3, 4) * 50,), {"targets": positive(3, 4) - 0.5, "total": 7}),
        Case("ordinary", (spread(2, 3, 4),), {"targets": (spread(2, 3, 4) > 0) * 1, "total": 6.0}),
        Case("ordinary", (spread(4),), {"targets": np.array([0, 1, 1, 0], np.uint8)}),
        Case("zero-size", (spread(0, 4),), {"targets": np.ones((0, 4), int), "total": 5}),
        Case("zero-size", (spread(4, 0),), {"targets": np.ones((4, 0)), "total": 4}),
        Case("0-d", (spread(),), {"targets": np.array(0.25)}),
    ],
    "sparsity.where": [
        *(Case(c.kind, c.arguments, {"mask": np.array(True)}) for c in _binary() if c.kind != "broadcast"),
        Case("ordinary", (spread(2, 3), spread(2, 3, seed=1)), {"mask": _mask}),
        Case("ordinary", (spread(2, 3), 0.0), {"mask": _mask}),
        Case("broadcast", (spread(3), spread(2, 1)), {"mask": _mask}),
        Case("broadcast", (spread(3), spread(2, 1)), {"mask": _mask[0]}),
        Case("broadcast", (spread(2, 3), spread(3)), {"mask": _mask[:, :1]}),
    ],
    "sparsity.dropout": [
        Case("ordinary", (spread(2, 3),), {"keep": _mask, "p": 0.5}),
        Case("ordinary", (spread(2, 3),), {"keep": _mask, "p": 0}),
        Case("ordinary", (spread(2, 3),), {"keep": np.zeros((2, 3), bool), "p": 1}),
        Case("broadcast", (spread(2, 3),), {"keep": _mask[:, :1], "p": 0.25}),
        Case("zero-size", (spread(0, 3),), {"keep": np.ones((0, 3), bool), "p": 0.5}),
        Case("0-d", (spread(),), {"keep": np.array(True), "p": 0.5}),
    ],
    "convolution.conv2d": [
        _conv2d((2, 3, 5, 4), (4, 3, 3, 3)),
        _conv2d((2, 3, 5, 4), (4, 3, 3, 3), bias=True, padding=1),
        _conv2d((2, 4, 5, 6), (6, 2, 2, 3), bias=True, groups=2, stride=(1, 2), padding=(0, 2)),
        _conv2d((1, 2, 7, 5), (2, 1, 3, 2), groups=2, dilation=(2, 1), padding=((0, 1), (2, 0))),
        _conv2d((2, 3, 4, 4), (2, 3, 1, 1), stride=3),
        *(_conv2d((2, 2, 6, 5), (3, 2, 3, 3), bias=True, padding=1, method=name) for name in convolution.METHODS),
        _conv2d((0, 2, 5, 5), (3, 2, 3, 3), bias=True),
        _conv2d((2, 0, 5, 5), (3, 0, 3, 3), bias=True),
        _conv2d((2, 2, 5, 5), (0, 2, 3, 3), bias=True),
    ],
    "pooling.max_pool2d": _pooling(),
    "pooling.avg_pool2d": _pooling(),
    "normalization.local_response_norm": [
        Case("ordinary", (spread(2, 7, 2),), {"size": 5, "alpha": 0.5}),
        Case("ordinary", (spread(2, 5, 2, 2),), {"size": 4, "alpha": 2.0, "beta": 1.25, "k": 2.0}),
        Case("ordinary", (spread(2, 6, 3),), {"size": 3, "alpha": 3.0, "groups": 2}),
        Case("ordinary", (spread(2, 4),), {"size": 9, "alpha": 3.0, "groups": 4}),
        Case("zero-size", (spread(0, 4, 2),), {"size": 5}),
        Case("zero-size", (spread(2, 0, 2),), {"size": 5}),
    ],
    "normalization.layer_norm": [
        Case("ordinary", (spread(3, 4),), {}),
        Case("ordinary", (spread(2, 3, 4), positive(4), spread(4, seed=1)), {}),
        Case("ordinary", (spread(2, 3, 4), positive(3, 4), spread(3, 4, seed=1)), {"dimensions": 2, "eps": 0.1}),
        Case("ordinary", (spread(5), None, spread(5, seed=1)), {}),
        Case("zero-size", (spread(0, 4), positive(4), spread(4)), {}),
        Case("zero-size", (spread(3, 0), spread(0), spread(0)), {}),
    ],
    "normalization.batch_norm": [
        *_batch_norm(),
        Case("ordinary", (spread(4, 3), positive(3), spread(3)), {"mean": spread(3, seed=2), "variance": positive(3)}),
        Case("ordinary", (spread(4, 3, 2),), {"mean": spread(3, seed=2), "variance": positive(3)}),
        Case("zero-size", (spread(0, 3), positive(3), spread(3)), {"mean": spread(3), "variance": positive(3)}),
    ],
    "normalization.synchronized_batch_norm": [
        Case(case.kind, case.arguments, {**case.static, "total": lambda sums: sums}) for case in _batch_norm()
    ],
}

# What has no case of a kind, because it does not exist.
NO_SCALARS = {
    "linear_algebra.matmul",
    "linear_algebra.linear",
    "shaping.concatenate",
    "shaping.split",
    "classification.cross_entropy",
    "convolution.conv2d",
    *("pooling.max_pool2d", "pooling.avg_pool2d"),
    *(f"normalization.{name}" for name in ("local_response_norm", "layer_norm", "batch_norm")),
    "normalization.synchronized_batch_norm",
}
BROADCASTING = {
    *(f"elementwise.{name}" for name in ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum")),
    *("linear_algebra.matmul", "linear_algebra.linear", "shaping.broadcast_to", "sparsity.where", "sparsity.dropout"),
}


def every_case() -> Iterator[tuple[str, Callable, Case]]:
    """(id, operation, case) for the whole table."""
    operations = primitives()
    for name, cases in CASES.items():
        for number, case in enumerate(cases):
            yield f"{name}-{number}-{case.kind}", operations[name], case
