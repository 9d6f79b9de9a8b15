"""Wrong programs of the classes that people write end at once, with a line that names the rank and the place."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from conftest import HANG

PROGRAMS = sorted((Path(__file__).parent / "wrong").glob("*.py"))
SUITE = (  # the quick ones, and those whose picture takes most to draw
    *("collective_on_one_rank", "early_return", "forgotten_wait", "library_step_left_out", "message_never_received"),
    *("any_source_once_too_often", "one_partner_missing", "wrong_neighbour", "wrong_tag"),
)


def facts(program):
    """What its docstring says.

    `Ranks`; patterns of what is `Said` after parallel-dl, of the `First` line after that and of another `Row`; of
    what is `Told` at the end of a program that ends in order; of a `Notice` before; of what is said `Unchecked`, where
    that differs (UNNOTICED: not all is); and the `Timeout` that ends it.
    """
    text = ast.get_docstring(ast.parse(program.read_text()))
    return dict(re.findall(r"^(\w+): (.*)$", text, re.MULTILINE))


def ended(python, program, *options):
    said = facts(program)
    limit = ("--timeout", said["Timeout"]) if "Timeout" in said else ()
    command = [python, "-P", "-m", "parallel_dl", "run", "-n", said["Ranks"], *limit, *options, str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)


UNNOTICED = "nothing"  # MPI goes on with what it has, or waits and lets no thread look


def programs(suite):
    return [pytest.param(p, id=p.stem, marks=[] if p.stem in suite else [pytest.mark.grid]) for p in PROGRAMS]


@pytest.mark.parametrize("program", programs(SUITE))
def test_a_wrong_program_is_told_where_it_is_wrong(environment, python, program):
    expected, ran = facts(program), ended(python, program)
    lines = ran.stderr.splitlines()
    if "Notice" in expected:
        assert re.fullmatch(f"parallel-dl: {expected['Notice']}", lines.pop(0))
    if "Told" in expected:
        assert re.fullmatch(f"parallel-dl: {expected['Told']}", lines[0]), ran.stderr
        assert (len(lines), ran.returncode) == (1, 0)
        return
    assert re.fullmatch(rf"parallel-dl: {expected['Said']}.*; ended the other ranks", lines[0]), ran.stderr
    assert re.match(f"[ >] {expected['First']}$" if "First" in expected else "rank .*", lines[1]), ran.stderr
    assert "Row" not in expected or any(re.match(f"  {expected['Row']}$", line) for line in lines[2:]), ran.stderr
    assert ran.returncode == 1


@pytest.mark.parametrize("program", [p for p in programs(()) if facts(*p.values).get("Unchecked") != UNNOTICED])
def test_nor_does_it_hang_with_calls_that_are_not_compared(environment, python, program):
    expected, ran = facts(program), ended(python, program, "--unchecked")
    wanted = expected.get("Unchecked", expected.get("Said", expected.get("Told")))
    assert re.search(f"^parallel-dl: {wanted}", ran.stderr, re.MULTILINE), ran.stderr
