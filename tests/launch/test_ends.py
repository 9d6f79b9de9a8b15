"""Who ended, and why: of ranks, of mpirun and of the launcher; with the Python lines of a crash, and nothing left."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import HANG
from launched import MPI, emptied, launcher_of

from parallel_dl.launch import tracebacks
from parallel_dl.launch.environment import find_mpirun, is_hydra

WAITING = "comm.Barrier()\nopen(f'at.{rank}', 'w').write(str(os.getpid()))\n"
IN_PYTHON, IN_MPI = "time.sleep(1000)", "comm.recv(source=(rank + 1) % 2)"


def summary(ended):
    return [line for line in ended.err.splitlines() if line.startswith("parallel-dl: ")]


def lines_of(ended, rank):
    return [line.removeprefix(f"rank {rank}: ") for line in ended.err.splitlines() if line.startswith(f"rank {rank}: ")]


@pytest.fixture
def waiting(start, tmp_path):
    """Two ranks that have met and wait; waiting(where) -> what `start` gives, with `.pids`, those of the ranks."""

    def wait(where):
        started = start(MPI + WAITING + where)
        deadline = time.monotonic() + HANG
        files = [tmp_path / f"at.{rank}" for rank in range(2)]
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < deadline, "the ranks did not start"
            time.sleep(0.02)
        started.pids = [int(file.read_text()) for file in files]
        return started

    return wait


@pytest.fixture
def end_of(temporary, pids, living):
    """The end of what `waiting` has started: its status and its lines on stderr; nothing is left."""

    def end(started):
        _, err = started.process.communicate(timeout=HANG)
        assert living(pids(), 10) == []
        assert started.left() == []
        assert emptied(temporary)
        return started.process.returncode, err.splitlines()

    return end


@pytest.mark.parametrize(
    ("where", "number", "said"),
    [
        (IN_PYTHON, signal.SIGINT, "rank 1 was interrupted (SIGINT)"),
        (IN_MPI, signal.SIGINT, "rank 1 was interrupted (SIGINT)"),
        (IN_MPI, signal.SIGTERM, "rank 1 was killed by SIGTERM"),
        pytest.param(IN_PYTHON, signal.SIGKILL, "rank 1 was killed by SIGKILL", marks=pytest.mark.grid),
        pytest.param(IN_PYTHON, signal.SIGBUS, "rank 1 was killed by SIGBUS", marks=pytest.mark.grid),
    ],
)
def test_a_signal_to_one_rank(waiting, end_of, where, number, said):
    started = waiting(where)
    os.kill(started.pids[1], number)
    status, lines = end_of(started)
    assert lines[0] == f"parallel-dl: {said}; ended the other ranks"
    assert status == 128 + number


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGKILL,
        pytest.param(signal.SIGSEGV, marks=pytest.mark.grid),
        pytest.param(signal.SIGINT, marks=pytest.mark.grid),
    ],
)
def test_a_signal_to_mpirun_is_none_to_a_rank(waiting, end_of, number, can_unshare):
    started = waiting(IN_PYTHON)
    launcher = launcher_of(started.process.pid, can_unshare)
    listing = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(launcher)]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True)
    (mpirun,) = [int(line.split()[0]) for line in listed.stdout.splitlines() if "launch/__main__.py" in line]
    os.kill(mpirun, number)
    status, lines = end_of(started)
    said = [line for line in lines if line.startswith("parallel-dl: ")]
    assert len(said) == 1
    assert "rank 0 was" not in said[0]
    assert "rank 1 was" not in said[0]
    assert said[0].startswith(("parallel-dl: mpirun ", "parallel-dl: ranks 0, 1 were interrupted"))
    assert status > 128


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.grid)])
def test_a_signal_to_an_attendant(waiting, end_of, number):
    """It cannot tell how its rank ended; mpirun tells, on a page, which is not shown."""
    started = waiting(IN_PYTHON)
    listing = ["ps", "-o", "ppid=", "-p", str(started.pids[1])]
    attendant = int(subprocess.run(listing, capture_output=True, text=True, check=True).stdout)
    os.kill(attendant, number)
    status, lines = end_of(started)
    assert len(lines) == 1, lines
    assert lines[0].startswith("parallel-dl: rank ")
    assert lines[0].endswith(f" was killed by {number.name}; ended the other ranks")
    assert status == 128 + number


def test_a_rank_that_handles_its_interrupts_has_them(run):
    wait = "os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(1000)"
    ended = run(f"try:\n    {wait}\nexcept KeyboardInterrupt:\n    print('mine')", ranks=1)
    assert (ended.status, ended.out, ended.err) == (0, "mine\n", "")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("delay", [0, 0.05, 0.4, pytest.param(1, marks=pytest.mark.grid)])
def test_a_launcher_killed_while_it_starts_ranks(start, temporary, pids, living, can_unshare, delay):
    started = start(MPI + "time.sleep(1000)")
    deadline = time.monotonic() + HANG
    while not any(temporary.iterdir()):
        assert time.monotonic() < deadline, "no folder"
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(launcher_of(started.process.pid, can_unshare), signal.SIGKILL)
    _, err = started.process.communicate(timeout=HANG)
    assert emptied(temporary)
    assert living(pids(), 10) == []
    assert started.left() == []
    assert "Traceback" not in err


# -- crashes and errors --------------------------------------------------------------------------------------------
CRASH = """
import ctypes
def inner():
    ctypes.string_at(0)
if rank == 1: inner()
comm.Barrier()
comm.Barrier()
"""


def test_a_crash_shows_the_python_lines(run):
    ended = run(MPI + CRASH)
    assert summary(ended) == ["parallel-dl: rank 1 was killed by SIGSEGV; ended the other ranks"]
    lines = lines_of(ended, 1)
    assert lines[0].startswith("Fatal Python error: ")
    assert lines[-2].endswith("in inner")
    assert lines[-1].endswith("in <module>")
    assert "program.py" in lines[-1]
    assert len(ended.err.splitlines()) == 1 + len(lines)


RAISE = "def inner(): raise ValueError('no good')\nif rank == 1: inner()\ncomm.Barrier()\ncomm.Barrier()"


def test_a_traceback_begins_in_the_users_file(run):
    ended = run(MPI + RAISE)
    assert ended.err.splitlines()[0].startswith("parallel-dl: rank 1 raised ValueError: no good (program.py:")
    frames = [line for line in lines_of(ended, 1) if line.startswith("  File ")]
    assert len(frames) == 2
    assert all("program.py" in line for line in frames)


def test_the_full_one_where_it_is_asked_for(run, environment):
    environment.setenv(tracebacks.FULL_VARIABLE, "1")
    assert "runpy" in run(MPI + RAISE).err


def test_errors_that_led_to_it_are_cut_too(run):
    program = "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('no good') from error"
    ended = run(program, ranks=1)
    assert "KeyError: 'a'" in ended.err
    assert "runpy" not in ended.err
    assert summary(ended)[0].startswith("parallel-dl: rank 0 raised ValueError: no good (program.py:")


def test_a_syntax_error_has_no_frames(run):
    ended = run("x = = 3", ranks=1)
    assert summary(ended) == ["parallel-dl: rank 0 raised SyntaxError: invalid syntax (program.py:3)"]
    assert "runpy" not in ended.err


TRUNCATION = """
import numpy as np
from parallel_dl.mpi import world
if rank == 0: comm.Send(np.ones(3), 1)
if rank == 1: {}
comm.Barrier()
comm.Barrier()
"""


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("world().receive(0, (2,), np.float64)", "receive(source=0, shape=(2,), dtype=float64, tag=0)"),
        ("comm.Recv(np.empty(2), 0)", "Recv"),
    ],
)
def test_a_message_that_is_too_long(run, call, named):
    ended = run(MPI + TRUNCATION.format(call))
    (said,) = summary(ended)
    assert said.startswith(f"parallel-dl: rank 1 received more than it asked for in {named} (program.py:")
    assert "PARALLEL_DL_CHECKED=1" in said
    assert ended.status == 1


def test_calls_that_do_not_match_are_shown_with_every_ranks_line(run, environment):
    environment.setenv("PARALLEL_DL_CHECKED", "1")
    program = """
import numpy as np
from parallel_dl.mpi import world
if rank == 0:
    world().all_reduce(np.ones(3))
else:
    world().barrier()
"""
    ended = run(MPI + program)
    (said,) = summary(ended)
    assert "CollectiveMismatch: on communicator 'world': rank 0 calls all_reduce #1" in said
    assert re.search(r"^  rank 0  all_reduce #1 .* prog\w*\.py:\d+$", ended.err, re.MULTILINE)
    assert re.search(r"^  rank 1  barrier #1 .* prog\w*\.py:\d+$", ended.err, re.MULTILINE)
    assert "checked.py" not in ended.err


@pytest.mark.parametrize(
    ("call", "rank"),
    [
        ("if rank == 1: comm.Bcast(np.ones(1), 7)", 1),
        ("if rank == 2: comm.Send(np.ones(1), 9)", 2),
        pytest.param("if rank == 1: comm.Bcast([np.ones(1), -1, MPI.DOUBLE], 0)", 1, marks=pytest.mark.grid),
    ],
)
def test_the_rank_that_called_wrongly_is_named(run, call, rank):
    ended = run(MPI + f"import numpy as np\n{call}\ncomm.Barrier()\ncomm.Barrier()", ranks=3)
    (said,) = summary(ended)
    assert said.startswith(f"parallel-dl: rank {rank} raised ")
    assert "program.py:7" in said


def aborted(ended):
    """Whether the end is called what it was; Hydra may end before it has passed on what MPICH says of the rank."""
    (said,) = summary(ended)
    known = ended.err == "parallel-dl: rank 1 called MPI_Abort; ended the other ranks\n"
    unknown = is_hydra(find_mpirun()) and said.startswith("parallel-dl: mpirun ended with status 5 ")
    return ended.status == 5 and (known or unknown)


@pytest.mark.parametrize("comm", ["comm", "MPI.COMM_SELF"])
def test_the_rank_that_aborts_is_named(run, comm):
    """By its number among all ranks, whichever communicator it aborts."""
    assert aborted(run(MPI + f"if rank == 1: {comm}.Abort(5)\ncomm.Barrier()\ncomm.Barrier()"))


@pytest.mark.parametrize("status", [0, 3])
def test_a_rank_that_leaves_without_a_word(run, status):
    """One line: mpirun's page would add nothing."""
    ended = run(MPI + f"comm.Barrier()\nif rank == 1: os._exit({status})\ntime.sleep(1000)")
    said = f"rank 1 ended with status {status} without completing (os._exit or a crash)"
    assert (ended.status, ended.err) == (status or 1, f"parallel-dl: {said}; ended the other ranks\n")


def test_a_rank_that_leaves_with_status_0_after_its_completion(run):
    ended = run(MPI + "import atexit\natexit.register(lambda: rank == 1 and os._exit(0))")
    said = "rank 1 ended with status 0, without MPI_Finalize, after it had completed"
    if is_hydra(find_mpirun()):  # does not say which rank it was, or takes it for a normal end
        said = f"mpirun ended with status {ended.status} after all ranks had completed (MPI_Abort or a crash)"
        assert (ended.status > 0) == bool(ended.err)
    else:
        assert ended.status == 1
    assert ended.err in ("", f"parallel-dl: {said}; ended the other ranks\n")
    assert ended.err or not ended.status


def test_an_error_that_mpi_does_not_return_names_its_rank_and_the_call(run):
    fatal = "comm.Set_errhandler(MPI.ERRORS_ARE_FATAL)\n    comm.Send(bytearray(1), 9)"
    ended = run(MPI + f"if rank == 1:\n    {fatal}\ntime.sleep(1000)")
    said = "rank 1 was ended by MPI after an error in Send"
    if is_hydra(find_mpirun()) and not ended.err.startswith("Abort("):
        # on a busy machine it may end before it has passed on the rank's last words; 6 is MPI_ERR_RANK
        said = "mpirun ended with status 6 before rank 0 had completed (MPI_Abort or a crash)"
    assert summary(ended) == [f"parallel-dl: {said}; ended the other ranks"]
    assert "\0" not in ended.err
    assert "prterun" not in ended.err


@pytest.mark.parametrize(
    ("code", "said", "hydra", "number"),
    [
        (134, b"", False, 6),
        (6, b"", False, 0),
        (6, b"THE EXIT STRING: Aborted (signal 6)\n", True, 6),
        (6, b"", True, 0),  # MPI_ERR_RANK: an error in MPI, whose words are lost
        (137, b"", True, 9),
    ],
)
def test_the_signal_in_the_status_of_mpirun(code, said, hydra, number):
    from parallel_dl.launch.ends import _signal_of

    assert _signal_of(code, said, hydra) == number


def test_an_abort_after_all_ranks_have_completed(run):
    """MPICH's MPI_Abort returns: the program may complete before mpirun ends its ranks, and then mpirun knows."""
    assert aborted(run(MPI + "import atexit\natexit.register(lambda: rank == 1 and comm.Abort(5))"))


def test_a_status_that_only_mpirun_knows(run):
    """A rank that fails after its completion record, while Python ends."""
    ended = run(MPI + "import atexit\natexit.register(lambda: rank == 1 and (MPI.Finalize(), os._exit(7)))")
    (said,) = summary(ended)
    assert ended.status == 7
    assert "status 7 after " in said


def test_fatal_errors_of_mpi_name_their_rank():
    from parallel_dl.launch.ends import _aborted

    mpich = (
        b"Abort(1007228558) on node 2 (rank 2 in comm 0): Fatal error in internal_Allreduce_c: Message truncated, "
        b"error stack:\nMPIDIG_recv_type_init(74): Message from rank 1 and tag 14 truncated; 48 bytes\n"
    )
    assert _aborted(mpich).line.startswith("rank 2 received more than it asked for in Allreduce: ")
    assert _aborted(mpich.replace(b"truncated", b"lost")).line == "rank 2 was ended by MPI after an error in Allreduce"
    abort = b"MPI_ABORT was invoked on rank 1 in communicator "
    assert _aborted(abort + b"MPI_COMM_WORLD\n").line == "rank 1 called MPI_Abort"
    assert _aborted(abort + b"MPI COMM 3 DUP FROM 0\n") is None  # the line that names the rank is still to come
    assert _aborted(abort + b"MPI COMM 3 DUP FROM 0\n  Proc: [[36815,1],4]\n").line == "rank 4 called MPI_Abort"
    open_mpi = (
        b"[vm:00000] *** An error occurred in MPI_Recv\n[vm:00000] *** reported by process [517996545,1]\n"
        b"[vm:00000] *** on communicator MPI_COMM_WORLD\n[vm:00000] *** MPI_ERR_TRUNCATE: message truncated\n"
    )
    assert _aborted(open_mpi).line.startswith("rank 1 received more than it asked for in Recv: ")
    assert _aborted(b"a program's own words") is None


BEGUN = "for number in 1, 2: os.write(number, f'begun by {rank} '.encode())\ncomm.Barrier()\n"


@pytest.mark.parametrize(
    "what",
    [
        "raise ValueError(5)",
        "comm.Abort(5)",
        "os._exit(3)",
        "sys.exit(3)",
        pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.grid),
        pytest.param("os.kill(os.getppid(), 9)", marks=pytest.mark.grid),
    ],
)
def test_lines_that_ranks_have_begun_are_shown(run, what):
    """Open MPI's mpirun holds them back until it ends."""
    ended = run(MPI + BEGUN + f"if rank == 1: {what}\ntime.sleep(1000)")
    said = ended.err[: ended.err.index("parallel-dl: ")]
    for rank in range(2):
        assert f"begun by {rank} " in ended.out
        assert f"begun by {rank} " in said


@pytest.mark.parametrize("what", ["comm.Abort(5)", "raise ValueError(5)", "os.kill(os.getpid(), 9)"])
def test_a_line_that_a_rank_has_begun_is_ended(run, what):
    ended = run(MPI + f"os.write(2, b'begun')\nif rank == 1: {what}\ncomm.Barrier()\ncomm.Barrier()")
    assert len(summary(ended)) == 1
