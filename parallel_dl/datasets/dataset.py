"""A data set is five things: training samples and targets, test samples and targets, and the number of classes.

Targets are class numbers, or floats of any shape: then there are no classes, and the network learns a regression.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from parallel_dl.errors import InputError, number_of, unknown_name
from parallel_dl.files import require_memory

DTYPES = ("float32", "float64")
PARTS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 1_000_000  # a wild label would otherwise size a network's last layer


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images or feature vectors with targets, split into training and test.

    name: its name in reports. x_train, x_test: (n, channels, height, width), or (n, features); float32 or float64,
    images scaled to [0, 1]. y_train, y_test: (n,) int64 labels, 0 to classes - 1; or without classes (n, ...) targets,
    of the type of x.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int | None

    @property
    def outputs(self) -> int:
        """The number of network outputs per sample: one per class, or per value of a target."""
        return math.prod(self.y_train.shape[1:]) if self.classes is None else self.classes

    def with_flat_targets(self) -> Dataset:
        """The same data with targets (n, outputs), the shape that a final fully connected layer outputs."""
        if self.classes is not None:
            return self
        flat = {name: getattr(self, name).reshape(-1, self.outputs) for name in ("y_train", "y_test")}
        return dataclasses.replace(self, **flat)

    def with_classes(self) -> Dataset:
        """The same data, with one float per sample converted to classes if all are class numbers; else unchanged."""
        targets = [self.y_train, self.y_test]
        if self.classes is not None or any(y.size != len(y) for y in targets):
            return self
        if any(((y < 0) | (y >= MOST_CLASSES) | (y != np.floor(y))).any() for y in targets):
            return self
        y_train, y_test = (y.reshape(-1).astype(np.int64) for y in targets)
        classes = int(max(y_train.max(), y_test.max())) + 1
        return dataclasses.replace(self, y_train=y_train, y_test=y_test, classes=classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (channels, height, width), or (features,)."""
        return self.x_train.shape[1:]

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: np.ndarray,
        y_train: np.ndarray,
        x_test: np.ndarray,
        y_test: np.ndarray,
        *,
        dtype: DTypeLike = "float32",
        scale: float = 255,
        classes: int | None = None,
        called: Sequence[str] = PARTS,
    ) -> Dataset:
        """Check and convert four raw arrays.

        x: (n, channels, height, width), (n, height, width), which becomes (n, 1, height, width), or (n, features).
        uint8 is divided by `scale`; other real types are used as they are. y: (n,) whole numbers of any type are class
        numbers; floats in both parts, if `classes` is not given, are regression targets (n, ...). By default, the
        number of classes is the largest label plus one. `called` gives the names of the arrays in errors.

        Raises InputError: another shape or type, no samples, NaN or infinity or a value beyond `dtype` (how many, and
        where first), a label that is not a whole number from 0 to 999999, or not below `classes`, lengths or shapes
        that do not match, only one of training and test scaled, more than fits in memory.
        """
        dtype = checked_dtype(dtype)
        x = [_samples(np.asarray(array), where, dtype, scale) for array, where in zip((x_train, x_test), called[::2])]
        _require_one_scale(np.asarray(x_train), np.asarray(x_test), called[0], called[2], scale)
        given = [np.asarray(array) for array in (y_train, y_test)]
        floats = classes is None and all(array.dtype.kind == "f" for array in given)
        if floats:
            y = [_targets(array, where, dtype) for array, where in zip(given, called[1::2])]
        else:
            most = MOST_CLASSES if classes is None else classes
            y = [_labels(array, where, most) for array, where in zip(given, called[1::2])]
        what = "target" if floats else "label"
        for images, own, x_where, y_where in zip(x, y, called[::2], called[1::2]):
            if len(images) != len(own):
                given_for = f"{number_of(len(own), what)} for the {number_of(len(images), 'sample')} of {x_where}"
                raise InputError(f"{y_where}: {given_for}; expected one per sample")
        if x[0].shape[1:] != x[1].shape[1:]:
            raise InputError(
                f"{called[2]}: samples of shape {x[1].shape[1:]}, but {called[0]} has {x[0].shape[1:]}; "
                "expected the same shape for training and test"
            )
        if floats:
            if y[0].shape[1:] != y[1].shape[1:]:
                raise InputError(
                    f"{called[3]}: targets of shape {y[1].shape[1:]}, but {called[1]} has {y[0].shape[1:]}; "
                    "expected the same shape for training and test"
                )
            return cls(name, x[0], y[0], x[1], y[1], classes=None)
        found = 1 + int(max(y[0].max(), y[1].max()))
        return cls(name, x[0], y[0], x[1], y[1], classes=found if classes is None else classes)


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """float32 or float64 as a NumPy dtype; InputError for anything else."""
    try:
        name = np.dtype(dtype).name if dtype is not None else "None"
    except (TypeError, ValueError):
        name = str(dtype)
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return np.dtype(name)


def _require_real(array: np.ndarray, where: str) -> None:
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where}: element type {array.dtype}; expected real floats or integers")


def _require_one_scale(train: np.ndarray, test: np.ndarray, train_where: str, test_where: str, scale: float) -> None:
    """Raises InputError if only one of training and test samples is scaled, here or before."""
    for one, other in ((train, test), (test, train)):
        if one.dtype == np.uint8 and other.dtype != np.uint8 and not _is_scaled(other, scale):
            raise InputError(
                f"{test_where}: {test.dtype}, but {train_where} is {train.dtype}: of the two only uint8 would be "
                f"divided by {scale:g}; expected the same type for training and test, or values already divided by it"
            )
        if _are_fractions(one) and _are_whole(other):
            raise InputError(
                f"{test_where}: up to {test.max():g}, but {train_where} up to {train.max():g}: one of the two has "
                "fractions in 0..1, the other whole numbers; expected the same scale for training and test"
            )


def _are_fractions(array: np.ndarray) -> bool:
    """Whether these are numbers in 0..1, and not only 0 and 1."""
    within = array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1
    return bool(within and (array != np.floor(array)).any())


def _is_scaled(array: np.ndarray, scale: float) -> bool:
    """Whether these are whole numbers up to `scale`, divided by it."""
    if not _are_fractions(array):
        return False
    raw = array.astype(np.float64) * scale
    return bool((np.abs(raw - np.round(raw)) <= scale * np.finfo(array.dtype).eps).all())


def _are_whole(array: np.ndarray) -> bool:
    """Whether these are whole numbers, some above 1, as in images that are not scaled."""
    return bool(array.dtype != np.uint8 and array.min() >= 0 and array.max() > 1 and (array == np.floor(array)).all())


def _samples(array: np.ndarray, where: str, dtype: np.dtype, scale: float) -> np.ndarray:
    """Raw images or features as a C-contiguous (n, channels, height, width) or (n, features) array of `dtype`."""
    _require_real(array, where)
    if array.ndim not in (2, 3, 4):
        raise InputError(
            f"{where}: shape {array.shape}; expected (n, features), (n, height, width) or (n, channels, height, width)"
        )
    if array.size == 0:
        what = "no samples" if len(array) == 0 else "samples without values"
        raise InputError(f"{where}: {what} (shape {array.shape}); expected at least one in every dimension")
    require_memory(f"{where}: shape {array.shape} as {dtype.name}", array.size * dtype.itemsize)
    if array.dtype == np.uint8:
        x = np.divide(array, scale, dtype=dtype, order="C")
    else:
        x = _finite(array, where, dtype)
    return x[:, np.newaxis] if x.ndim == 3 else x


def _finite(array: np.ndarray, where: str, dtype: np.dtype) -> np.ndarray:
    """The values as `dtype`, C-contiguous."""
    with np.errstate(over="ignore"):  # a value beyond the range becomes infinity, and is reported just below
        x = np.ascontiguousarray(array, dtype=dtype)
    bad = ~np.isfinite(x)
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), bad.shape)
        count = np.count_nonzero(bad)
        raise InputError(
            f"{where}: {count} of {number_of(bad.size, 'value')} {'is' if count == 1 else 'are'} not finite "
            f"as {dtype.name}, the first is {array[first]} at {[int(i) for i in first]}; expected finite numbers"
        )
    return x


def _targets(array: np.ndarray, where: str, dtype: np.dtype) -> np.ndarray:
    """Raw float targets (n, ...) as `dtype`."""
    if array.ndim == 0:
        raise InputError(f"{where}: targets of shape {array.shape}; expected (n, ...), one target per sample")
    if array.size == 0:
        what = "no targets" if len(array) == 0 else "targets without values"
        raise InputError(f"{where}: {what} (shape {array.shape}); expected at least one in every dimension")
    values = array.size // len(array)
    if values > MOST_CLASSES:
        raise InputError(f"{where}: targets of shape {array.shape[1:]}; expected at most {MOST_CLASSES:,} values each")
    return _finite(array, where, dtype)


def _labels(array: np.ndarray, where: str, classes: int) -> np.ndarray:
    """Raw labels, all below `classes`, as an (n,) int64 array."""
    _require_real(array, where)
    if array.ndim != 1:
        raise InputError(
            f"{where}: labels of shape {array.shape}; expected (n,), one class number per sample, or floats (n, ...); "
            "one-hot labels become class numbers by y.argmax(-1)"
        )
    if len(array) == 0:
        raise InputError(f"{where}: no labels; expected at least one")
    values = array.astype(np.float64) if array.dtype.kind == "f" else array  # float16 cannot hold MOST_CLASSES
    bad = np.flatnonzero(~((values >= 0) & (values < classes) & (values == np.floor(values))))
    if len(bad):
        hint = ", or floats in both parts: a regression" if array.dtype.kind == "f" else ""
        raise InputError(
            f"{where}: {len(bad)} of {number_of(len(array), 'label')} cannot be a class number, "
            f"the first is {array[bad[0]]} at [{bad[0]}]; expected whole numbers from 0 to {classes - 1}{hint}"
        )
    return array.astype(np.int64)
