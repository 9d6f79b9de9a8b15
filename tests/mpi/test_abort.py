"""Failures of one rank under a plain mpirun, and other ways to end, each as a script of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import HANG

from parallel_dl.launch.environment import find_mpirun, settings

SCRIPT = """
import os, sys, threading
import numpy as np
from parallel_dl.mpi import Communicator, SharedWindow, finish, world

comm = world()

def main(comm):
    {body}

main(comm)
"""


@pytest.fixture
def run(tmp_path):
    """run(body, ranks): runs the lines as one script on several ranks; (exit status, all output), 124 for a hang."""

    def run_script(
        body: str, ranks: int = 2, wrap: Sequence[str] = (), text: str = SCRIPT, **variables: str
    ) -> tuple[int, str]:
        script = tmp_path / "script.py"
        script.write_text(text.format(body=body.strip().replace("\n", "\n    ")))
        known = {name: value for name, value in os.environ.items() if not name.startswith("PARALLEL_DL")}
        paths = [str(Path(__file__).parents[2]), known.get("PYTHONPATH", "")]
        environment = {**known, **settings(ranks, str(tmp_path)), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment.update(variables)
        mpirun = ["timeout", "-k", "2", str(HANG), str(find_mpirun()), "-n", str(ranks)]
        command = [*wrap, *mpirun, sys.executable, str(script)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout.decode(errors="replace")

    return run_script


def test_an_exception_on_one_rank_ends_all(run):
    status, output = run("if comm.rank == 1:\n    raise KeyError('lost key')\ncomm.barrier()")
    assert status == 1
    assert "rank 1 of 2 raised:\nTraceback" in output
    assert "KeyError: 'lost key'" in output


def test_sys_exit_on_one_rank_ends_all_with_its_status(run):
    status, output = run("if comm.rank == 1:\n    sys.exit(7)\ncomm.barrier()")
    assert status == 7
    assert "rank 1 of 2 ended with status 7" in output


def test_sys_exit_with_a_message(run):
    status, output = run("if comm.rank == 0:\n    exit('no such thing')\ncomm.barrier()", 3)
    assert status == 1
    assert "no such thing" in output


HARMLESS = {
    "caught": """
try:
    sys.exit(3)
except SystemExit as ended:
    assert ended.code == 3""",
    "caught, without a status": """
try:
    sys.exit()
except SystemExit as ended:
    assert ended.code is None""",
    "in a thread": """
thread = threading.Thread(target=lambda: sys.exit(3))
thread.start()
thread.join()""",
    "in a child": """
child = os.fork()
if child == 0:
    try:
        sys.exit(3)
    except SystemExit as ended:
        os._exit(ended.code)
assert os.waitpid(child, 0)[1] >> 8 == 3""",
}


@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
def test_exits_that_do_not_end_the_rank_do_nothing(run, body):
    lines = "\n    ".join(["if comm.rank == 1:", *body.strip().splitlines()])
    status, output = run(lines + "\ncomm.barrier()\nprint('past the barrier')\nsys.exit(0)")
    assert status == 0
    assert output.count("past the barrier") == 2
    assert "Traceback" not in output


def test_nothing_is_installed_where_somebody_else_watches(run):
    body = "print('replaced' if sys.exit.__name__ == 'exit_or_abort' else 'as it was')"
    assert run(body)[1].count("replaced") == 2
    assert run(body, PARALLEL_DL_JOB="somewhere")[1].count("as it was") == 2
    assert run(body, 1)[1].count("as it was") == 1


BEFORE = """
import sys
from mpi4py import MPI
before = sys.exit
import parallel_dl.mpi
assert sys.exit is before
if MPI.COMM_WORLD.rank == 1:
    raise KeyError('lost key')
MPI.COMM_WORLD.Barrier()
"""


def test_an_exception_ends_all_from_the_import_on(run):
    """Before any communicator is made; only then is `sys.exit` replaced."""
    status, output = run("", text=BEFORE)
    assert status == 1
    assert "rank 1 of 2 raised:\nTraceback" in output


def test_finish_lets_every_rank_end_in_order(run):
    status, output = run("finish()\nprint('finished')\nsys.exit(2)")
    assert status == 2
    assert output.count("finished") == 2
    assert "rank 0 of 2 ended" not in output


def test_a_rank_that_has_ended_is_reported_in_checked_mode(run):
    status, output = run("comm = Communicator(comm.mpi, checked=True)\nif comm.rank != 1:\n    comm.barrier()", 3)
    assert status not in (0, 124)
    assert "rank 1 has ended but ranks 0 and 2 call barrier #1" in output


def test_a_normal_end_with_many_communicators_and_a_window_left_open(run):
    body = """
comm = Communicator(comm.mpi, checked=True)
pairs = [comm.split(0 if comm.rank in pair else None, name=str(pair)) for pair in ((0, 1), (1, 2), (2, 0))]
for pair in pairs:
    if pair is not None:
        pair.barrier()
window = SharedWindow(comm, 1000)
window.all_reduce()
print("done")
"""
    status, output = run(body, 3)
    assert status == 0, output
    assert output.count("done") == 3


@pytest.mark.parametrize("end", ["for window in windows:\n    window.free()", "", "comm.mpi.Abort(3)"])
def test_nothing_of_a_window_is_left_in_shared_memory(run, isolated, end):
    wrap, left = isolated([])
    body = (
        "windows = [SharedWindow(comm, 100_000) for _ in range(3)]\nfor window in windows:\n    window.all_reduce()\n"
    )
    status, output = run(body + end, wrap=wrap)
    assert status == (3 if "Abort" in end else 0), output
    if "Abort" not in end:
        assert left() == []
    assert not [name for name in left() if "osc" in name]


# -- hangs --------------------------------------------------------------------------------------------------------
HANGS = {
    "both receive first": (
        "comm.receive(1 - comm.rank, (4,), float)",
        "parallel-dl: deadlock: ranks 0 and 1 wait for each other; ended all ranks",
    ),
    "rank 0 has ended": (
        "if comm.rank:\n    comm.barrier()",
        "parallel-dl: deadlock: rank 0 has ended, and rank 1 waits for it; ended all ranks",
    ),
    "mpi4py alone": (
        "from mpi4py import MPI\nMPI.COMM_WORLD.Sendrecv(np.ones(3), 1 - comm.rank, 1, np.ones(3), 1 - comm.rank, 2)",
        "parallel-dl: deadlock: ranks 0 and 1 wait for each other; ended all ranks",
    ),
}


@pytest.mark.parametrize("name", HANGS)
def test_a_deadlock_under_a_plain_mpirun_is_named(run, name):
    body, said = HANGS[name]
    status, output = run(body)
    assert status not in (0, 124)
    assert said in output
    assert re.search(r"^  rank 1  waits in .* script.py:\d+ in main$", output, re.MULTILINE)


def test_what_is_slow_under_a_plain_mpirun_is_left_alone(run):
    status, output = run("import time\nif comm.rank:\n    time.sleep(3)\ncomm.barrier()\nprint('met')")
    assert status == 0
    assert output.count("met") == 2
    assert "parallel-dl" not in output


def test_without_the_watchdog_nobody_looks(run):
    """The ranks end by the time limit of the shell, which is what a hang looks like."""
    wrap = ["timeout", "-k", "2", "6"]
    status, output = run("comm.receive(1 - comm.rank, (4,), float)", wrap=wrap, PARALLEL_DL_WATCHDOG="0")
    assert status == 124
    assert "deadlock" not in output
