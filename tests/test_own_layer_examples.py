"""The examples of tests for layers of your own: the right ones pass, and the broken ones say what the page shows."""

import os
import re
import subprocess
import sys

import pytest
from conftest import HANG, PLUGIN, ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text()
EXAMPLES = ROOT / "docs" / "examples"
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
LOAD = [argument for name in PLUGIN for argument in ("-p", name)]


def blocks(section, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def outcome():
    """What pytest prints for all examples."""
    files = [EXAMPLES / name for name in ("test_own_layer.py", "test_attention.py", "broken_layer.py")]
    command = [sys.executable, "-m", "pytest", *LOAD, "-v", "-p", "no:cacheprovider", *map(str, files)]
    unset = ("PARALLEL_DL_JOB", "PYTEST_ADDOPTS")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    variables["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=HANG, check=False)
    return done.stdout


@pytest.mark.parametrize("section", ["A layer of your own", "An optimizer of your own", "A collective of your own"])
def test_the_page_shows_parts_of_the_example(section):
    example = (EXAMPLES / "test_own_layer.py").read_text()
    assert blocks(section)
    assert all(block in example for block in blocks(section))


def test_the_page_shows_process_groups_that_are_tested():
    (block,) = blocks("Process groups alongside MPI")
    imports, shown = block.split("\n\n\n", 1)
    assert imports == "import pytest\nimport torch"
    assert shown in (ROOT / "tests" / "testing" / "test_gloo.py").read_text()


def test_the_examples_pass(outcome):
    results = re.findall(r"::(\w+)\[\S+ (PASSED|FAILED|ERROR|SKIPPED)", outcome)
    tests = ("data_parallel", "in_stages", "between_split_layers", "own_rule")
    assert [result for name, result in results if name.removeprefix("test_") in tests] == ["PASSED"] * 4, outcome
    assert ("test_differences", "PASSED") in results  # and the broken one of this name fails: below


def test_own_attention_equals_the_serial_run(outcome):
    assert re.findall(r"::test_attention\[(.*)-ranks=2\] (\w+)", outcome) == [
        ("replicas", "PASSED"),
        ("stages", "PASSED"),
        ("beside split layers", "PASSED"),
    ], outcome


def test_the_broken_example_says_what_the_page_shows(outcome):
    said = [line[1:].strip() for line in outcome.splitlines() if line.startswith("E  ")]
    (shown,) = blocks("What a failure looks like", "text")
    assert said == [line.strip() for line in shown.splitlines() if line]
