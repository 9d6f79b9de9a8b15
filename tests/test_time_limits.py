"""Time limits in tests end hangs. None may measure how fast a machine is: that is for benchmarks/."""

import ast

import pytest
from conftest import HANG, ROOT

SHORTEST = 60  # seconds; what takes as long on no machine is a hang
FILES = sorted((ROOT / "tests").rglob("*.py"))
CLOCKS = {"monotonic", "perf_counter", "time"}  # not process_time: CPU time does not grow with other work


def _reads_a_clock(node):
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in CLOCKS) == ("time", True)
    )


def _is_short(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and 0 < node.value < SHORTEST


def limits_too_short(source):
    """(line, what) of every limit below SHORTEST and of every duration that is measured."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join", "communicate"):
                given += node.args
            if any(map(_is_short, given)):
                yield node.lineno, "a limit of a few seconds"
        elif isinstance(node, ast.BinOp) and _reads_a_clock(node.left):
            if isinstance(node.op, ast.Sub):
                yield node.lineno, "a duration"
            elif _is_short(node.right):
                yield node.lineno, "a deadline in a few seconds"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "tests")))
def test_no_limit_measures_the_machine(file):
    assert list(limits_too_short(file.read_text())) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("subprocess.run(command, timeout=20)", 1),
        ("process.communicate(timeout=10)", 1),
        ("process.wait(4)", 1),
        ("thread.join(0.5)", 1),
        ("assert time.monotonic() - start < 5", 1),
        ("seconds.append(time.perf_counter() - start)", 1),
        ("deadline = time.monotonic() + 20", 1),
        ("subprocess.run(command, timeout=HANG)", 0),
        ("deadline = time.monotonic() + HANG", 0),
        ("', '.join(words) + str(time.time())", 0),
    ],
)
def test_what_is_found(line, found):
    assert len(list(limits_too_short(line))) == found
    assert HANG >= SHORTEST
