"""Every source gives the same kind of Dataset, and every damage is one line that names the file."""

import dataclasses
import gzip
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import HANG
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import write_idx
from refusals import expect_error

import parallel_dl
from parallel_dl import datasets
from parallel_dl.datasets import Dataset, load
from parallel_dl.errors import InputError

RNG = np.random.default_rng(7)
IMAGES = {"train": RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8), "t10k": RNG.integers(0, 256, (3, 5, 4), np.uint8)}
LABELS = {"train": np.array([0, 1, 2, 3, 0, 1], np.uint8), "t10k": np.array([2, 4, 0], np.uint8)}


def arrays(**changes):
    """The four arrays of a valid data set, some of them changed."""
    x, y = RNG.normal(size=(9, 2, 5, 4)), np.arange(9) % 4
    return {"x_train": x[:6], "y_train": y[:6], "x_test": x[6:], "y_test": y[6:], **changes}


def idx_folder(folder, mark="-", end=""):
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images{mark}idx3-ubyte{end}", IMAGES[part])
        write_idx(folder / f"{part}-labels{mark}idx1-ubyte{end}", LABELS[part])
    return folder


# The shipped digits


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float64])
def test_digits(dtype):
    digits = load("digits", dtype=dtype)
    assert (digits.name, digits.classes, digits.input_shape) == ("digits", 10, (1, 8, 8))
    assert digits.x_train.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test)):
        assert x.dtype == dtype
        assert x.flags.c_contiguous
        assert (x.min(), x.max()) == (0, 1)
        np.testing.assert_array_equal(x * 16, np.round(x * 16))
        assert y.dtype == np.int64
        assert set(y) == set(range(10))
    assert load("digits").x_train.dtype == np.float32
    first = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]  # the first image of the collection: a zero
    shown = np.concatenate([digits.x_train, digits.x_test])[:, 0, :2] * 16
    labels = np.concatenate([digits.y_train, digits.y_test])
    assert labels[(shown == first).all(axis=(1, 2))].tolist() == [0]


def test_the_split_is_stratified_disjoint_and_complete():
    with np.load(Path(datasets.__file__).parent / "data" / "digits.npz") as data:
        labels, train, test = data["labels"], data["train"], data["test"]
        assert data["images"].shape == (1797, 8, 8)
        assert data["images"].max() == 16
    assert sorted([*train, *test]) == list(range(1797))
    counts = np.bincount(labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as UCI states
    assert (abs(np.bincount(labels[test]) - counts * 360 / 1797) < 1).all()
    thirds = np.array_split(test, 3)  # drawn over the whole collection, not cut off at one end
    assert thirds[0].max() < 750 < 1050 < thirds[2].min()


def test_digits_name_source_and_licence():
    readme = (Path(datasets.__file__).parent / "data" / "README.md").read_text()
    for words in ("Optical Recognition of Handwritten Digits", "Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert words in readme


def test_import_needs_only_numpy_and_the_standard_library():
    script = """
import sys, numpy
before = set(sys.modules)
import parallel_dl.datasets
parallel_dl.datasets.load("digits")
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new), "mpi4py" in sys.modules)
"""
    root = str(Path(parallel_dl.__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert set(eval(done.stdout.rpartition(" ")[0])) <= {"parallel_dl", "numpy"}
    assert done.stdout.split()[-1] == "False"


def test_public_names():
    names = {"Arrivals", "Batch", "Dataset", "Loader", "Share", "Stream", "load", "read_idx"}
    assert set(datasets.__all__) == names
    assert all(getattr(datasets, name).__doc__ for name in datasets.__all__)


def test_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load("digits").classes = 3


# IDX folders


@pytest.mark.parametrize("mark", "-.")
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("by_name", [True, False])
def test_idx_folder(tmp_path, mark, end, by_name):
    folder = idx_folder(tmp_path / "mnist", mark, end)
    data = load("idx", folder, "float64") if by_name else load(folder, dtype="float64")
    assert data.name == ("idx" if by_name else str(folder))
    assert (data.classes, data.input_shape) == (5, (1, 5, 4))  # class 4 is in the test part only
    np.testing.assert_array_equal(data.x_train, IMAGES["train"][:, None] / 255, strict=True)
    np.testing.assert_array_equal(data.x_test, IMAGES["t10k"][:, None] / 255, strict=True)
    np.testing.assert_array_equal(data.y_train, LABELS["train"].astype(np.int64), strict=True)
    np.testing.assert_array_equal(data.y_test, LABELS["t10k"].astype(np.int64), strict=True)


def test_idx_files_may_be_spelled_differently_and_hold_floats(tmp_path):
    folder = idx_folder(tmp_path)
    (folder / "t10k-images-idx3-ubyte").rename(folder / "t10k-images.idx3-ubyte")
    write_idx(folder / "train-images-idx3-ubyte", IMAGES["train"].astype(np.float32))
    expect_error("t10k-images.idx3-ubyte: uint8, but", "train-images-idx3-ubyte is float32", name_or_path=folder)
    write_idx(folder / "t10k-images.idx3-ubyte", IMAGES["t10k"].astype(np.float32))
    np.testing.assert_array_equal(load("idx", folder).x_train[:, 0], IMAGES["train"])


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_idx_damage_names_the_file(tmp_path, file):
    path = idx_folder(tmp_path) / file
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    expect_error(
        path, f"expected {len(content)} bytes", f"found {len(content) - 1}", name_or_path="idx", data_dir=tmp_path
    )
    path.write_bytes(gzip.compress(content)[:-9])
    expect_error(path, "broken gzip", name_or_path="idx", data_dir=tmp_path)
    path.unlink()
    expect_error(tmp_path, f"has no {file};", name_or_path="idx", data_dir=tmp_path)
    path.mkdir()
    expect_error(path, "is a folder", name_or_path="idx", data_dir=tmp_path)


def test_idx_parts_must_fit(tmp_path):
    folder = idx_folder(tmp_path)
    images, labels = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    write_idx(labels, LABELS["train"])
    expect_error(labels, "6 labels", "3 samples", images, name_or_path=folder)
    write_idx(labels, IMAGES["t10k"])
    expect_error(labels, "shape (3, 5, 4)", "(n,)", name_or_path=folder)
    write_idx(images, LABELS["t10k"])
    expect_error(images, "shape (3,)", "(n, height, width)", name_or_path=folder)
    write_idx(images, IMAGES["t10k"][:0])
    expect_error(images, "no samples", "(0, 5, 4)", name_or_path=folder)


def test_idx_folder_missing(tmp_path):
    expect_error("'idx'", "needs data_dir", name_or_path="idx")
    expect_error(tmp_path / "no", "No such file", name_or_path="idx", data_dir=tmp_path / "no")
    expect_error(tmp_path, "has no train-images-idx3-ubyte, train-labels-idx1-ubyte", name_or_path=tmp_path)
    (tmp_path / "file").write_text("")
    expect_error(tmp_path / "file", "Not a directory", name_or_path="idx", data_dir=tmp_path / "file")


# NPZ files


@pytest.fixture
def npz(tmp_path):
    """Writes the given arrays as a .npz file and returns its path."""

    def write(**given):
        np.savez(tmp_path / "data.npz", **given)
        return tmp_path / "data.npz"

    return write


@pytest.mark.parametrize("how", ["path", "string", "file", "folder"])
def test_npz(npz, how):
    given = arrays()
    path = npz(**given)
    data = {
        "path": lambda: load(path),
        "string": lambda: load(str(path)),
        "file": lambda: load("npz", path),
        "folder": lambda: load("npz", path.parent),
    }[how]()
    assert data.name == (str(path) if how in ("path", "string") else "npz")
    assert (data.input_shape, data.classes) == ((2, 5, 4), 4)
    np.testing.assert_array_equal(data.x_train, given["x_train"].astype(np.float32), strict=True)
    np.testing.assert_array_equal(data.y_test, given["y_test"].astype(np.int64), strict=True)


def test_npz_features_scales_and_layouts(npz):
    x = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
    data = load(npz(**arrays(x_train=np.asfortranarray(x[:6]), x_test=x[6:] / 255)), dtype="float64")
    assert data.input_shape == (7,)
    assert data.x_train.flags.c_contiguous
    np.testing.assert_array_equal(data.x_train, x[:6] / 255)
    np.testing.assert_array_equal(data.x_test, x[6:] / 255)


IMAGE = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
SCALES = {
    "uint8": IMAGE,
    "float32": IMAGE.astype(np.float32),
    "int64": IMAGE.astype(np.int64),
    "uint16": IMAGE.astype(np.uint16) * 257,
    "scaled": IMAGE / 255,
    "scaled float32": np.divide(IMAGE, 255, dtype=np.float32),
    "by another": IMAGE / 16,
    "centred": IMAGE / 255 - 0.5,
    "half": (IMAGE / 510).astype(np.float32),
}
ALIKE = [{"uint8", "scaled", "scaled float32"}, {"float32", "int64"}]
FRACTIONS, NOT_SCALED = {"scaled", "scaled float32", "half"}, {"float32", "int64", "uint16"}


@pytest.mark.parametrize("train", SCALES)
def test_training_and_test_have_one_scale(npz, train):
    """What cannot be told apart is taken as it is."""
    for test in SCALES:
        given = {"name_or_path": npz(**arrays(x_train=SCALES[train][:6], x_test=SCALES[test][6:]))}
        if test == train or any({train, test} <= alike for alike in ALIKE):
            load(**given)
        elif "uint8" in (train, test):
            expect_error("array 'x_test'", "of the two only uint8 would be divided by 255", **given)
        elif {train, test} & FRACTIONS and {train, test} & NOT_SCALED:
            expect_error("array 'x_test': up to", "one of the two has fractions in 0..1", **given)
        else:
            load(**given)


def test_own_scale():
    """Bytes up to 16 are divided by 16; what was divided by 255 before is another scale."""
    x, y = RNG.integers(0, 17, (9, 7), dtype=np.uint8), np.arange(9) % 4
    alike = Dataset.from_arrays("own", x, y, x / 16, y, scale=16)
    np.testing.assert_array_equal(alike.x_train, alike.x_test)
    with pytest.raises(InputError, match="would be divided by 16"):
        Dataset.from_arrays("own", x, y, x / 255, y, scale=16)


@pytest.mark.parametrize("dtype", [">f4", "f2", "i2", ">i4", "i8", "?", "f8"])
def test_other_types_are_taken_as_they_are(npz, dtype):
    x = (RNG.normal(size=(9, 7)) * 9).astype(dtype)
    data = load(npz(**arrays(x_train=x[:6], x_test=x[6:])))
    np.testing.assert_array_equal(data.x_train, x[:6].astype(np.float32), strict=True)


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", "u8", "f2", "f4", "f8", "?"])
def test_label_types(npz, dtype):
    data = load(npz(**arrays(y_train=np.array([0, 1, 1, 0, 1, 0], dtype))))
    np.testing.assert_array_equal(data.y_train, np.array([0, 1, 1, 0, 1, 0]), strict=True)


def poisoned(value, *where):
    x = np.zeros((6, 2, 5, 4))
    for index in where:
        x[index] = value
    return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": poisoned(np.nan, (2, 0, 3, 1), (4, 1, 0, 0))}, ["x_train", "2 of 240", "nan at [2, 0, 3, 1]"]),
        ({"x_train": poisoned(-np.inf, (5, 1, 4, 3))}, ["x_train", "1 of 240", "-inf at [5, 1, 4, 3]"]),
        ({"x_train": poisoned(1e300, (0, 0, 0, 1))}, ["x_train", "as float32", "1e+300 at [0, 0, 0, 1]"]),
        ({"x_test": np.zeros((3, 2, 5, 4), np.complex64)}, ["x_test", "complex64", "real"]),
        ({"x_test": np.full((3, 4), "a")}, ["x_test", "<U1", "real"]),
        ({"x_test": np.zeros((3, 4), "M8[s]")}, ["x_test", "datetime64", "real"]),
        ({"x_test": np.zeros((3, 4), object)}, ["'x_test' cannot be read", "Object arrays"]),
        ({"y_test": np.array([1, 2, None])}, ["'y_test' cannot be read", "Object arrays"]),
        ({"y_test": np.zeros(3, [("a", "i4")])}, ["y_test", "real"]),
        ({"y_test": np.array([0, 1.5, 2])}, ["y_test", "1 of 3", "1.5 at [1]", "whole numbers from 0"]),
        ({"y_test": np.array([np.nan, 1, np.inf])}, ["y_test", "2 of 3", "nan at [0]"]),
        ({"y_test": np.array([0, 1, -1])}, ["y_test", "1 of 3", "-1 at [2]"]),
        ({"y_test": np.array([0, 1, 10**9])}, ["y_test", "1000000000 at [2]", "999999"]),
        ({"y_test": np.array([0, 2**64 - 1, 0], np.uint64)}, ["y_test", "18446744073709551615 at [1]"]),
        ({"y_test": np.array([0, 1j, 0])}, ["y_test", "complex128"]),
        ({"y_test": np.eye(3)}, ["y_test", "(3, 3)", "(n,)"]),
        ({"y_test": np.float64(1)}, ["y_test", "()", "(n,)"]),
        ({"y_train": np.zeros(5)}, ["y_train", "5 labels", "6 samples", "x_train"]),
        ({"y_train": np.zeros(0)}, ["y_train", "no labels"]),
        ({"x_train": np.zeros((0, 2, 5, 4)), "y_train": np.zeros(0)}, ["x_train", "no samples", "(0, 2, 5, 4)"]),
        ({"x_train": np.zeros((6, 0))}, ["x_train", "without values", "(6, 0)"]),
        ({"x_train": np.zeros(6)}, ["x_train", "(6,)", "(n, features)"]),
        ({"x_train": np.zeros((6, 1, 2, 3, 4))}, ["x_train", "(6, 1, 2, 3, 4)"]),
        ({"x_test": np.zeros((3, 2, 4, 5))}, ["x_test", "(2, 4, 5)", "x_train", "(2, 5, 4)"]),
        ({"x_test": np.zeros((3, 40))}, ["x_test", "(40,)", "(2, 5, 4)"]),
    ],
)
def test_npz_values_that_are_wrong(npz, changes, words):
    path = npz(**arrays(**changes))
    expect_error(path, *words, name_or_path=path)


def test_float64_holds_what_float32_cannot(npz):
    path = npz(**arrays(x_train=poisoned(1e300, (0, 0, 0, 1))))
    assert load(path, dtype="float64").x_train[0, 0, 0, 1] == 1e300


def test_npz_missing_keys(npz):
    path = npz(x_train=np.zeros(3), images=np.zeros(3))
    expect_error(path, "no array y_train, x_test, y_test", "only x_train, images", name_or_path=path)
    path = npz(**{"two\nlines": np.zeros(3)})
    expect_error(path, "only two lines", name_or_path=path)
    path = npz()
    expect_error(path, "only nothing", name_or_path=path)


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "data.npz"
    for content in (b"", b"hello", b"\x80\x04]\x94.", b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        expect_error(path, "not a zip archive", "x_train, y_train", name_or_path=path)
    np.save(tmp_path / "a.npy", np.zeros(3))
    expect_error(tmp_path / "a.npy", "not a zip archive", name_or_path=tmp_path / "a.npy")
    with zipfile.ZipFile(path, "w") as archive:
        for part in arrays():
            archive.writestr(part, "text")
    expect_error(path, "'x_train' is not an array", name_or_path=path)


def test_npz_with_a_huge_declared_shape(tmp_path):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for part in arrays():
            archive.writestr(part + ".npy", member.getvalue())
    expect_error(tmp_path / "a.npz", "'x_train' cannot be read", name_or_path=tmp_path / "a.npz")


WHOLE = io.BytesIO()
np.savez_compressed(
    WHOLE, x_train=IMAGES["train"], y_train=LABELS["train"], x_test=IMAGES["t10k"], y_test=LABELS["t10k"]
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy on a damaged array header
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_random_damage_is_an_input_error_or_a_dataset(data):
    content = bytearray(WHOLE.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        file.write(content)
        file.flush()
        try:
            assert isinstance(load(file.name), Dataset)
        except InputError as error:
            said = str(error)
        else:
            return
        assert file.name in said
        assert "\n" not in said


def test_npz_folder_and_file_trouble(tmp_path):
    expect_error("'npz'", "needs data_dir", name_or_path="npz")
    expect_error(tmp_path, "holds 0 .npz files", "exactly one", name_or_path="npz", data_dir=tmp_path)
    expect_error(tmp_path / "a.npz", "no such file", name_or_path="npz", data_dir=tmp_path / "a.npz")
    for name in ("a.npz", "b\n.npz"):
        (tmp_path / name).mkdir()
    expect_error(tmp_path, "holds 2 .npz files: a.npz, b .npz", name_or_path="npz", data_dir=tmp_path)
    (tmp_path / "b\n.npz").rmdir()
    expect_error(tmp_path / "a.npz", "is a folder", name_or_path="npz", data_dir=tmp_path)


def test_permission_denied(npz):
    path = npz(**arrays())
    path.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        expect_error(path, "Permission denied", name_or_path="npz", data_dir=path)
        expect_error(path, "Permission denied", name_or_path=path)
    finally:
        if as_root:
            os.seteuid(0)


# Names


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expect_error("unknown dataset 'digit'", "did you mean 'digits'?", "idx, npz", "path", name_or_path="digit")
    expect_error("unknown dataset ''", name_or_path="")
    expect_error("nothing.npz: no such file", name_or_path="nothing.npz")
    expect_error("no/where: no such file", name_or_path="no/where")
    expect_error("null byte", name_or_path="a/\0")
    expect_error("'digits' takes no data_dir", "'here'", name_or_path="digits", data_dir="here")
    expect_error("takes no data_dir", name_or_path="some.npz", data_dir="here")


@pytest.mark.parametrize("dtype", ["float16", "int8", "flaot32", None, np.complex64])
def test_unknown_dtype(dtype):
    expect_error("unknown dtype", "expected one of float32, float64", name_or_path="digits", dtype=dtype)


def test_a_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    idx_folder(tmp_path / "digits")
    idx_folder(tmp_path / "mine")
    assert load("digits").classes == 10
    assert load("./digits").classes == 5
    assert load("mine").classes == 5


def test_arrays_in_memory_become_a_dataset():
    data = Dataset.from_arrays("mine", *arrays().values())
    assert (data.name, data.input_shape) == ("mine", (2, 5, 4))
    with pytest.raises(InputError, match=r"^x_test: "):
        Dataset.from_arrays("mine", *arrays(x_test=np.zeros((3, 4))).values())
