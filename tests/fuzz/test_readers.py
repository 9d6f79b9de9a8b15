"""Damaged files of every kind, by the thousands: read, or refused in one line; never a traceback, never a hang.

`make test` takes a sample; `make soak` takes 2,000 of each kind.
"""

import contextlib
import gzip
import io
import struct
import time

import numpy as np
import pytest
from mutations import mutated

from parallel_dl import checkpoint, datasets, nn
from parallel_dl.cli import main
from parallel_dl.cli.flags import LayoutFlags
from parallel_dl.cli.layout import layout_of
from parallel_dl.datasets import cifar10
from parallel_dl.equivalence.compare.files import compare_files, read_placement
from parallel_dl.errors import MOST_OF_LINE, InputError
from parallel_dl.layout import Layout
from parallel_dl.schedule import PlanError, make, write

SAMPLE, CAMPAIGN = 60, 2000
SECONDS = 120  # of CPU time for one input: what would have no end


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def npz():
    file = io.BytesIO()
    x, y = np.arange(24, dtype=np.uint8).reshape(4, 2, 3), np.array([0, 1, 1, 0])
    np.savez(file, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2] / 1)
    return file.getvalue()


def safetensors(state, facts=None):
    from safetensors.numpy import save

    return save(state, facts)


NETWORK = nn.Sequential(fc1=nn.Linear(3, 2)).initialize()
WEIGHTS = {"fc1.weight": np.ones((2, 3), np.float32), "fc1.bias": np.ones(2, np.float32)}
IMAGES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
RECORDS = b"".join(bytes([label]) + bytes(range(256)) * 12 for label in (0, 9))
LAYOUT = b"""dp = 2
mp = 2
microbatches = 4
schedule = "1f1b"
stages = ["fc2", "fc3"]
reproducible = false
[split]
fc1 = "output"
"tower.fc1" = "input"
"""
PLACEMENT = b'"fc1.*" = 0\n"*.weight" = "sum"\n[fc1]\nbias = "replicated"\nweight = -1\n'
PLACEMENT_JSON = b'{"fc1.*": 0, "*.weight": "sum", "fc1": {"bias": "replicated", "weight": 1}}'
PLAN = write(make("1f1b", 3, 4)).encode()
CSV = b"0F0,0F1,0B0,0B1\n,1F0,1B0,1F1,1B1\n2SEND_F0,(0F3;3B1)OVERLAP_F_B,1UNSHARD\n"


def state_of(path):
    weights = checkpoint.read(path)
    checkpoint.require_fits(path, NETWORK)
    NETWORK.load_state_dict(weights)


def placed(path):
    """The placement, and two files put together by it."""
    placement = read_placement(str(path))
    for name in ("a", "b"):
        if not (path.parent / name).exists():
            checkpoint.save(path.parent / name, WEIGHTS)
    compare_files(f"{path.parent / 'a'},{path.parent / 'b'}", str(path.parent / "a"), placement=placement)


def checked(path):
    """As a command: what it refuses is one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["schedule", "--check", str(path), "--json"])
    if status:
        assert (status, err.getvalue().count("\n")) == (2, 1)
        raise InputError(err.getvalue())


# kind -> (name of the file, valid content, reader of a path, whether it is text)
KINDS = {
    "idx": ("a", idx(IMAGES), datasets.read_idx, False),
    "idx.gz": ("a.gz", gzip.compress(idx(IMAGES), mtime=0), datasets.read_idx, False),
    "npz": ("a.npz", npz(), datasets.load, False),
    "cifar": ("a.bin", RECORDS, cifar10.read_records, False),
    "weights": ("w", safetensors(WEIGHTS, {"parallel_dl": "{}"}), state_of, False),
    "state": ("s", None, checkpoint.load, False),
    "layout": ("a.toml", LAYOUT, lambda path: (Layout.read(path), layout_of(LayoutFlags(str(path)))), True),
    "placement.toml": ("p.toml", PLACEMENT, placed, True),
    "placement.json": ("p.json", PLACEMENT_JSON, placed, True),
    "plan": ("a.txt", PLAN, checked, True),
    "csv": ("a.csv", CSV, checked, True),
}


def campaign(kind, folder, seeds):
    """(refused, accepted); fails at anything but one short line."""
    name, content, read_path, texts = KINDS[kind]
    path = folder / name
    if content is None:
        checkpoint.save(
            path, {"state": [{"m": np.ones(3), "n": 2, "x": (None, "a", 1.5)}, {}], "rule": "sgd"}, {"a": 1}
        )
        content = path.read_bytes()
    counts = [0, 0]
    for seed in seeds:
        path.write_bytes(mutated(content, seed, texts))
        start = time.process_time()
        try:
            read_path(path)
        except (InputError, PlanError) as error:
            line = str(error)
            assert "\n" not in line, (kind, seed)
            assert len(line) <= MOST_OF_LINE + 200, (kind, seed)
            counts[0] += 1
        except BaseException as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
        else:
            counts[1] += 1
        assert time.process_time() - start < SECONDS, (kind, seed)
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_damaged_files(tmp_path, kind):
    refused, _ = campaign(kind, tmp_path, range(SAMPLE))
    assert refused > SAMPLE / 10


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_damaged_files(tmp_path, kind):
    refused, accepted = campaign(kind, tmp_path, range(CAMPAIGN))
    assert refused > CAMPAIGN / 10
    assert accepted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_right_before_they_are_damaged(tmp_path, kind):
    """Else all of it would be about the first check."""
    name, content, read_path, _ = KINDS[kind]
    if content is not None and kind != "csv":  # of which a part is there to be refused
        (tmp_path / name).write_bytes(content)
        read_path(tmp_path / name)
