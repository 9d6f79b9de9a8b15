"""Every flag that names a file refuses, in one line and at once, whatever is not a file that it can read."""

import gzip
import os
import resource
import struct
import zipfile

import numpy as np
import pytest

from parallel_dl import checkpoint, launch
from parallel_dl.cli import main

SIZE = 20_000_000_000

FLAGS = {
    "--layout": ("train", "mlp", "--layout", "{}"),
    "--layout of verify": ("verify", "mlp", "--layout", "{}"),
    "--weights": ("train", "mlp", "--weights", "{}"),
    "--check": ("schedule", "--check", "{}"),
    "--placement": ("diff", "whole.safetensors", "whole.safetensors", "--placement", "{}"),
    "diff A": ("diff", "{}", "whole.safetensors"),
    "diff B": ("diff", "whole.safetensors", "{}"),
    "diff A0,A1": ("diff", "whole.safetensors,{}", "whole.safetensors"),
    "run": ("run", "{}"),
    "run with arguments": ("run", "-n", "3", "{}", "--fast"),
    "--data-dir npz": ("train", "mlp", "--dataset", "npz", "--data-dir", "{}"),
    "--data-dir of summary": ("summary", "mlp", "--dataset", "npz", "--data-dir", "{}"),
    "--data-dir of verify": ("verify", "mlp", "--ranks", "2", "--dataset", "npz", "--data-dir", "{}"),
    "--dataset": ("train", "mlp", "--dataset", "./{}"),
}
IN_FOLDERS = {
    "idx": ("t10k-labels-idx1-ubyte", ("train", "mlp", "--dataset", "idx", "--data-dir", "folder")),
    "idx.gz": ("train-images-idx3-ubyte.gz", ("train", "mlp", "--dataset", "idx", "--data-dir", "folder")),
    "fashion-mnist": (
        "train-labels-idx1-ubyte",
        ("train", "lenet5", "--dataset", "fashion-mnist", "--data-dir", "folder"),
    ),
    "cifar-10": ("test_batch.bin", ("train", "vgg_small", "--dataset", "cifar-10", "--data-dir", "folder")),
    "npz in a folder": ("a.npz", ("train", "mlp", "--dataset", "npz", "--data-dir", "folder")),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))
    checkpoint.save("whole.safetensors", {"a": np.ones(2)})
    os.mkfifo("pipe")
    with open("sparse", "wb") as file:
        file.truncate(SIZE)
    os.mkdir("empty")
    return tmp_path


def line_of(capfd, arguments):
    status = main(list(arguments))
    out, err = capfd.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), (arguments, err)
    assert err.startswith("parallel-dl: ")
    return err


@pytest.mark.parametrize("flag", FLAGS)
def test_paths_that_are_not_files_are_refused(here, capfd, flag):
    for name, said in (
        ("pipe", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("empty", "is a folder"),
        ("sparse", ""),
        ("no", "no such file"),
        ("x" * 5000, ""),
        ("a\0b", ""),
    ):
        path = "/dev/zero" if name == "/dev/zero" else name
        arguments = [part.replace("./{}", path if path[0] == "/" else f"./{path}").format(path) for part in FLAGS[flag]]
        line = line_of(capfd, arguments)
        if not (
            name == "empty" and ("diff" in flag or "data" in flag)
        ):  # these take folders, too: without a file in it
            assert said in line
        assert len(line) < 400
        assert "x" * 81 not in line


@pytest.mark.parametrize("kind", IN_FOLDERS)
def test_folders_with_entries_that_are_not_files_are_refused(here, capfd, kind):
    name, arguments = IN_FOLDERS[kind]
    others = {
        "idx": ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"],
        "idx.gz": ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
        "fashion-mnist": ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
        "cifar-10": [f"data_batch_{number}.bin" for number in range(1, 6)],
    }.get(kind, [])
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.link("sparse", path)):
        folder = here / "folder"
        folder.mkdir()
        for other in others:
            shape = (2, 28, 28) if "images" in other else (2,)
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            content = bytes(3073) if kind == "cifar-10" else header + bytes(int(np.prod(shape)))
            (folder / other).write_bytes(content)
        make(folder / name)
        assert name in line_of(capfd, arguments)
        for path in folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


@pytest.fixture
def little_memory(monkeypatch):
    """As if the machine had 64 MB: what would have to be 4 GB elsewhere is 40 MB here."""
    for module in ("memory", "reading"):
        monkeypatch.setattr(f"parallel_dl.files.{module}.bytes_of_memory", lambda: 64_000_000)


def idx(shape, content=b""):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


def folder_of(images):
    os.mkdir("folder")
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        with open(f"folder/{name}", "wb") as file:
            file.write(images)
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        with open(f"folder/{name}", "wb") as file:
            file.write(idx((1,), b"\0"))
    return "train", "mlp", "--dataset", "idx", "--data-dir", "folder"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 4, 4), "trailing bytes: expected"),  # beyond what the header says
        ((1, 5000, 8000), "would take 40.0 MB of memory; the limit here is 32.0 MB"),  # what it says
        ((4, 60_000, 60_000), "would take"),
    ],
)
def test_bombs_of_gzip(here, capfd, little_memory, shape, said):
    """Only what the header promises is decompressed, and one byte more; nothing if that is too much."""
    packed = gzip.compress(idx(shape) + bytes(40_000_000))
    assert len(packed) < 100_000
    assert said in line_of(capfd, folder_of(packed))


def test_a_gzip_of_many_empty_ones(here, capfd):
    packed = gzip.compress(idx((1, 2, 2), bytes(4))) + gzip.compress(b"") * 20_000
    assert "bytes of gzip: expected 20 bytes" in line_of(capfd, folder_of(packed))


def test_bombs_of_zip(here, capfd, little_memory):
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("x_train", "y_train", "x_test", "y_test"):
            with archive.open(f"{part}.npy", "w") as file:
                np.lib.format.write_array(file, np.zeros((9_000_000,), np.uint8))
    line = line_of(capfd, ("train", "mlp", "--dataset", "./a.npz"))
    assert "a.npz: would take 36.0 MB of memory; the limit here is 32.0 MB" in line


def test_samples_that_do_not_fit_as_floats(here, capfd, little_memory):
    np.savez_compressed(
        "a.npz",
        x_train=np.zeros((3000, 3000), np.uint8),
        y_train=np.zeros(3000, int),
        x_test=np.zeros((1, 3000), np.uint8),
        y_test=np.zeros(1, int),
    )
    line = line_of(capfd, ("train", "mlp", "--dataset", "./a.npz"))
    assert "array 'x_train': shape (3000, 3000) as float32: would take 36.0 MB" in line


DEEP = "[" * 3000 + "]" * 3000
LONG = "x y " * 999
LAYOUT = "train", "mlp", "--layout"
PLACEMENT = "diff", "whole.safetensors", "whole.safetensors", "--placement"


@pytest.mark.parametrize(
    ("name", "text", "arguments", "said"),
    [
        ("a.toml", f"dp = {DEEP}", LAYOUT, "layout file a.toml: is nested too deeply"),
        ("a.toml", "dp = 0x" + "f" * 3600, LAYOUT, "64-bit integers"),
        ("a.toml", "pp = 999999999999999999", LAYOUT, "forward passes"),
        ("a.toml", "mp = 999999999999999999", LAYOUT, "a.toml: mp 999999999999999999: must be at most 1024"),
        ("a.toml", "microbatches = 99999999999", LAYOUT, "a.toml: microbatches 99999999999: a batch"),
        ("a.toml", f'dp = "{LONG}"', LAYOUT, "must be a whole number"),
        ("a.toml", f'"{LONG}" = 1', LAYOUT, "unknown key"),
        ("a.toml", f'split = {{"{LONG}" = 1}}', LAYOUT, "must be a string"),
        ("a.toml", f"w = {DEEP}", PLACEMENT, "nested too deeply"),
        ("a.json", f'{{"w": {DEEP}}}', PLACEMENT, "nested too deeply"),
        ("a.toml", "w = 99999999999999999999", PLACEMENT, "64-bit integers"),
        ("a.json", '{"a": 65}', PLACEMENT, "at most 64 axes"),
        ("a.json", f'{{"a": "{LONG}"}}', PLACEMENT, "expected an axis"),
        ("a.txt", "x y " * 9999, ("schedule", "--check"), "is not an action"),
        ("a.txt", "0F" + "9" * 5000, ("schedule", "--check"), "is not an action"),
    ],
)  # fmt: skip
def test_bad_contents_are_refused(here, capfd, name, text, arguments, said):
    (here / name).write_text(text)
    line = line_of(capfd, (*arguments, name))
    assert said in line
    assert line.count("x y") <= 25
    assert len(line) < 500


def test_names_of_thousands_of_digits(here, capfd):
    state = {"9" * 5000: np.ones(2), "9" * 4999 + "8": np.ones(2), "10": np.ones(2), "9": np.ones(2)}
    checkpoint.save("a", state)
    assert main(["diff", "a", "a"]) == 0
    checkpoint.save("b", {**state, "9" * 5000: np.zeros(2)})
    assert main(["diff", "a", "b"]) == 1
    out, err = capfd.readouterr()
    assert (err, "9" * 81 in out) == ("", False)


def test_output_that_is_no_place(here, capfd):
    for path in ("empty", "pipe", "/dev/null", "/proc/w", "no/w", "a\0b", "x" * 5000):
        assert "--output " in line_of(capfd, ("train", "mlp", "--dp", "2", "--output", path))
    assert sorted(os.listdir(here)) == ["empty", "pipe", "sparse", "whole.safetensors"]


def test_no_handles_are_left_open(here, capfd):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for name in ("pipe", "sparse", "empty"):
        line_of(capfd, ("train", "mlp", "--layout", name))
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)
