"""Output that cannot be written: printed where it can be, reported in one line, status 2; on one rank and several."""

import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import HANG
from safetensors.numpy import save_file

from parallel_dl.cli import main
from parallel_dl.launch.streams import Outlet, Printed

COMMAND = ["-m", "parallel_dl"]
ONE = [*COMMAND, "train", "mlp", "--steps", "2", "--json"]
TWO = [*ONE, "--dp", "2"]
SAID = "parallel-dl: stdout: {}; the output it did not take is above, on stderr"
FULL, CLOSED = "No space left on device", "it is closed"


@pytest.fixture
def shell(tmp_path, environment, python):
    """shell(arguments, redirections, before="") -> the ended process; what it printed and where."""

    def run(arguments, redirections, before="", inside=lambda command: command):
        quoted = " ".join(f"'{word}'" for word in [python, *arguments])
        line = f"{before} {quoted} {redirections}"
        command = inside(["sh", "-c", line])
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)

    return run


@pytest.mark.parametrize(("redirection", "why"), [(">/dev/full", FULL), (">&-", CLOSED)])
def test_a_result_of_two_ranks_that_stdout_does_not_take_is_on_stderr(shell, redirection, why):
    ended = shell(TWO, redirection)
    result, said = ended.stderr.splitlines()
    assert len(json.loads(result)["losses"]) == 2
    assert said == SAID.format(why)
    assert ended.returncode == 2


@pytest.mark.grid
def test_what_verify_found_on_two_ranks_too(shell):
    ended = shell([*COMMAND, "verify", "mlp", "--ranks", "2", "--json"], ">/dev/full")
    result, said = ended.stderr.splitlines()
    assert json.loads(result)["equal"] is True
    assert (ended.returncode, said) == (2, SAID.format(FULL))


COMMANDS = {
    "train": ["train", "mlp", "--steps", "2"],
    "train, JSON": ["train", "mlp", "--steps", "2", "--json"],
    "info": ["info"],
    "info, JSON": ["info", "--json"],
    "summary": ["summary", "mlp"],
    "schedule": ["schedule", "gpipe", "--pp", "2", "--microbatches", "2"],
    "verify": ["verify", "mlp", "--ranks", "1"],
    "diff": ["diff", "a.safetensors", "a.safetensors"],
    "version": ["--version"],
    "help": ["train", "--help"],
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stream", [FULL, CLOSED])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command(command, stream, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.zeros(3, np.float32)}, "a.safetensors")
    assert main(command) == 0
    first = capsys.readouterr().out.splitlines()[0]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full if stream is FULL else None)
        assert main(command) == 2
        monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()
    assert said[0].split()[:2] == first.split()[:2]
    assert said[-1] == SAID.format(stream)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("arguments", [ONE, pytest.param(TWO, marks=pytest.mark.grid)], ids=["one rank", "two"])
def test_stderr_is_not_needed(shell, arguments, redirection):
    ended = shell(arguments, redirection)
    assert len(json.loads(ended.stdout)["losses"]) == 2
    assert ended.returncode == 0


def test_bad_input_without_stderr_is_still_bad_input(shell):
    ended = shell([*COMMAND, "train", "nothing"], ">&- 2>&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


def test_neither_stream_on_two_ranks(shell):
    assert shell(TWO, ">&- 2>&-").returncode == 2


@pytest.mark.grid
@pytest.mark.parametrize("arguments", [ONE, TWO], ids=["one rank", "two"])
def test_a_small_disk(shell, tmp_path, can_unshare, arguments):
    if not can_unshare:
        pytest.skip("needs root on Linux to mount a small disk")
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=4k tmpfs disk &&"
    arguments = [*arguments[:4], "--steps", "500", *arguments[6:]]
    ended = shell(
        arguments, "> disk/out; status=$?; wc -c < disk/out; exit $status", mount, lambda c: ["unshare", "-m", *c]
    )
    result, said = ended.stderr.splitlines()
    assert len(json.loads(result)["losses"]) == 500
    assert (ended.returncode, said) == (2, SAID.format(FULL))
    assert ended.stdout.split() == ["4096"]


def test_a_limit_of_file_sizes(shell):
    ended = shell([*ONE[:4], "--steps", "500", "--json"], "> out", "ulimit -f 4;")
    if "MPI shares memory" in ended.stderr:  # MPICH, already on one rank
        assert len(ended.stderr.splitlines()) == 1
    else:
        assert ended.stderr.splitlines()[-1] == SAID.format("File too large")
    assert ended.returncode == 2


@pytest.mark.parametrize("arguments", [ONE, pytest.param(TWO, marks=pytest.mark.grid)], ids=["one rank", "two"])
def test_a_reader_that_has_gone_is_told_nothing(shell, arguments):
    ended = shell(arguments, "| true")
    assert (ended.stdout, ended.stderr) == ("", "")


# -- any program ---------------------------------------------------------------------------------------------------
PROGRAM = """
    import sys
    for line in range(2000):
        sys.stdout.write(f"{line} of it\\n")
    sys.stdout.flush()
    open("done", "w").close()
"""


def test_what_any_program_prints_goes_on_to_stderr(shell, tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    ended = shell([*COMMAND, "run", "-n", "2", "program.py"], ">/dev/full")
    lines = ended.stderr.splitlines()
    assert len(lines) == 2 * 2000 + 1
    assert (ended.returncode, lines[-1]) == (2, SAID.format(FULL))
    assert (tmp_path / "done").exists()


def test_a_program_ends_when_its_reader_has_gone(shell, tmp_path):
    (tmp_path / "program.py").write_text("import sys\nwhile True: print('x' * 1000)")
    ended = shell([*COMMAND, "run", "-n", "2", "program.py"], "| head -c 10")
    assert (ended.stdout, ended.stderr) == ("x" * 10, "")


def test_our_line_begins_a_new_line_where_both_streams_go_to_one_place(shell, tmp_path):
    (tmp_path / "program.py").write_text("import os\nos.write(1, b'begun')\nraise ValueError(5)")
    ended = shell([*COMMAND, "run", "-n", "2", "program.py"], "2>&1")
    assert "begun\nparallel-dl: rank " in ended.stdout


# -- the streams themselves ----------------------------------------------------------------------------------------
class Filling(io.StringIO):
    """Takes a given number of writes."""

    def __init__(self, writes):
        super().__init__()
        self.writes = writes

    def write(self, text):
        if self.writes == 0:
            raise OSError(28, FULL)
        self.writes -= 1
        return super().write(text)


def test_everything_from_the_first_line_goes_elsewhere():
    other = io.StringIO()
    printed = Printed(Filling(2), other)
    print("one", file=printed, end="")
    assert other.getvalue() == ""
    print("two", "three", file=printed)
    assert other.getvalue() == "onetwo three\n"
    assert printed.error.errno == 28


def test_what_stderr_does_not_take_is_dropped():
    for stream in (None, Filling(0)):
        printed = Printed(stream)
        print("one", file=printed, flush=True)
        assert printed.error is not None


def test_characters_that_the_stream_has_not():
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    print("größer", file=Printed(stream), flush=True)
    assert stream.buffer.getvalue() == b"gr\\xf6\\xdfer\n"


def test_an_outlet_that_would_block_waits_for_its_reader():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outlet = Outlet(writing)
    reader = subprocess.Popen(["wc", "-c"], stdin=reading, stdout=subprocess.PIPE)
    os.close(reading)
    outlet.write(b"x" * 300_000)
    os.close(writing)
    assert int(reader.communicate(timeout=HANG)[0]) == 300_000
    assert outlet.error is None
