"""Where data sets come from: the shipped digits, known ones on this machine, a folder of IDX files, an NPZ file."""

import os
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import DTypeLike

from parallel_dl import from_file
from parallel_dl.datasets import cifar10, fashion_mnist, mnist
from parallel_dl.datasets.dataset import PARTS, Dataset, checked_dtype
from parallel_dl.errors import InputError, cut, shown, unknown_name
from parallel_dl.files import listed, one_line, opened, require_memory

ON_THIS_MACHINE = {fashion_mnist.NAME: fashion_mnist.load, cifar10.NAME: cifar10.load}
NAMES = ("digits", *ON_THIS_MACHINE, "idx", "npz")
DIGITS = Path(__file__).parent / "data" / "digits.npz"


def load(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    dtype: DTypeLike = "float32",
) -> Dataset:
    """Loads the data set `name_or_path`: one with this name, or at this path.

    "digits"          1,797 handwritten digits, 8 x 8, ten classes, shipped with the package (source in data/README.md)
    "fashion-mnist"   60,000 + 10,000 images, 28 x 28, ten classes: in `data_dir`, in $PARALLEL_DL_DATA, in Debian's
                      place (package dataset-fashion-mnist) or in the user's cache, where `parallel-dl fetch` puts it
    "cifar-10"        50,000 + 10,000 images, 3 x 32 x 32, ten classes: the binary version, in `data_dir` or in
                      $PARALLEL_DL_DATA
    "idx"             the folder `data_dir` with MNIST's four files: train-images-idx3-ubyte, train-labels-idx1-ubyte,
                      t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, also as train-images.idx3-ubyte, also with .gz
    "npz"             `data_dir`, a file with x_train, y_train, x_test, y_test, or a folder with exactly one .npz
    FILE.py:NAME      what NAME() of a user's own file returns, a `Dataset`, converted to `dtype`
    a path            of a .npz file or of a folder of IDX files, without `data_dir`

    x is (n, channels, height, width), or (n, features), of `dtype` (float32 or float64); uint8 images are scaled to
    [0, 1], other types are taken as they are, and training and test must then have one scale. y is (n,) int64 class
    numbers, or, if both parts have floats, targets (n, ...) of `dtype`. A name takes precedence over a folder of that
    name: write "./digits" for the folder.

    Raises InputError, one line that names the file, for everything that is missing, damaged or does not fit together.
    """
    name = os.fsdecode(name_or_path)
    if data_dir is not None and not os.fspath(data_dir):
        raise InputError("is empty; give the name of a folder", "data_dir", "''")
    dtype = checked_dtype(dtype)
    if name in ON_THIS_MACHINE:
        return ON_THIS_MACHINE[name](data_dir, dtype)
    if name in ("idx", "npz"):
        if data_dir is None:
            what = "the folder of the four IDX files" if name == "idx" else "the .npz file, or the folder that holds it"
            raise InputError(f"dataset {name!r} needs `data_dir`: {what}")
        return _load_idx(name, Path(data_dir), dtype) if name == "idx" else _load_npz(name, Path(data_dir), dtype)
    if from_file.is_own(name):
        return _own(name, data_dir, dtype)
    if name != "digits" and not (os.sep in name or name.endswith(".npz") or os.path.exists(name)):
        raise InputError(
            f"{unknown_name('`dataset`', name, NAMES).marked}, or a path of a .npz file or of a folder of IDX files"
        )
    if data_dir is not None:
        raise InputError(
            f"dataset {shown(name)} takes no `data_dir`, but {shown(os.fspath(data_dir))} was given; "
            f"only {', '.join(NAMES[1:])} take one"
        )
    if name == "digits":
        images, labels, train, test = _read_npz(DIGITS, ("images", "labels", "train", "test"))
        split = images[train], labels[train], images[test], labels[test]
        return Dataset.from_arrays(name, *split, dtype=dtype, scale=16)
    return _load_idx(name, Path(name), dtype) if os.path.isdir(name) else _load_npz(name, Path(name), dtype)


def _own(name: str, data_dir: str | os.PathLike[str] | None, dtype: np.dtype) -> Dataset:
    """What NAME() of a user's own file returns, converted to `dtype` and named as it was asked for."""
    if data_dir is not None:
        raise InputError(f"dataset {cut(name)} takes no `data_dir`, but {shown(os.fspath(data_dir))} was given")
    own = from_file.call("dataset", name, from_file.find("dataset", name, {}), returns=Dataset)
    called = [f"dataset {cut(name)}: {part}" for part in PARTS]
    arrays = [getattr(own, part) for part in PARTS]
    return Dataset.from_arrays(name, *arrays, dtype=dtype, classes=own.classes, called=called)


def _load_idx(name: str, folder: Path, dtype: np.dtype) -> Dataset:
    paths, arrays = mnist.read_folder(folder)
    return Dataset.from_arrays(name, *arrays, dtype=dtype, called=[str(path) for path in paths])


def _load_npz(name: str, path: Path, dtype: np.dtype) -> Dataset:
    if os.path.isdir(path):
        inside = [entry for entry in listed(path, "a folder with one .npz file") if entry.endswith(".npz")]
        if len(inside) != 1:
            raise InputError(
                f"{path}: holds {len(inside)} .npz files{one_line(': ' + ', '.join(inside)) if inside else ''}; "
                "expected a folder with exactly one, or the file itself"
            )
        path = path / inside[0]
    return Dataset.from_arrays(
        name, *_read_npz(path, PARTS), dtype=dtype, called=[f"{path}: array {part!r}" for part in PARTS]
    )


def _read_npz(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    """The arrays `keys` of an NPZ file. Never unpickles: Python objects in a file can run code."""
    expected = f"a .npz file with the arrays {', '.join(keys)}"
    with opened(path, expected) as file:
        arrays = []
        try:
            archive = NpzFile(file, allow_pickle=False)
        except Exception as error:
            raise InputError(
                f"{path}: is not a zip archive, or a damaged one ({one_line(error)}); expected {expected}"
            ) from error
        missing = [key for key in keys if key not in archive]
        if missing:
            raise InputError(
                f"{path}: has no array {', '.join(missing)}, only {one_line(', '.join(archive) or 'nothing')}; "
                f"expected {expected}"
            )
        assert archive.zip is not None
        members = [one for one in archive.zip.infolist() if one.filename.removesuffix(".npy") in keys]
        require_memory(f"{path}", sum(one.file_size for one in members))  # a few bytes can unpack to any number
        for key in keys:
            try:  # damage shows as one of a dozen types: zip, zlib, header syntax, memory, object arrays, ...
                array = archive[key]
            except Exception as error:
                raise InputError(
                    f"{path}: array {key!r} cannot be read ({one_line(error)}); expected {expected}, of plain numbers"
                ) from error
            if not isinstance(array, np.ndarray):  # a member that is no .npy comes back as bytes
                raise InputError(f"{path}: {key!r} is not an array; expected {expected}")
            arrays.append(array)
        return arrays
