"""Weights in a file: safetensors, with a word about where they come from."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parallel_dl.errors import InputError

if TYPE_CHECKING:
    from parallel_dl.nn import Module


def require_writable(path: str | os.PathLike) -> Path:
    """Raises InputError, before any work is done, when a file cannot be written there."""
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise InputError(f"--output {path}: is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"--output {path}: is a device or the like; give the name of a file")
    if not folder.is_dir():
        raise InputError(f"--output {path}: there is no folder {folder}")
    try:
        handle, probe = tempfile.mkstemp(dir=folder, prefix=".parallel_dl-")
    except OSError as error:
        raise InputError(f"--output {path}: cannot write in {folder}: {error.strerror}") from None
    os.close(handle)
    os.unlink(probe)
    return path


def save(path: str | os.PathLike, state: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes the weights atomically (a reader finds the old file or the new one), `facts` as JSON in its metadata."""
    from safetensors.numpy import save_file

    path = require_writable(path).resolve()  # a link stays one: what it leads to is written
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".parallel_dl-")
    os.close(handle)
    try:
        contiguous = {name: np.ascontiguousarray(array) for name, array in state.items()}
        save_file(contiguous, partial, metadata={"parallel_dl": json.dumps(dict(facts))})
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror or error}") from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}  # those we read, by their names in the file


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


def read(path: str | os.PathLike) -> dict[str, Stored]:
    """The weights that `save` wrote, by name, still in the file; InputError when it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
        return {name: Stored(name, file) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"--weights {path}: {error}") from None


def require_fits(path: str | os.PathLike, network: Module) -> None:
    """Raises InputError unless the file has the network's parameters and buffers, and no others."""
    weights = read(path)
    stored = {name: weight.shape for name, weight in weights.items()}
    needed = {name: parameter.shape for name, parameter in network.named_parameters()}
    needed |= {name: buffer.shape for name, buffer in network.named_buffers()}
    for name in [*needed, *(other for other in stored if other not in needed)]:
        if name not in stored:
            raise InputError(f"--weights {path}: has no {name} {needed[name]}; it is not of this network")
        if name not in needed:
            raise InputError(f"--weights {path}: has {name}, which this network has not")
        if stored[name] != needed[name]:
            raise InputError(f"--weights {path}: {name} has shape {stored[name]}, this network needs {needed[name]}")
        if weights[name].kind not in _DTYPES:
            raise InputError(f"--weights {path}: {name} is {weights[name].kind}; valid are {', '.join(_DTYPES)}")


def load(path: str | os.PathLike, flag: str = "--weights ") -> dict[str, np.ndarray]:
    """The arrays of a file by name; InputError, after `flag`, when it is missing, damaged, or of types NumPy lacks."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{flag}{path}: {error}") from None
    except (KeyError, TypeError) as error:  # a type of numbers that NumPy does not have
        raise InputError(f"{flag}{path}: has values of a type that NumPy does not know, {error}") from None
