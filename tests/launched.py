"""Programs run by the launcher on ranks, as fixtures: in order, or to be killed; nothing of them may be left."""

import os
import signal
import subprocess
import textwrap
import time
from types import SimpleNamespace

import pytest
from conftest import HANG

DRIVER = "import sys; from parallel_dl.launch import run; sys.exit(run(int(sys.argv[1]), sys.argv[2:]))"
MPI = "from mpi4py import MPI\ncomm = MPI.COMM_WORLD\nrank = comm.Get_rank()\n"
START = "import os, sys, time, signal\nopen(f'pid.{os.getpid()}', 'w').close()\n"


@pytest.fixture
def temporary(tmp_path_factory):
    """The temporary folder of the launcher, mpirun and the ranks."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def start(tmp_path, temporary, environment, isolated, python):
    """Starts a program on two ranks through `launch.run`; the process, not waited for."""

    def start(program, *arguments, ranks=2, size="4g", tmpdir=temporary):
        path = tmp_path / "program.py"
        path.write_text(START + textwrap.dedent(program))
        environment.setenv("TMPDIR", str(tmpdir))
        command, left = isolated([python, "-c", DRIVER, str(ranks), str(path), *arguments], size)
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        return SimpleNamespace(process=process, left=left)

    return start


@pytest.fixture
def pids(tmp_path):
    return lambda: [int(path.name.split(".")[1]) for path in tmp_path.glob("pid.*")]


@pytest.fixture
def run(start, temporary, pids, living):
    """Runs a program to its end; nothing of it may be left."""

    def run(program, *arguments, ranks=2, size="4g", tmpdir=temporary):
        started = start(program, *arguments, ranks=ranks, size=size, tmpdir=tmpdir)
        try:
            out, err = started.process.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            os.killpg(started.process.pid, signal.SIGKILL)
            pytest.fail(f"still running after {HANG} s")
        except KeyboardInterrupt:  # the program, in a session of its own, does not get it
            started.process.terminate()
            started.process.wait()
            raise
        assert living(pids(), 10) == []
        assert started.left() == []
        assert list(tmpdir.iterdir()) == []
        return SimpleNamespace(status=started.process.returncode, out=out, err=err)

    return run


def emptied(folder):
    """Whether the folder is empty, after a while."""
    deadline = time.monotonic() + HANG
    while any(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(folder.iterdir())


def launcher_of(pid, below):
    """The launcher itself, which is a child of the shell that made its /dev/shm."""
    if not below:
        return pid
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return int(listed.stdout.split()[0])
