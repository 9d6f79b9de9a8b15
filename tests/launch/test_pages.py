"""What mpirun prints about a rank's end: kept from the user, in whatever pieces it comes, and read for the one line."""

import os
import subprocess

import pytest
from conftest import HANG

from parallel_dl.launch.pages import Filter, end_in, not_started, not_started_in

DASHES = "-" * 74 + "\n"
KILLED = f"""{DASHES}prterun noticed that process rank 1 with PID 2584 on node vm exited on
signal 9 (Killed).
{DASHES}"""
EXITED = f"""{DASHES}prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-2102@1,2]
   Exit code:    3
{DASHES}"""
LEFT = f"""{DASHES}prterun has exited due to process rank 1 with PID 5201 on node vm exiting
improperly. There are three reasons this could occur:

1. this process did not call "init" before exiting, but others in the
job did.

You can avoid this message by specifying -quiet on the prterun command
line.
{DASHES}"""
CALLED = f"""{DASHES}prterun has exited due to process rank 1 with PID 0 on node vm calling
"abort". This may have caused other processes in the application to be
terminated by signals sent by prterun (as reported here).
{DASHES}"""
ABORTED = f"""{DASHES}MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_SELF
  Proc: [[36815,1],1]
  Errorcode: 5

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
{DASHES}\0"""
MPICH_ABORTED = "Abort(5) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 5) - process 1\n"
MPICH = f"""
{"=" * 83}
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 15 RUNNING AT vm
=   EXIT CODE: 9
{"=" * 83}
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
UNREACHED = not_started(2, "/tmp/pdl-1 is gone").decode()
LOST = "[vm:24717] PMIX ERROR: PMIX_ERR_UNREACH in file ptl_base_connection_hdlr.c at line 121\n"
INTERRUPTED = "parallel-dl: a rank was interrupted (SIGINT) while it started\n"
PAGES = {
    "killed": KILLED,
    "exited": EXITED,
    "left": LEFT,
    "called": CALLED,
    "aborted": ABORTED,
    "aborted, MPICH": MPICH_ABORTED,
    "MPICH": MPICH,
    "unreached": UNREACHED,
    "interrupted": INTERRUPTED,
    "lost": LOST,
}
OF_A_PROGRAM = f"{DASHES}a table\n{DASHES}1 2 3\n{DASHES}prterun is a word\n{'=' * 83}\nthe end\n"


def shown(pieces):
    pages = Filter()
    return b"".join([*(pages.passed(piece) for piece in pieces), pages.rest()])


def by_lines(text):
    return [line.encode() for line in text.splitlines(keepends=True)]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_is_not_shown(page):
    text = f"before\n{page}after\n"
    assert shown([text.encode()]) == b"before\nafter\n"


@pytest.mark.parametrize("name", ["killed", "exited", "left", "called", "aborted", "MPICH"])
@pytest.mark.parametrize("cut", [51, 74, 75, 84, 85, 88, 96, 110, 160])
def test_a_page_in_two_pieces(name, cut):
    page = PAGES[name]
    assert shown([f"before\n{page[:cut]}".encode(), f"{page[cut:]}after\n".encode()]) == b"before\nafter\n"


def test_what_a_program_prints_is_shown():
    assert shown([OF_A_PROGRAM.encode()]) == OF_A_PROGRAM.encode()
    assert shown(by_lines(OF_A_PROGRAM)) == OF_A_PROGRAM.encode()
    assert shown([DASHES.encode()]) == DASHES.encode()


def test_nothing_but_a_line_of_dashes_is_held():
    assert Filter().passed(b"a prompt: ") == b"a prompt: "
    assert Filter().passed(b"---\n") == b"---\n"


def test_an_unfinished_page_is_none_of_the_programs():
    assert shown([KILLED[:120].encode()]) == b""


def test_a_zero_byte_of_the_program_is_shown():
    assert shown([b"a\0b"]) == b"a\0b"
    assert shown([ABORTED[:-1].encode(), b"\0"]) == b""


@pytest.mark.parametrize(
    ("text", "said"), [(KILLED, (1, 9, 0)), (EXITED, (2, 0, 3)), (LEFT, (1, 0, 0)), (OF_A_PROGRAM, None)]
)
def test_what_a_page_says(text, said):
    assert end_in(text.encode()) == said


def test_what_a_rank_says_that_could_not_start():
    assert not_started_in(f"{EXITED}{UNREACHED}".encode()) == "rank 2 cannot start: /tmp/pdl-1 is gone"
    assert not_started_in(f"{EXITED}{INTERRUPTED}".encode()) == "a rank was interrupted (SIGINT) while it started"
    assert not_started_in(OF_A_PROGRAM.encode()) is None


WITHOUT_SOCKET = """
import os, sys
from parallel_dl.launch import folder, run
folder.Folder.guard = lambda self, pid: os.unlink(os.path.join(self.path, "socket"))
sys.exit(run(2, ["program.py"]))
"""


def test_ranks_that_cannot_reach_the_launcher(tmp_path, environment, python):
    environment.setenv("TMPDIR", str(tmp_path))
    command = [python, "-c", WITHOUT_SOCKET]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("parallel-dl: rank ")
    assert f" cannot start: {tmp_path}/pdl-" in line
    assert "where its launcher listens, cannot be reached: No such file or directory" in line
    assert (ended.returncode, ended.stdout, os.listdir(tmp_path)) == (1, "", [])
