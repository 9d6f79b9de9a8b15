"""Fashion-MNIST and CIFAR-10 are found where they are said to be, and nowhere else; damage names the file."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
from conftest import HANG
from idx_files import write_idx
from refusals import expect_error

from parallel_dl.datasets import cifar10, fashion_mnist, load, places

FOLDER = places.DEBIAN / "fashion-mnist"
needs_debian = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data set on this machine but what a test puts there."""
    monkeypatch.setattr(places, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(places.VARIABLE, raising=False)


def fashion(folder, count=3, end=".gz", shape=(28, 28), dtype=np.uint8):
    """A folder with `count` training images, so that it is known again, and two test images."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(count)
    for part, n in (("train", count), ("t10k", 2)):
        images = random.integers(0, 256, (n, *shape)).astype(dtype)
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", (np.arange(n) % 3).astype(np.uint8))
    return folder


def found(data_dir=None):
    return len(load("fashion-mnist", data_dir).x_train)


# Fashion-MNIST: where it is


def test_nowhere_names_all_four_ways():
    ways = ("data_dir", "PARALLEL_DL_DATA", "dataset-fashion-mnist", "parallel-dl fetch fashion-mnist")
    expect_error("'fashion-mnist'", "Debian", *ways, name_or_path="fashion-mnist")


def test_order_of_the_places(tmp_path, monkeypatch):
    fashion(tmp_path / "cache" / "parallel_dl" / "fashion-mnist", 3)
    assert found() == 3
    fashion(tmp_path / "debian" / "fashion-mnist", 4)
    assert found() == 4
    monkeypatch.setenv("PARALLEL_DL_DATA", str(fashion(tmp_path / "variable", 5)))
    assert found() == 5
    assert found(fashion(tmp_path / "given", 6)) == 6
    monkeypatch.setenv("PARALLEL_DL_DATA", "")  # as if unset
    assert found() == 4


def test_the_cache_without_its_variable_is_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fashion(tmp_path / "home" / ".cache" / "parallel_dl" / "fashion-mnist")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert found() == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert found() == 3


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_named_folder_may_have_the_files_or_a_subfolder(tmp_path, monkeypatch, end):
    fashion(tmp_path / "all" / "fashion-mnist", 7, end)
    assert found(tmp_path / "all") == found(tmp_path / "all" / "fashion-mnist") == 7
    monkeypatch.setenv("PARALLEL_DL_DATA", str(tmp_path / "all"))
    assert found() == 7
    monkeypatch.setenv("PARALLEL_DL_DATA", str(tmp_path / "all" / "fashion-mnist"))
    assert found() == 7


def test_a_named_folder_without_the_files_is_not_passed_over(tmp_path, monkeypatch):
    fashion(tmp_path / "debian" / "fashion-mnist")
    (tmp_path / "empty").mkdir()
    for name, word in (("empty", "has none of the files"), ("missing", "No such file")):
        folder = tmp_path / name
        expect_error(f"{folder}: ", word, "train-images-idx3-ubyte", name_or_path="fashion-mnist", data_dir=folder)
        monkeypatch.setenv("PARALLEL_DL_DATA", str(folder))
        expect_error(f"PARALLEL_DL_DATA={folder}: ", word, name_or_path="fashion-mnist")
        monkeypatch.delenv("PARALLEL_DL_DATA")
    (fashion(tmp_path / "empty") / "t10k-labels-idx1-ubyte.gz").unlink()
    expect_error(
        tmp_path / "empty", "has no t10k-labels-idx1-ubyte", name_or_path="fashion-mnist", data_dir=tmp_path / "empty"
    )


def test_a_cache_that_is_not_complete_is_as_none(tmp_path):
    folder = fashion(tmp_path / "cache" / "parallel_dl" / "fashion-mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").rename(folder / "t10k-labels-idx1-ubyte.gz.part")
    expect_error("parallel-dl fetch fashion-mnist", name_or_path="fashion-mnist")


# Fashion-MNIST: what it is


@needs_debian
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fashion_mnist_as_debian_has_it(monkeypatch, dtype):
    monkeypatch.setattr(places, "DEBIAN", FOLDER.parent)
    data = load("fashion-mnist", dtype=dtype)
    assert (data.name, data.classes, data.input_shape) == ("fashion-mnist", 10, (1, 28, 28))
    assert (len(data.x_train), len(data.x_test)) == (60_000, 10_000)
    assert data.x_train.dtype == data.x_test.dtype == dtype
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert np.bincount(data.y_train).tolist() == [6000] * 10
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    assert data.y_train[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def test_ten_classes_whatever_labels_occur(tmp_path):
    assert load("fashion-mnist", fashion(tmp_path)).classes == 10
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    write_idx(labels, np.array([3, 10], np.uint8))
    expect_error(labels, "10 at [1]", "from 0 to 9", name_or_path="fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize(("shape", "dtype"), [((28, 27), "u1"), ((28, 28), "f4"), ((28,), "u1"), ((28, 28, 3), "u1")])
def test_other_images_are_refused(tmp_path, shape, dtype):
    folder = fashion(tmp_path, shape=shape, dtype=np.dtype(dtype))
    path = folder / "train-images-idx3-ubyte.gz"
    expect_error(path, str(shape), "expected (28, 28) and uint8", name_or_path="fashion-mnist", data_dir=folder)


def test_damage_names_the_file(tmp_path):
    path = fashion(tmp_path) / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    expect_error(path, "broken gzip", name_or_path="fashion-mnist", data_dir=tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(content)[:-1]))
    expect_error(path, "truncated", name_or_path="fashion-mnist", data_dir=tmp_path)


def test_the_sources_and_the_licence_are_said():
    for words in ("1708.07747", "Zalando", "MIT licence"):
        assert words in fashion_mnist.__doc__
    assert "Krizhevsky" in cifar10.__doc__


# CIFAR-10


def cifar(folder, records=2):
    """Six files of random records; gives the images and labels of all, the test file's last."""
    folder.mkdir(parents=True, exist_ok=True)
    content = np.random.default_rng(1).integers(0, 256, (6, records, 3073), dtype=np.uint8)
    content[:, :, 0] = np.arange(6 * records).reshape(6, records) % 7
    for name, part in zip((*cifar10.TRAIN, cifar10.TEST), content):
        (folder / name).write_bytes(part.tobytes())
    return content[:, :, 1:], content[:, :, 0]


def test_cifar_10(tmp_path):
    images, labels = cifar(tmp_path, records=3)
    data = load("cifar-10", tmp_path, "float64")
    assert (data.name, data.classes, data.input_shape) == ("cifar-10", 10, (3, 32, 32))
    np.testing.assert_array_equal(data.x_train, images[:5].reshape(15, 3, 32, 32) / 255, strict=True)
    np.testing.assert_array_equal(data.x_test, images[5].reshape(3, 3, 32, 32) / 255, strict=True)
    np.testing.assert_array_equal(data.y_train, labels[:5].ravel().astype(np.int64), strict=True)
    np.testing.assert_array_equal(data.y_test, labels[5].astype(np.int64), strict=True)
    assert data.x_train[0, 1, 2, 5] == images[0, 0, 1024 + 2 * 32 + 5] / 255  # green, row 2, column 5
    assert load("cifar-10", tmp_path).x_train.dtype == np.float32


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin", "cifar-10", "cifar-10/cifar-10-batches-bin"])
def test_cifar_10_in_a_subfolder(tmp_path, monkeypatch, below):
    cifar(tmp_path / below)
    assert len(load("cifar-10", tmp_path).x_train) == 10
    monkeypatch.setenv("PARALLEL_DL_DATA", str(tmp_path))
    assert len(load("cifar-10").x_train) == 10


def test_cifar_10_is_nowhere(tmp_path, monkeypatch):
    expect_error("'cifar-10'", "data_dir", "PARALLEL_DL_DATA", "cifar-10-binary.tar.gz", name_or_path="cifar-10")
    expect_error(tmp_path, "none of the files", "data_batch_1.bin", name_or_path="cifar-10", data_dir=tmp_path)
    monkeypatch.setenv("PARALLEL_DL_DATA", str(tmp_path))
    expect_error(f"PARALLEL_DL_DATA={tmp_path}: ", name_or_path="cifar-10")


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_5.bin", "test_batch.bin"])
def test_cifar_10_damage_names_the_file(tmp_path, name):
    cifar(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    for damaged, word in (
        (content[:-1], "6,145 bytes, 3,072 more than 1 whole record;"),
        (content + b"a", "1 more than 2 whole records"),
        (b"", "0 bytes"),
        (
            content[:3073] + b"\x0a" + content[3074:],
            "1 of 2 labels cannot be a class of cifar-10, the first is 10 in",
        ),
    ):
        path.write_bytes(damaged)
        expect_error(path, word, name_or_path="cifar-10", data_dir=tmp_path)
    path.unlink()
    expect_error(path, "no such file", name_or_path="cifar-10", data_dir=tmp_path)


# Names


@pytest.mark.parametrize(
    ("name", "near"), [("cifar10", "cifar-10"), ("fashion_mnist", "fashion-mnist"), ("mnist", "fashion-mnist")]
)
def test_other_spellings_are_told_the_right_one(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expect_error(f"unknown dataset {name!r}: did you mean {near!r}?", name_or_path=name)


def test_importing_data_sets_does_not_import_the_network():
    code = "import sys, parallel_dl.datasets; print('urllib.request' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=True)
    assert run.stdout == "False\n"
