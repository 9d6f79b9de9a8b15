"""The folder for MPI's start: what a killed process has left is removed by the next one, and nothing else is."""

import os
import signal
import subprocess
import sys

import pytest

from parallel_dl.mpi import scratch
from parallel_dl.mpi.scratch import scratch_folder

KILLED = """
import os, signal
from parallel_dl.mpi.scratch import scratch_folder
with scratch_folder() as folder:
    open(os.path.join(folder, "file"), "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_removed_even_after_an_error(temporary):
    def use():
        with scratch_folder() as folder:
            assert os.listdir(temporary) == [os.path.basename(folder)]
            open(os.path.join(folder, "file"), "w").close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert os.listdir(temporary) == []


def test_what_a_killed_process_left_is_removed_by_the_next(temporary, environment):
    environment.setenv("TMPDIR", str(temporary))
    # (the package itself would import MPI)
    code = "import sys, types; import parallel_dl; m = types.ModuleType('parallel_dl.mpi')\n"
    code += f"m.__path__ = {[os.path.dirname(scratch.__file__)]!r}; sys.modules['parallel_dl.mpi'] = m\n"
    ended = subprocess.run([sys.executable, "-c", code + KILLED], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(os.listdir(temporary)) == 1
    with scratch_folder() as folder:
        assert os.listdir(temporary) == [os.path.basename(folder)]
    assert os.listdir(temporary) == []


def test_one_in_use_is_left(temporary):
    with scratch_folder() as first:
        with scratch_folder() as second:
            assert sorted(os.listdir(temporary)) == sorted(map(os.path.basename, [first, second]))
        assert os.path.isdir(first)


def test_other_folders_are_left(temporary):
    others = ["pdl-123456", "mine"]
    for name in others:
        (temporary / name).mkdir()
    (temporary / "pdl-mpi-link").symlink_to(temporary / "mine")
    with scratch_folder():
        pass
    assert sorted(os.listdir(temporary)) == sorted([*others, "pdl-mpi-link"])


def test_one_that_was_taken_for_stale_before_it_was_locked(temporary, monkeypatch):
    lock = scratch.fcntl.flock
    taken = []

    def take(number, how):
        if not taken:
            taken.append(os.listdir(temporary)[0])
            os.rmdir(temporary / taken[0])
        lock(number, how)

    monkeypatch.setattr(scratch.fcntl, "flock", take)
    with scratch_folder() as folder:
        assert os.path.isdir(folder)
        assert os.path.basename(folder) not in taken
