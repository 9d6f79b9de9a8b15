"""Tracebacks of our own commands: they begin at the command's function, not in what has read the command line."""

import subprocess
import sys
import traceback

import pytest
from conftest import HANG

from parallel_dl.cli import main
from parallel_dl.launch import tracebacks

MODULE = "parallel_dl.cli.schedule"


def fail(*_, **__):
    raise ZeroDivisionError("planted")


@pytest.fixture
def error(monkeypatch):
    """error() -> what a command of ours raises that fails."""

    def raised():
        monkeypatch.setattr(sys.modules[MODULE], "_plan", fail)
        with pytest.raises(ZeroDivisionError) as caught:
            main(["schedule", "gpipe", "--pp", "2", "--microbatches", "2"])
        return caught.value

    return raised


def files(error):
    return [frame.filename.rpartition("/")[2] for frame in traceback.extract_tb(error.__traceback__)]


def test_in_this_process(error):
    names = files(error())
    assert names[-2:] == ["schedule.py", "test_tracebacks.py"]
    assert not any("typer" in name or "core" in name for name in names)
    assert len(names) <= 5  # with this file, and what has read the command, at most twice


def test_the_full_one_where_it_is_asked_for(error, monkeypatch):
    monkeypatch.setenv(tracebacks.FULL_VARIABLE, "1")
    assert len(files(error())) > 10


def test_a_ranks_text_begins_at_the_command(error):
    raised = error()
    raised.__traceback__ = raised.__traceback__.tb_next  # without this file
    lines = tracebacks.text_of(raised).splitlines()
    assert lines[1].startswith('  File "')
    assert "schedule.py" in lines[1]
    assert lines[-1] == "ZeroDivisionError: planted"


def test_an_error_that_is_all_ours_keeps_its_frames():
    code = compile("def f(): raise ZeroDivisionError\nf()", tracebacks._COMMAND_LINE[0], "exec")
    with pytest.raises(ZeroDivisionError) as caught:
        exec(code, {"__name__": "x"})
    frames = caught.value.__traceback__.tb_next
    assert tracebacks.own(frames) is frames


def test_a_crash_begins_at_the_command():
    ours = tracebacks._COMMAND_LINE[1]
    text = f"""Fatal Python error: Segmentation fault

Current thread 0x1 (most recent call first):
  File "/home/click/inner.py", line 3 in inner
  File "/home/x/parallel_dl/cli/train.py", line 9 in train
  File "/home/x/lib/python3.11/site-packages/typer/core.py", line 7 in invoke
  File "/usr/lib/python3/dist-packages/click/core.py", line 8 in invoke
  File "{ours}", line 5 in main
"""
    assert [line.rpartition(" ")[2] for line in tracebacks.of_crash(text)[1:]] == ["inner", "train"]


def test_the_line_of_a_rank_has_the_error_its_place_and_its_notes(tmp_path):
    """Also where the error was raised from another one, which alone has passed through the user's file."""
    (tmp_path / "mine.py").write_text("def fail():\n    raise ZeroDivisionError('planted')\n")
    space = {}
    exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), space)
    ours = {"fail": space["fail"]}
    path = tracebacks._COMMAND_LINE[1]
    exec(
        compile("def call():\n try: fail()\n except Exception as e: raise RuntimeError('cell') from e", path, "exec"),
        ours,
    )
    with pytest.raises(RuntimeError) as caught:
        ours["call"]()
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next  # without this file
    error.__cause__.__traceback__ = error.__cause__.__traceback__.tb_next
    error.__cause__.add_note("in the local maths of layer own: rule by_output")
    error.__cause__.add_note("several\nlines")
    said = "raised RuntimeError: cell (mine.py:2), in the local maths of layer own: rule by_output"
    assert tracebacks.summary_of(error) == said
    assert tracebacks.summary_of(KeyError()) == "raised KeyError"


def test_on_two_ranks(tmp_path, environment, python):
    broken = "class Broken:\n    def find_spec(self, name, path=None, target=None):\n        if name == {!r}: 1 / 0\n"
    code = "import sys\n" + broken.format("parallel_dl.trainer") + "sys.meta_path.insert(0, Broken())\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    environment.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    command = [python, "-m", "parallel_dl", "train", "mlp", "--dp", "2", "--steps", "1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    said, first, second, *_ = ended.stderr.splitlines()
    assert said.startswith("parallel-dl: rank ")
    assert "raised ZeroDivisionError: division by zero (sitecustomize.py:" in said
    assert "Traceback" in first
    assert "train.py" in second
    assert "typer" not in ended.stderr
    assert "runpy" not in ended.stderr
    assert ended.returncode == 1
