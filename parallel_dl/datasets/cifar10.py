"""CIFAR-10: 50,000 + 10,000 colour images, 32 x 32, of ten kinds of things, in its binary version.

    a file      records, one after the other
    a record    1 byte label, then 3072 bytes image: 1024 red, 1024 green, 1024 blue, each row by row

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the data set's home page,
https://www.cs.toronto.edu/~kriz/cifar.html, section "Binary version". The files are not part of this package.
"""

import os
from pathlib import Path

import numpy as np

from parallel_dl.datasets import places
from parallel_dl.datasets.dataset import Dataset
from parallel_dl.errors import InputError, number_of
from parallel_dl.files import opened

NAME = "cifar-10"
CLASSES = 10
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
UNPACKED = "cifar-10-batches-bin"  # the folder in that archive
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"


def load(data_dir: str | os.PathLike[str] | None, dtype: np.dtype) -> Dataset:
    """x (n, 3, 32, 32) in [0, 1], ten classes whatever labels occur; any number of records in each file."""
    below = (UNPACKED, NAME, f"{NAME}/{UNPACKED}")
    files = (*TRAIN, TEST)
    expected = f"a folder with {', '.join(files)}, or one whose subfolder {UNPACKED} or {NAME} has them"
    folder = places.given_folder(data_dir, below, files, expected)
    if folder is None:
        raise InputError(
            f"dataset {NAME!r} needs a folder with data_batch_1.bin to test_batch.bin: set `data_dir` or the variable "
            f"{places.VARIABLE}; download the files from {URL}"
        )
    training = [read_records(folder / name) for name in TRAIN]
    x_train, y_train = (np.concatenate(parts) for parts in zip(*training))
    x_test, y_test = read_records(folder / TEST)
    return Dataset.from_arrays(NAME, x_train, y_train, x_test, y_test, dtype=dtype, classes=CLASSES)


def read_records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The (n, 3, 32, 32) images and the (n,) labels of one file, both uint8; InputError names it when damaged."""
    expected = f"a file of one or more records of {RECORD:,} bytes, as in CIFAR-10's binary version"
    with opened(path, expected) as file:
        content = file.read()
    count, rest = divmod(len(content), RECORD)
    if rest or not count:
        found = f"{number_of(len(content), 'byte')}, {rest:,} more than {number_of(count, 'whole record')}"
        raise InputError(f"{path}: {found}; expected {expected}")
    records = np.frombuffer(content, np.uint8).reshape(count, RECORD)
    labels = records[:, 0]
    wrong = np.flatnonzero(labels >= CLASSES)
    if len(wrong):
        raise InputError(
            f"{path}: {len(wrong)} of {number_of(count, 'label')} cannot be a class of {NAME}, the first is "
            f"{labels[wrong[0]]} in record {wrong[0]}; expected 0 to {CLASSES - 1}"
        )
    return records[:, 1:].reshape(count, *SHAPE), labels
