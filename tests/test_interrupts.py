"""SIGINT at the edges: while the command line, the launcher or a rank is imported, and while Python ends."""

import subprocess
from types import SimpleNamespace

import pytest
from conftest import HANG

from parallel_dl.launch import running

# a SIGINT as soon as a module is looked for
INTERRUPTED_IMPORT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} and {condition}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
COMMAND = "import sys; from parallel_dl.__main__ import main; sys.exit(main())"
STOPPED = "parallel-dl: stopped by SIGINT\n"


@pytest.fixture
def command(tmp_path, environment, python):
    """command(code, *arguments) -> (status, stdout, stderr) of `parallel-dl` after that code."""

    def call(code, *arguments):
        whole = [python, "-c", code + COMMAND, *arguments]
        ended = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    return call


@pytest.mark.parametrize("module", ["parallel_dl.cli", "typer", "parallel_dl.launch.folder", "parallel_dl.cli.verify"])
def test_while_the_command_line_is_imported(command, module):
    code = INTERRUPTED_IMPORT.format(name=module, condition="True")
    assert command(code, "schedule", "gpipe", "--pp", "2") == (130, "", STOPPED)


def test_in_a_command(command):
    code = INTERRUPTED_IMPORT.format(name="rich.console", condition="True")
    assert command(code, "summary", "lenet5") == (130, "", STOPPED)


@pytest.mark.parametrize(
    "arguments", [("schedule", "gpipe", "--pp", "2", "--microbatches", "2"), ("summary", "lenet5")]
)
def test_after_the_command(command, arguments):
    status, out, err = command("import atexit, os, signal; atexit.register(os.kill, os.getpid(), 2)\n", *arguments)
    assert (status, err) == (130, "")
    assert out == command("", *arguments)[1] != ""


def test_one_that_is_ignored_stays_so(command):
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += INTERRUPTED_IMPORT.format(name="typer", condition="True")
    assert command(code, "--version")[::2] == (0, "")


@pytest.mark.parametrize("module", ["parallel_dl.launch.environment", "parallel_dl.launch.tracebacks"])
def test_while_a_rank_is_imported(run, environment, tmp_path, module):
    """Python imports `sitecustomize` by itself before anything of ours."""
    number = "os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK'))"
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_IMPORT.format(name=module, condition=f"{number} == '1'"))
    environment.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    ended = run("time.sleep(1000)")
    (line,) = ended.err.splitlines()
    assert line == "parallel-dl: a rank was interrupted (SIGINT) while it started; ended the other ranks"
    assert (ended.status, ended.out) == (130, "")


@pytest.mark.parametrize(
    ("pids", "said"),
    [({}, "mpirun started no rank within "), ({0: 7}, "mpirun started 1 of 2 ranks, and no other within ")],
)
def test_ranks_that_never_start_are_not_waited_for(monkeypatch, pids, said):
    """MPICH's mpirun does not always notice that a rank has died of a SIGINT."""
    monkeypatch.setattr(running, "_START_SECONDS", -1.0)
    mpirun = SimpleNamespace(poll=lambda: None)
    job = SimpleNamespace(ranks=2, pids=pids, exits={}, mpirun=mpirun, events=lambda _: iter(()), send=None)
    watching = running._Run([], None)
    watching.errors = SimpleNamespace(tail=b"")
    end = watching._watch(job)
    assert end.line.startswith(said)
    assert end.status == 1
