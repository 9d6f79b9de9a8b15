"""The plugin from the checkout when the package is not installed; commands with a /dev/shm of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from parallel_dl.launch.environment import inside_mpirun

pytest_plugins = ["pytester", "launched"]
PLUGIN = [] if entry_points(group="pytest11", name="parallel_dl") else ["parallel_dl.testing"]
pytest_plugins += PLUGIN

ROOT = Path(__file__).parent.parent
HANG = 300  # seconds after which a test counts as hanging; busy machines need less, and no speed is measured


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Chooses by name: the same cases on all ranks, and however few tests are asked for."""
    chosen = {}
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None and zlib.crc32(item.name.encode()) % mark.args[0]:
            item.add_marker(pytest.mark.grid)
        if mark is not None:
            chosen[item.function] = chosen.get(item.function) or item.get_closest_marker("grid") is None
    if not inside_mpirun() and not any("::" in argument for argument in config.args):  # ranks have only their own cases
        for function, any_of_its in chosen.items():
            if not any_of_its:
                raise pytest.UsageError(f"{function.__name__}: sampled() leaves none of its cases to the suite")


if not inside_mpirun():  # ranks run no property tests, and start sooner without it
    from hypothesis import HealthCheck, settings

    settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("suite")
    # like Ctrl-C, so that a test ends the programs that it has started in sessions of their own
    signal.signal(signal.SIGTERM, signal.default_int_handler)

# A mount namespace with an empty /dev/shm: what a command leaves there is its own, whatever else runs on this machine.
PRIVATE = """mount -t tmpfs -o size="$1" tmpfs /dev/shm || exit 99; left="$2"; shift 2
"$@"; status=$?
for i in $(seq 50); do [ -z "$(ls /dev/shm)" ] && break; sleep 0.2; done
ls /dev/shm > "$left"; exit $status"""


def _can_unshare():
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=False).returncode == 0


@pytest.fixture(scope="session")
def can_unshare():
    """Whether a command can be given a /dev/shm of its own (root on Linux)."""
    return _can_unshare()


@pytest.fixture
def isolated(tmp_path_factory, can_unshare):
    """isolated(command, size="4g") -> (command in its own /dev/shm, what it left there: a function)."""

    def wrap(command, size="4g"):
        if not can_unshare:
            return list(command), list
        left = tmp_path_factory.mktemp("left") / "names"
        wrapped = ["unshare", "-m", "sh", "-c", PRIVATE, "sh", size, str(left), *command]
        return wrapped, lambda: left.read_text().split()

    return wrap


@pytest.fixture
def environment(monkeypatch):
    """The environment in which a fresh Python finds this checkout, and is no rank of anything."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("PARALLEL_DL_JOB", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def python():
    return sys.executable


def living(pids, seconds=30.0):
    """Those of the processes that still live after at most so many seconds; ended but not yet waited for is dead."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid in pids if _lives(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _lives(pid):
    line = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(line.strip()) and not line.startswith("Z")


@pytest.fixture(name="living")
def living_fixture():
    return living
