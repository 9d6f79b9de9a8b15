"""Time limits in tests end hangs. None may measure how fast a machine is: that is for benchmarks/."""

import ast

import pytest
from conftest import HANG, ROOT

SHORTEST = 60  # seconds; a shorter limit may end a test on a slow machine
PROGRAMS = {"right", "wrong"}  # folders of programs for the watchdog, some of which are slow on purpose
FILES = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.parent.name not in PROGRAMS)
CLOCKS = {"monotonic", "perf_counter", "time"}  # not process_time: CPU time does not grow with other work


def _reads_a_clock(node):
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in CLOCKS) == ("time", True)
    )


def _is_duration(node):
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and _reads_a_clock(node.left)


def limits_too_short(source):
    """(line, what) of every limit below SHORTEST, and of every duration that is for more than to end a hang."""
    tree = ast.parse(source)
    named = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    ends_a_hang = set()

    def short(node):
        node = named.get(node.id, node) if isinstance(node, ast.Name) else node
        return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and 0 < node.value < SHORTEST

    for node in ast.walk(tree):  # what contains others comes before them
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join", "communicate"):
                given += node.args
            if any(map(short, given)):
                yield node.lineno, "a limit of a few seconds"
        elif isinstance(node, ast.Compare) and _is_duration(node.left) and not any(map(short, node.comparators)):
            ends_a_hang.add(node.left)
        elif _is_duration(node) and node not in ends_a_hang:
            yield node.lineno, "a duration"
        elif isinstance(node, ast.BinOp) and _reads_a_clock(node.left) and short(node.right):
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
        ("SECONDS = 20\nassert time.monotonic() - start < SECONDS", 1),
        ("SECONDS = 120\nassert time.monotonic() - start < SECONDS", 0),
        ("seconds.append(time.perf_counter() - start)", 1),
        ("deadline = time.monotonic() + 20", 1),
        ("SOON = 10\ndeadline = time.monotonic() + SOON", 1),
        ("subprocess.run(command, timeout=HANG)", 0),
        ("deadline = time.monotonic() + HANG", 0),
        ("', '.join(words) + str(time.time())", 0),
    ],
)
def test_what_is_found(line, found):
    assert len(list(limits_too_short(line))) == found
    assert HANG >= SHORTEST
