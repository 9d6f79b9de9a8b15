"""MNIST's four IDX files in a folder, in whatever spelling: training and test images, training and test labels."""

from pathlib import Path

import numpy as np

from parallel_dl.datasets.idx import read_idx
from parallel_dl.datasets.places import names_in
from parallel_dl.errors import InputError
from parallel_dl.files import listed

STEMS = (("train-images", "idx3"), ("train-labels", "idx1"), ("t10k-images", "idx3"), ("t10k-labels", "idx1"))


def spellings(stem: str, kind: str) -> list[str]:
    """How a file may be called: train-images-idx3-ubyte, train-images.idx3-ubyte, and both with .gz."""
    return [f"{stem}{mark}{kind}-ubyte{end}" for end in ("", ".gz") for mark in "-."]


NAMES = frozenset(name for stem in STEMS for name in spellings(*stem))


def is_complete(folder: Path) -> bool:
    """Whether all four files are there, in any spelling."""
    present = names_in(folder)
    return all(not present.isdisjoint(spellings(*stem)) for stem in STEMS)


def read_folder(folder: Path) -> tuple[list[Path], list[np.ndarray]]:
    """The paths and arrays of x_train, y_train, x_test, y_test; InputError names missing or damaged files."""
    present = listed(folder, "a folder of IDX files")
    paths, missing = [], []
    for stem in STEMS:
        found = [folder / name for name in spellings(*stem) if name in present]
        paths += found[:1]
        missing += [] if found else spellings(*stem)[:1]
    if missing:
        raise InputError(
            f"{folder}: has no {', '.join(missing)}; expected a folder of MNIST's four IDX files, "
            f"also as {spellings(*STEMS[0])[1]}, also with .gz"
        )
    return paths, [read_idx(path) for path in paths]
