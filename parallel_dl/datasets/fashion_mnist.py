"""Fashion-MNIST: 60,000 + 10,000 grey images, 28 x 28, of ten kinds of clothes; as large and as stored as MNIST.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747. Copyright Zalando SE, MIT licence. The files are not part of this package.
"""

import os
from pathlib import Path

import numpy as np

from parallel_dl.datasets import mnist, places
from parallel_dl.datasets.dataset import Dataset
from parallel_dl.errors import InputError

NAME = "fashion-mnist"
CLASSES = 10
SHAPE = (28, 28)
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# name -> (bytes, SHA-256). Debian's files are these without the name and the time in gzip's header.
FILES = {
    "train-images-idx3-ubyte.gz": (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte.gz": (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte.gz": (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte.gz": (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}


def find(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of the four files: the one given, in the variable, Debian's, the user's cache; else InputError."""
    expected = f"a folder with {', '.join(FILES)}, or one whose subfolder {NAME} has them"
    folder = places.given_folder(data_dir, [NAME], mnist.NAMES, expected)
    if folder is not None:
        return folder
    for known in (places.DEBIAN / NAME, places.cache(NAME)):
        if mnist.is_complete(known):
            return known
    raise InputError(
        f"dataset {NAME!r} is not on this machine: run 'parallel-dl fetch {NAME}', install Debian's package "
        f"dataset-{NAME}, or set `data_dir` or the variable {places.VARIABLE} to its folder"
    )


def load(data_dir: str | os.PathLike[str] | None, dtype: np.dtype) -> Dataset:
    """x (n, 1, 28, 28) in [0, 1], ten classes whatever labels occur; any number of images."""
    paths, arrays = mnist.read_folder(find(data_dir))
    for path, images in zip(paths[::2], arrays[::2]):
        if images.dtype != np.uint8 or images.shape[1:] != SHAPE:
            raise InputError(
                f"{path}: images of shape {images.shape[1:]} and type {images.dtype}; expected {SHAPE} and uint8"
            )
    return Dataset.from_arrays(NAME, *arrays, dtype=dtype, classes=CLASSES, called=[str(path) for path in paths])
