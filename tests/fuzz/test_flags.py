"""Random command lines, in this process, no rank started: each is accepted, or refused in one line."""

import contextlib
import io
import os
import random
import sys
import time

import numpy as np
import pytest
import typer

from parallel_dl import checkpoint, launch
from parallel_dl.cli import main
from parallel_dl.cli.main import app
from parallel_dl.networks import NETWORKS

SAMPLE, CAMPAIGN = 60, 3000
SECONDS = 120  # of CPU time for one command line: what would have no end

NUMBER_TEXTS = "0 1 2 3 4 7 8 64 1000 -1 1e3 1.5 nan inf -inf 99999999999 0x10 1_0 ½"
NUMBERS = [*NUMBER_TEXTS.split(), "9" * 30, "9" * 400, "9" * 5000, ""]
WORD_TEXTS = """
mse logistic cross-entropy sgd adam adamw lars constant step cosine float32 float64 auto window mpi owt a b c 1f1b gpipe
naive interleaved zb-h1 pipedream fc1 fc2 fc3 fc1=output fc2=input fc1=rows conv1=filters conv=channels conv1=9x9
conv1=tiles:2x2 digits idx npz cifar-10 ./good.npz ./floats.npz layout.toml weights plan.txt placement.toml pipe
/dev/zero folder no/such --dp -- = ä 1,2,1
"""
WORDS = [*WORD_TEXTS.split(), "\x1b[31m", "a\0b", "\ud800", "", "x" * 9000, "x y " * 999]
SMALL = [*(name for name, network in NETWORKS.items() if network.input_shape is None), "lenet5", "mpl"]
SCHEDULES = ["naive", "gpipe", "1f1b", "interleaved", "zb-h1", "pipedream", "1fb1"]
COMMANDS = ("train", "summary", "verify", "schedule", "diff", "run")


def flags_of(command):
    """(flag, whether a value follows) of a command, as typer knows them."""
    made = typer.main.get_command(app).commands[command]
    return [
        (name, not parameter.is_flag)
        for parameter in made.params
        if hasattr(parameter, "is_flag")
        for name in parameter.opts
    ]


def line(rng, flags):
    command = rng.choice(COMMANDS)
    arguments = [command]
    if command == "verify":  # which computes a little beforehand, with --exact
        arguments += [rng.choice(SMALL)] * (rng.random() < 0.95)
    elif command in ("train", "summary"):
        arguments += [rng.choice([*NETWORKS, "mlp", "mlp", "lenet5_small", "mpl"])] * (rng.random() < 0.95)
    elif command == "schedule":
        arguments += [rng.choice(SCHEDULES)] * (rng.random() < 0.7)
    elif command == "diff":
        arguments += rng.choices(["weights", "weights,weights", "pipe", "folder", "no", "good.npz", *WORDS[-3:]], k=2)
    else:
        arguments += rng.choices(["plan.txt", "program.py", "pipe", "folder", *WORDS[-3:]], k=1)
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5))):
        flag, valued = rng.choice(flags[command])
        value = rng.choice(NUMBERS if rng.random() < 0.5 else WORDS)
        arguments += [f"{flag}={value}"] if valued and rng.random() < 0.2 else [flag, *([value] if valued else [])]
    if rng.random() < 0.1:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice([*NUMBERS, *WORDS, "--help", "--bogus"]))
    return arguments


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with files of every kind; what would start ranks, train or draw is not done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run", lambda *_, **__: 0)
    train, verify = sys.modules["parallel_dl.cli.train"], sys.modules["parallel_dl.cli.verify"]
    monkeypatch.setattr(train, "_train_here", lambda *_: 0)
    monkeypatch.setattr(verify, "_start", lambda *_: {"cells": []})
    x, y = np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 3
    np.savez("good.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez("floats.npz", x_train=x, y_train=y / 7, x_test=x, y_test=y / 7)
    checkpoint.save("weights", {"fc1.weight": np.ones((2, 3))})
    os.mkfifo("pipe")
    os.mkdir("folder")
    for name, text in {
        "layout.toml": 'dp = 2\npp = 2\nschedule = "gpipe"\n',
        "plan.txt": "0F0 0B0\n",
        "placement.toml": '"fc1.weight" = 0\n',
        "program.py": "",
    }.items():
        with open(name, "w") as file:
            file.write(text)
    return tmp_path


def campaign(seeds):
    flags = {command: flags_of(command) for command in COMMANDS}
    refused = 0
    for seed in seeds:
        arguments = line(random.Random(seed), flags)
        out, err = io.StringIO(), io.StringIO()
        start = time.process_time()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(arguments)
        except BaseException as error:
            raise AssertionError(
                f"seed {seed}: {[a[:90] for a in arguments]}: {type(error).__name__}: {error}"
            ) from error
        what = (seed, [argument[:90] for argument in arguments], err.getvalue())
        assert time.process_time() - start < SECONDS, what
        assert status in (0, 1, 2), what
        if status == 2 and err.getvalue():
            refused += 1
            assert err.getvalue().count("\n") == 1, what
            assert len(err.getvalue()) < 1100, what
            assert err.getvalue()[:-1].isprintable(), what
            assert not any(long in err.getvalue() for long in ("x" * 81, "9" * 81, "x y " * 21)), what
    return refused


def test_a_sample_of_random_flags(here):
    assert campaign(range(SAMPLE)) > SAMPLE / 4


@pytest.mark.soak
def test_thousands_of_random_flags(here):
    assert campaign(range(CAMPAIGN)) > CAMPAIGN / 4
