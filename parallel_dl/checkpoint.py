"""Weights in a file: safetensors, with a word about where they come from."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parallel_dl.errors import InputError


def require_writable(path: str | os.PathLike) -> Path:
    """Raises InputError, before any work is done, when a file cannot be written there."""
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise InputError(f"--output {path}: is a folder; give the name of a file in it")
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

    path = require_writable(path)
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


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights that `save` wrote, by name; InputError when the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path}: {error}") from None
