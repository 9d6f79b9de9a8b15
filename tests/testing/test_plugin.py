"""The pytest plugin, seen from a user's own pytest run in a folder of its own."""

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conftest import HANG, PLUGIN, ROOT

from parallel_dl.launch import find_mpirun
from parallel_dl.launch.environment import settings

CONFTEST = """
import os, pytest
open(f'pid.{os.getpid()}', 'w').close()

@pytest.fixture
def world():
    from mpi4py import MPI
    duplicate = MPI.COMM_WORLD.Dup()
    yield duplicate
"""
LOAD = [argument for name in PLUGIN for argument in ("-p", name)]


@pytest.fixture
def project(pytester, environment):
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.fixture
def pids(project):
    return lambda: [int(path.name.split(".")[1]) for path in project.path.glob("pid.*")]


@pytest.fixture
def run(project, pids, living, isolated, python):
    """Writes test_it.py (unless None) and runs pytest; neither a process nor anything in /dev/shm may be left."""

    def run(source, *arguments, before=()):
        if source is not None:
            project.makepyfile(test_it="import os, sys, time, signal, pytest\n" + source)
        command = [*before, python, "-m", "pytest", *LOAD, "-rA", "-o", "ranks_grace=60", *arguments]
        wrapped, left = isolated(command)
        result = project.run(*wrapped, timeout=HANG)
        assert living(pids()) == []
        assert left() == []
        return result

    return run


def lines(result):
    return result.stdout.str()


def test_outcomes(run):
    """Skips, expected failures, fixtures, parameters and classes behave as in any pytest session."""
    result = run(
        """
        @pytest.fixture(scope="module")
        def module(tmp_path_factory):
            open("module.up", "a").write("x")
            yield 3
            open("module.down", "a").write("x")

        @pytest.mark.ranks(1, 2)
        @pytest.mark.parametrize("letter", ["a", "b"])
        def test_passes(world, letter, module, tmp_path, capsys):
            print(letter)
            assert capsys.readouterr().out == letter + "\\n"
            assert len(set(world.allgather(str(tmp_path)))) == world.size

        @pytest.mark.ranks(2)
        class TestClass:
            def test_method(self, world): assert world.allreduce(1) == 2
            @pytest.mark.ranks(1)
            def test_closer_mark(self, world): assert world.size == 1

        @pytest.mark.ranks(2)
        def test_skip(): pytest.skip("not today")

        @pytest.mark.ranks(2)
        def test_skip_on_one(world):
            if world.rank: pytest.skip("only here")

        @pytest.mark.ranks(2)
        @pytest.mark.xfail(strict=True)
        def test_xfail_on_one(world): assert world.rank

        @pytest.mark.ranks(2)
        @pytest.mark.xfail
        def test_xpass(): pass

        @pytest.mark.ranks(2)
        @pytest.mark.xfail(strict=True, reason="never passes")
        def test_strict(): pass
        """.replace("\n        ", "\n"),
        "--durations=3",
    )
    result.assert_outcomes(passed=6, skipped=2, xfailed=1, xpassed=1, failed=1)
    said = lines(result)
    assert "test_it.py::test_passes[a-ranks=2]" in said
    assert "FAILED test_it.py::test_strict[ranks=2] - [XPASS(strict)] never passes" in said
    assert "not today" in said
    assert re.search(r"[\d.]+s (call|setup) +test_it.py::", said)
    # set up once by 1 + 2 ranks for four tests, and torn down in the ranks too
    assert Path("module.up").read_text() == Path("module.down").read_text() == "xxx"


def test_tracebacks_name_their_ranks(run):
    result = run(
        """
@pytest.mark.ranks(3)
def test_one(world):
    print("said by", world.rank)
    left = [world.rank, 1]
    assert left == [1, 1] or world.rank != 2

@pytest.mark.ranks(3)
def test_same(world): raise ValueError("alike")

@pytest.mark.ranks(2)
def test_setup(broken): pass

@pytest.fixture
def broken(world):
    if world.rank == 1: raise KeyError("in a fixture")

@pytest.fixture
def broken_end(world):
    yield
    if world.rank == 1: raise OSError("afterwards")

@pytest.mark.ranks(2)
def test_teardown(broken_end): pass

@pytest.mark.ranks(2)
def test_skips_or_fails(world):
    if world.rank == 0: pytest.skip("a failure elsewhere counts more")
    assert not world.rank
"""
    )
    result.assert_outcomes(failed=3, errors=2, passed=1)
    said = lines(result)
    assert said.index("--- rank 2 of 3 ---") < said.index("assert ([2, 1] == [1, 1]")
    assert "Captured stdout call (rank 2)" in said
    assert "--- ranks 0, 1, 2 of 3 ---" in said
    assert len(re.findall("^E +ValueError: alike", said, re.MULTILINE)) == 1
    assert "ERROR test_it.py::test_setup[ranks=2] - KeyError: 'in a fixture'" in said
    assert "ERROR test_it.py::test_teardown[ranks=2] - OSError: afterwards" in said


def test_hang(run):
    """The time-out fails this test only, and says where each rank is."""
    result = run(
        """
@pytest.mark.ranks(2, timeout=2)
def test_hangs(world):
    import time
    if world.rank == 0: time.sleep(100)
    world.Barrier()

@pytest.mark.ranks(2)
def test_by_ini(world):
    while True: pass

@pytest.mark.ranks(2, timeout=300)
def test_waits(world):
    if world.rank == 1: raise KeyError("first")
    while True: pass

@pytest.mark.ranks(2, timeout=300)
def test_next(world): world.Barrier()
""",
        *("-o", "ranks_timeout=1", "-o", "ranks_grace=1"),
    )
    result.assert_outcomes(failed=3, passed=1)
    said = lines(result)
    assert "ranks 0, 1 of 2 had not finished within 2 s" in said
    assert re.search(r"\n +rank 0  is in its own code +test_it.py:6 in test_hangs\n", said)
    assert re.search(r"\n +rank 1  waits in Barrier\(\) on .* for rank 0 +test_it.py:7 in test_hangs\n", said)
    assert "ranks 0, 1 of 2 had not finished within 1 s" in said
    assert "in _watch" not in said
    waiting = "rank 0 of 2 had not finished within 1 s after another rank had failed"
    assert re.search("E +KeyError: 'first'", said).start() < said.index(waiting)
    assert "FAILED test_it.py::test_waits[ranks=2] - KeyError: 'first'" in said


def test_death(run):
    result = run(
        """
@pytest.mark.ranks(2)
@pytest.mark.parametrize("status", [0, 7])
def test_exits(world, status):
    if world.rank == 1: os._exit(status)
    world.Barrier()

@pytest.mark.ranks(2)
def test_killed(world):
    if world.rank == 1: os.kill(os.getpid(), signal.SIGKILL)
    world.Barrier()

@pytest.mark.ranks(2)
def test_next(world): world.Barrier()
"""
    )
    result.assert_outcomes(failed=3, passed=1)
    said = lines(result)
    assert "rank 1 ended with os._exit or a crash, without completing (exit status 7)" in said
    assert "rank 1 was killed by SIGKILL" in said


def test_one_mpirun_for_all_tests_of_a_number(run):
    """Unmarked tests first, the main process without MPI, and a group's tests in the same processes.

    A rank makes the tests for its own number only, and comm is a duplicate of the package's world.
    """
    result = run(
        """
def note(line): open("order", "a").write(f"{line} {os.getpid()}\\n")
@pytest.mark.ranks(2)
def test_a(world): world.rank or note("a2")
def test_plain():
    note("plain")
    assert "mpi4py" not in sys.modules and "numpy" not in sys.modules
@pytest.mark.ranks(1, 2)
def test_b(world, request):
    world.rank or note(f"b{world.size}")
    names = [item.name for item in request.session.items]
    assert [name for name in names if name.startswith("test_b")] == [f"test_b[ranks={world.size}]"]
@pytest.mark.ranks(2)
def test_comm(comm):
    from parallel_dl.mpi import world
    from mpi4py import MPI
    assert (comm.size, comm.rank) == (2, world().rank)
    assert MPI.Comm.Compare(comm.mpi, world().mpi) == MPI.CONGRUENT
"""
    )
    result.assert_outcomes(passed=5)
    order = dict(line.split() for line in Path("order").read_text().splitlines())
    assert list(order) == ["plain", "b1", "a2", "b2"]
    assert order["a2"] == order["b2"]
    assert len({order["plain"], order["b1"], order["a2"]}) == 3


FAILING = """
@pytest.mark.ranks(2)
def test_a(world): assert world.rank == 0 or os.path.exists("mended")
@pytest.mark.ranks(2)
def test_b(world): pass
@pytest.mark.ranks(1)
def test_c(world): pass
"""


@pytest.mark.grid
def test_options_of_pytest(run):
    result = run(FAILING, "-x", "--junitxml=report.xml")
    result.assert_outcomes(passed=1, failed=1)
    suite = ElementTree.parse("report.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite] == ["test_c[ranks=1]", "test_a[ranks=2]"]
    open("mended", "w").close()
    run(None, "--lf").assert_outcomes(passed=1)
    run(None, "-k", "test_b or test_c", "-v").assert_outcomes(passed=2, deselected=1)
    run(None, "test_it.py::test_b[ranks=2]", "-q").assert_outcomes(passed=1)


def test_output_is_shown_with_s(run):
    # one write a line: the ranks' lines may not mix
    body = "def test_a(world): sys.stdout.write(f'here is {world.rank}\\n')"
    result = run(f"import sys\n@pytest.mark.ranks(2)\n{body}", "-s")
    result.stdout.fnmatch_lines_random(["*here is 0*", "*here is 1*"])


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("ranks()", "@pytest.mark.ranks(): needs at least one number of ranks, e.g. ranks(1, 2)"),
        ("ranks(0)", "@pytest.mark.ranks(0): must be a number of ranks, at least 1"),
        ("ranks(2, -1)", "@pytest.mark.ranks(-1): must be a number of ranks, at least 1"),
        ("ranks('two')", "@pytest.mark.ranks('two'): must be a number of ranks, at least 1"),
        ("ranks(2, 1, 2)", "@pytest.mark.ranks(2, 1, 2): 2 is there twice"),
        ("ranks(2, timeout=0)", "@pytest.mark.ranks(timeout=0): must be a number of seconds above 0"),
        ("ranks(2, time=1)", "@pytest.mark.ranks(time=1): the only keyword is timeout"),
    ],
)
def test_bad_marks(pytester, mark, said):
    pytester.makepyfile(test_it=f"import pytest\n@pytest.mark.{mark}\ndef test_a(): pass")
    result = pytester.inline_run(*LOAD, "--collect-only", "-p", "no:cacheprovider")
    (error,) = [report for report in result.getreports("pytest_collectreport") if report.failed]
    assert str(error.longrepr) == f"test_it.py::test_a: {said}"


def test_misuse_is_one_line(run):
    result = run(
        """
import unittest
def test_unmarked(comm): pass
class TestCase(unittest.TestCase):
    @pytest.mark.ranks(2)
    def test_method(self): pass
"""
    )
    result.assert_outcomes(errors=1, failed=1)
    assert "fixture comm: mark the test with @pytest.mark.ranks(...)" in lines(result)
    assert "@pytest.mark.ranks works on test functions" in lines(result)


def test_a_file_that_only_the_ranks_cannot_import(run):
    result = run(
        """
if {"OMPI_COMM_WORLD_RANK", "PMI_RANK"} & set(os.environ): raise RuntimeError("not in a rank")
@pytest.mark.ranks(2)
def test_a(): pass
"""
    )
    result.assert_outcomes(failed=1)
    assert "could not collect this test" in lines(result)
    assert "RuntimeError: not in a rank" in lines(result)


def test_no_mpirun(run, project, environment):
    project.makeconftest("import sys; sys.prefix = '/nowhere'")
    environment.setenv("PATH", "/nowhere:/bin:/usr/bin" if find_mpirun().parent.name == "bin" else "/nowhere")
    result = run("@pytest.mark.ranks(2)\ndef test_a(): pass\ndef test_b(): pass")
    result.assert_outcomes(failed=1, passed=1)
    assert "no MPI runtime" in lines(result)
    assert "Traceback" not in lines(result)


def test_under_a_users_own_mpirun(run, project, environment, tmp_path):
    for name, value in settings(2, str(tmp_path)).items():
        environment.setenv(name, value)
    before = ["timeout", "-k", "5", str(HANG), str(find_mpirun()), "-n", "2"]
    source = "@pytest.mark.ranks(1, 2)\ndef test_a(comm): assert comm.size == 2\ndef test_b(): pass"
    result = run(source, "-p", "no:cacheprovider", before=before)
    assert len(re.findall("2 passed, 1 skipped", lines(result))) == 2
    assert "needs 1 MPI rank; this pytest itself runs under an mpirun with 2" in lines(result)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.grid), signal.SIGKILL])
def test_pytest_is_ended(project, pids, living, python, number):
    project.makepyfile(
        test_it="""
import pytest, time
@pytest.mark.ranks(2)
def test_a(world):
    open(f"in.{world.rank}", "w").close()
    time.sleep(1000)
"""
    )
    process = subprocess.Popen(
        [python, "-m", "pytest", *LOAD], stdout=subprocess.DEVNULL, cwd=project.path, start_new_session=True
    )
    deadline = time.monotonic() + HANG
    while len(list(project.path.glob("in.*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(60) == (2 if number == signal.SIGINT else -number)
    assert living(pids()) == []


def test_root_is_this_checkout():
    """The tests above run this checkout's plugin, not one that is installed elsewhere."""
    assert sys.modules["parallel_dl.testing"].__file__.startswith(str(ROOT))


def test_calls_that_do_not_match_are_said_first_and_without_our_source(run):
    result = run(
        """
import numpy as np
@pytest.mark.ranks(2)
def test_shapes(comm): comm.all_reduce(np.ones(3 + comm.rank))
@pytest.mark.ranks(2)
def test_calls(comm):
    if comm.rank: comm.barrier()
    else: comm.all_reduce(np.ones(3))
"""
    )
    result.assert_outcomes(failed=2)
    said = result.stdout.lines
    for test in ("test_shapes", "test_calls"):
        heading = next(i for i, line in enumerate(said) if re.match(f"_+ {test}", line))
        assert said[heading + 1].startswith("CollectiveMismatch: on communicator 'comm': rank 0 calls all_reduce #1")
        assert [line.split()[:2] for line in said[heading + 2 : heading + 4]] == [["rank", "0"], ["rank", "1"]]
        assert not said[heading + 4].startswith("---")
    assert "checked.py" not in lines(result)
    assert "array([" not in lines(result)


def test_a_crash_shows_the_tests_line(run):
    result = run("import ctypes\n@pytest.mark.ranks(2)\ndef test_a(world):\n    if world.rank: ctypes.string_at(0)")
    result.assert_outcomes(failed=1)
    assert "rank 1 was killed by SIGSEGV" in lines(result)
    assert re.search(r"test_it.py\", line \d+ in test_a", lines(result))
    assert "_pytest" not in lines(result).partition("Fatal Python error")[2].partition("short test summary")[0]


def test_what_a_test_leaves_behind_is_a_warning(run):
    result = run(
        """
import numpy as np
@pytest.mark.ranks(2)
def test_leaves(comm):
    if comm.rank == 0: comm.send(np.ones(3), 1, tag=4)
@pytest.mark.ranks(2)
def test_next(comm): comm.barrier()
"""
    )
    result.assert_outcomes(passed=2, warnings=1)
    assert "rank 1 never received a message from rank 0 with tag 4 on comm" in lines(result)


@pytest.mark.parametrize("checked", [True, False])
def test_calls_are_compared_in_tests_unless_told_otherwise(run, checked):
    result = run(
        """
import numpy as np
@pytest.mark.ranks(2)
def test_roots(world): world.Bcast(np.ones(3), root=world.rank)
""",
        *([] if checked else ["-o", "ranks_checked=false"]),
    )
    result.assert_outcomes(**({"failed": 1} if checked else {"passed": 1}))
    assert ("CollectiveMismatch" in lines(result)) == checked
