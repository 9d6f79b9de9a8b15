"""Correct programs of many styles end in order, and the watchdog says nothing about them."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from conftest import HANG

PROGRAMS = sorted((Path(__file__).parent / "right").glob("*.py"))
SUITE = (  # each of these was once called wrong, or hung
    *("begun_by_hand", "begun_early", "copies", "executor", "second_attempts", "sparse_exchange", "task_farm"),
    *("large_ring", "library_messages", "overlapped"),
)


def facts(program):
    """What its docstring says: `Ranks`, what it `Prints`, and a `Notice` that is in order."""
    text = ast.get_docstring(ast.parse(program.read_text()))
    return dict(re.findall(r"^(Ranks|Prints|Notice): (.*)$", text, re.MULTILINE))


def ended(python, program, *options):
    command = [python, "-P", "-m", "parallel_dl", "run", "-n", facts(program)["Ranks"], *options, str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)


def programs(suite):
    return [pytest.param(p, id=p.stem, marks=[] if p.stem in suite else [pytest.mark.grid]) for p in PROGRAMS]


@pytest.mark.parametrize("program", programs(SUITE))
def test_nothing_is_said_of_a_right_program(environment, python, program):
    said = ended(python, program)
    notice = facts(program).get("Notice")
    assert re.fullmatch(rf"(parallel-dl: {notice}\n)?" if notice else "", said.stderr), said.stderr
    assert (said.stdout.strip(), said.returncode) == (facts(program)["Prints"], 0)


@pytest.mark.parametrize("program", programs(()))
def test_nor_with_calls_that_are_not_compared(environment, python, program):
    said = ended(python, program, "--unchecked")
    assert (said.stdout.strip(), said.returncode) == (facts(program)["Prints"], 0)
    assert "deadlock" not in said.stderr
    assert "never" not in said.stderr
