"""The flags of run that concern the watchdog, and where each rank is when a run is stopped."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import HANG

SEND_SEND = """from mpi4py import MPI
import numpy as np
comm = MPI.COMM_WORLD
comm.Send(np.ones(4), 1 - comm.rank)
comm.Recv(np.empty(4), 1 - comm.rank)
print("passed", flush=True)
"""

OTHER_ROOT = """from mpi4py import MPI
import numpy as np
comm = MPI.COMM_WORLD
comm.Bcast(np.ones(4), root=comm.rank)
"""

HANGS = """from mpi4py import MPI
comm = MPI.COMM_WORLD
def work():
    while comm.rank == 1:
        pass
def main():
    work()
    comm.recv(source=1)
main()
"""


@pytest.fixture
def begin(tmp_path, environment, python):
    """begin(program, *flags): `parallel-dl run` of it on two ranks; the process."""

    def begin(program, *flags):
        path = tmp_path / "program.py"
        path.write_text(program)
        command = [python, "-P", "-m", "parallel_dl", "run", *flags, "-n", "2", str(path)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    return begin


@pytest.fixture
def run(begin):
    """run(program, *flags) -> (status, stdout, stderr)."""

    def run(program, *flags):
        process = begin(program, *flags)
        try:
            out, err = process.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, out, err

    return run


def test_small_messages_hide_a_send_that_waits(run):
    status, out, err = run(SEND_SEND)
    assert (status, out.count("passed"), err) == (0, 2, "")  # MPICH may mix the lines of ranks
    status, _, err = run(SEND_SEND, "--synchronous")
    assert status == 1
    assert err.startswith("parallel-dl: deadlock: ranks 0 and 1 wait for each other; ended the other ranks\n")
    assert re.search(r"^  rank 0  waits in Send\(float64 \(4,\), dest=1, .* program.py:4$", err, re.MULTILINE)


def test_calls_are_compared_unless_told_otherwise(run):
    status, _, err = run(OTHER_ROOT)
    assert status == 1
    assert "CollectiveMismatch: on communicator 'MPI.COMM_WORLD': rank 0 calls Bcast(root=0" in err
    assert run(OTHER_ROOT, "--unchecked")[0] == 0
    assert run(OTHER_ROOT, "--no-wrap")[0] == 0


def test_a_time_limit_says_where_each_rank_is(run):
    status, _, err = run(HANGS, "--timeout", "2")
    assert status == 1
    lines = err.splitlines()
    assert lines[0].startswith("parallel-dl: took more than 2 s")
    assert re.fullmatch(r"  rank 1  is in its own code .* program.py:[45] in work", lines[1])
    assert lines[2:4] == ["      called from program.py:7 in main", "      called from program.py:9"]
    assert re.fullmatch(r"  rank 0  waits in recv\(.* for rank 1 to send +program.py:8 in main", lines[4])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_so_does_a_signal(begin, number):
    process = begin(HANGS + "\n")
    time.sleep(4)  # ranks need less to start; one that has not yet is not there to be named
    process.send_signal(number)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 128 + number
    assert err.startswith(f"parallel-dl: stopped by {signal.Signals(number).name}; ended all ranks\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--timeout", "0"), "--timeout 0: must be a number of seconds above 0"),
        (("--timeout", "nan"), "--timeout nan: must be a number of seconds above 0"),
        (("--synchronous", "--no-wrap"), "--synchronous with --no-wrap: "),
    ],
)
def test_bad_flags(run, flags, said):
    status, _, err = run(HANGS, *flags)
    assert status == 2
    assert err.startswith(f"parallel-dl: {said}")
    assert err.count("\n") == 1
