"""Weights and optimizer states in a file: safetensors, with a note of where they come from.

Arrays are tensors, named by their place ("state.0.momentum"); numbers, strings and the nesting are in the metadata.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_dl.errors import InputError, named, shown
from parallel_dl.files import one_line, opened, replacing, require_regular

if TYPE_CHECKING:
    from parallel_dl.nn import Module

_EXPECTED = "a safetensors file"
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}  # of weights, by their names in the file
_STORED = frozenset("?bBhHiIlLqQefdF")  # NumPy's types that the format has
_FACTS, _STRUCTURE = "parallel_dl", "parallel_dl.structure"
_RESERVED = "__metadata__"  # not a name for a tensor
_DEEPEST = 64


def save(path: str | os.PathLike[str], state: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> None:
    """Writes a state atomically (a reader finds the old file or the new one), `facts` as JSON in its metadata.

    `state` is the `state_dict()` of a network or an optimizer: arrays, NumPy and Python numbers, booleans, None and
    strings, in dictionaries (with strings as keys), lists and tuples; `load` returns the same. Raises InputError for
    anything else in it, and if the file cannot be written; the old file then stays.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: a {type(state).__name__} cannot be saved; expected a dict, as state_dict() gives")
    tensors: dict[str, np.ndarray] = {}
    structure = _taken_apart(state, (), tensors)
    try:
        metadata = {_FACTS: json.dumps(dict(facts or {}))}
        if not _is_flat(state, structure):
            metadata[_STRUCTURE] = json.dumps(structure)
        content = _serialized(tensors, metadata)
    except MemoryError:
        raise InputError(f"{named(path)}: cannot be written (it does not fit into memory a second time)") from None
    except Exception as error:  # safetensors has errors of its own
        raise InputError(f"{named(path)}: cannot be written ({one_line(error)})") from error
    with replacing(path) as file:
        file.write(content)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads what `save` was given; for any other safetensors file, its arrays by name.

    InputError if the file is missing or damaged, or has types that NumPy lacks.
    """
    from safetensors import safe_open

    with opened(path, _EXPECTED):
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is not a mapping)
        except MemoryError:
            raise
        except (KeyError, TypeError, AttributeError) as error:  # a type of numbers that NumPy does not have
            raise InputError(f"{named(path)}: has values of a type unknown to NumPy, {one_line(error)}") from None
        except Exception as error:  # safetensors has errors of its own
            raise InputError(f"{named(path)}: cannot be read ({one_line(error)}); expected {_EXPECTED}") from None
    if _STRUCTURE not in metadata:
        return tensors
    try:
        whole = _put_together(json.loads(metadata[_STRUCTURE]), tensors)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{named(path)}: its structure is damaged ({one_line(error)}); expected {_EXPECTED}") from None
    if not isinstance(whole, dict):
        raise InputError(f"{named(path)}: its structure is damaged; expected {_EXPECTED}")
    return whole


# -- the weights of a network, in pieces ---------------------------------------------------------------------------
class Stored:
    """A weight in a file: its `shape`, and of its values those that are asked for, which alone are read."""

    def __init__(self, name: str, file: Any) -> None:
        self._name, self._file = name, file
        described = file.get_slice(name)
        self.shape, self.kind = tuple(described.get_shape()), described.get_dtype()

    def __getitem__(self, piece: tuple[slice, ...]) -> np.ndarray:
        """The slices (start, stop) of its first axes; () is all of it."""
        if any(part.start == part.stop for part in piece):  # which the file's own slicing refuses at the end
            lengths = [part.stop - part.start for part in piece]
            return np.empty((*lengths, *self.shape[len(lengths) :]), _DTYPES[self.kind])
        return self._file.get_slice(self._name)[piece] if piece else self._file.get_tensor(self._name)


def read(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """The weights that `save` wrote, by name, still in the file; InputError when it is missing or damaged."""
    from safetensors import safe_open

    require_regular(path, _EXPECTED)
    try:
        file = safe_open(path, framework="numpy")
        return {name: Stored(name, file) for name in file.keys()}  # noqa: SIM118  (it is not a mapping)
    except Exception as error:  # safetensors has errors of its own
        raise InputError(f"{named(path)}: cannot be read ({one_line(error)}); expected {_EXPECTED}") from None


def require_fits(path: str | os.PathLike[str], network: Module) -> None:
    """Raises InputError unless the file has the network's parameters and buffers, and no others."""
    weights = read(path)
    stored = {name: weight.shape for name, weight in weights.items()}
    needed = {name: parameter.shape for name, parameter in network.named_parameters()}
    needed |= {name: buffer.shape for name, buffer in network.named_buffers()}
    for name in [*needed, *(other for other in stored if other not in needed)]:
        if name not in stored:
            raise InputError(f"{named(path)}: has no {name} {needed[name]}; it was not saved from this network")
        if name not in needed:
            raise InputError(f"{named(path)}: has {shown(name)}, which this network does not have")
        if stored[name] != needed[name]:
            raise InputError(
                f"{named(path)}: {name} has shape {shown(stored[name])}, this network needs {needed[name]}"
            )
        if weights[name].kind not in _DTYPES:
            raise InputError(f"{named(path)}: {name} is {weights[name].kind}; expected one of {', '.join(_DTYPES)}")


# -- any nesting, as arrays by name and the rest as JSON -----------------------------------------------------------
def _taken_apart(value: Any, place: tuple[str, ...], tensors: dict[str, np.ndarray]) -> Any:
    """The value as JSON: a list whose first item is its kind. Its arrays are added to `tensors`."""
    if len(place) > _DEEPEST:
        raise InputError(f"{shown('.'.join(place))}: is nested too deeply; the limit is {_DEEPEST} levels")
    if isinstance(value, (np.ndarray, np.generic)):
        return ["array" if isinstance(value, np.ndarray) else "scalar", _entered(value, place, tensors)]
    if value is None or type(value) in (bool, str):
        return ["plain", value]
    if type(value) is int:
        return ["int", hex(value)]  # of any number of digits
    if type(value) is float:
        return ["plain", value] if math.isfinite(value) else ["float", repr(value)]
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise InputError(f"{_said(place)} has the key {shown(key)}; expected a string")
        return ["dict", [[key, _taken_apart(item, (*place, key), tensors)] for key, item in value.items()]]
    if type(value) in (list, tuple):
        items = [_taken_apart(item, (*place, str(number)), tensors) for number, item in enumerate(value)]
        return [type(value).__name__, items]
    raise InputError(
        f"{_said(place)} is of type {type(value).__name__}; expected arrays, numbers, strings, "
        "None, and dictionaries, lists and tuples of them"
    )


def _entered(value: Any, place: tuple[str, ...], tensors: dict[str, np.ndarray]) -> str:
    """Adds the array to `tensors`; returns its name there."""
    if value.dtype.char not in _STORED:
        raise InputError(f"{_said(place)} is of type {value.dtype}; expected numbers of 8 to 64 bits")
    name = ".".join(place).encode(errors="replace").decode()
    if name in tensors or name == _RESERVED:  # {"a": {"b": x}, "a.b": y}
        name = f"{name}#{len(tensors)}"
    # in this machine's byte order; ascontiguousarray would give a number an axis
    tensors[name] = np.asarray(value, value.dtype.newbyteorder("="), order="C")
    return name


def _said(place: tuple[str, ...]) -> str:
    return shown(".".join(place)) if place else "the state"


def _is_flat(state: Mapping[str, Any], structure: Any) -> bool:
    """Whether the state is nothing but arrays by name."""
    return type(state) is dict and all(item == ["array", name] for name, item in structure[1])


def _serialized(tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save as serialize

    return serialize(dict(tensors), metadata)


def _put_together(said: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    kind, value = said
    if kind in ("array", "scalar"):
        return tensors[value] if kind == "array" else tensors[value][()]
    if kind == "dict":
        return {key: _put_together(item, tensors) for key, item in value}
    if kind in ("list", "tuple"):
        items = [_put_together(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    if kind in ("int", "float"):
        return int(value, 16) if kind == "int" else float(value)
    if kind != "plain":
        raise ValueError(f"unknown kind {shown(kind)}")
    return value
