"""The documentation says what is there: examples run, the tree and the flags are complete, links lead somewhere."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import typer
from conftest import HANG, ROOT

from parallel_dl.launch import find_mpirun
from parallel_dl.launch.environment import is_hydra

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_readme_shows_hello_as_it_is():
    assert (ROOT / "docs" / "examples" / "hello.py").read_text() in python_blocks(README)


def folders_below(package):
    """Every folder of the package with files of its own, like "autograd/ops/"."""
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {f"{path.parent.relative_to(package)}/" for path in files} - {"./"}


def test_readme_tree_is_the_tree():
    block = re.search(r"^```text\n(parallel_dl/.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)[1]
    lines = block.splitlines()
    inside = [line.split(None, 1) for line in lines[1:] if line.startswith("  ")]
    beside = [line.split(None, 1) for line in lines[1:] if not line.startswith("  ")]
    assert all(len(line) == 2 for line in inside + beside), "every line says what it is"
    names = [name for name, _ in inside]
    package = ROOT / "parallel_dl"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert len(names) == len(set(names))
    assert set(names) == folders_below(package) | modules
    assert [name for name, _ in beside] == ["tests/", "tests/fuzz/", "tests/mutation/", "benchmarks/", "docs/"]
    assert all((ROOT / name).is_dir() for name, _ in beside)


def anchors(page):
    """The anchors of a page's headings: lower case, blanks as hyphens, without punctuation; repeated ones numbered."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    repeated = {f"{one}-{plain[:place].count(one)}" for place, one in enumerate(plain) if one in plain[:place]}
    return {*plain, *repeated}


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_linked_from_the_readme():
    linked = re.findall(r"\]\(((?:docs/|CONTRIBUTING)[^)#]*\.md)\)", README.read_text())
    assert set(linked) == {str(page.relative_to(ROOT)) for page in PAGES[1:]} | {"docs/reference/README.md"}


def test_names_in_contributing_exist():
    """Files and folders, from the root or in the package; and the tables that take a line."""
    page = CONTRIBUTING.read_text()
    paths = re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.(?:py|cfg))`", page)
    assert len(paths) > 40
    for path in paths:
        assert path == "cli/NAME.py" or any((folder / path).exists() for folder in (ROOT, ROOT / "parallel_dl")), path
    for table, path in re.findall(r"`([A-Z]+)`(?:,[^(`]*|) (?:\(|both in )`([\w./]+)`", page):
        assert f"\n{table}" in (ROOT / "parallel_dl" / path).read_text(), table
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", page)) <= targets | {"programs"}


APP = typer.main.get_command(importlib.import_module("parallel_dl.cli.main").app)
COMMANDS = {"": APP, **APP.commands}


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "parallel-dl")
def test_command_line_page_has_every_flag(name):
    """Each flag in the table of its command, with its default, and no flag that the command does not have."""
    head, *sections = re.split(r"^## ", (ROOT / "docs" / "command-line.md").read_text(), flags=re.MULTILINE)
    section = next(s for s in sections if s.split()[0] == name) if name else head
    table = dict(re.findall(r"^\| (`-[^|]*) \| *([^|]*?) *\|", section, re.MULTILINE))
    documented = {flag: default for cell, default in table.items() for flag in re.findall(r"`(-[^`]+)`", cell)}
    options = [option for option in COMMANDS[name].params if option.param_type_name == "option" and not option.hidden]
    flags = {flag: option for option in options for flag in option.opts + option.secondary_opts}
    assert set(documented) == set(flags) | {"-h", "--help"}
    for flag, option in flags.items():
        if option.default not in (None, False):
            assert documented[flag] == ("on" if option.default is True else str(option.default)), flag


def test_command_line_page_has_every_command():
    titles = re.findall(r"^## (.*)$", (ROOT / "docs" / "command-line.md").read_text(), re.MULTILINE)
    assert set(APP.commands) == {title for title in titles if title.islower()}


def shell_lines(page, program):
    """The lines in a page's shell blocks that call this program, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words[:1] == [program]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_can_be_typed(page):
    """Each names an existing command, with flags that it has and a value for each."""
    for _, name, *arguments in shell_lines(page, "parallel-dl"):
        COMMANDS[name].make_context(name, arguments)


def test_flags_of_the_readmes_mpirun_are_known_to_open_mpi(environment, tmp_path):
    """As root or not, with more ranks than cores; here the ranks run nothing."""
    if is_hydra(find_mpirun()):
        pytest.skip("the page has Open MPI's flags, and this is MPICH")
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PRTE_", "PMIX_"))]:
        environment.delenv(name)
    (tmp_path / "hosts").write_text("localhost slots=4\n")
    lines = shell_lines(README, "mpirun")
    assert any("--hostfile" in words for words in lines)
    environment.setenv("OMPI_MCA_btl", "self,sm")
    for words in lines:
        flags = words[1 : words.index("python")]
        command = [str(find_mpirun()), *flags, sys.executable, "-c", "print('here')"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("here") == int(flags[flags.index("-n") + 1])


RUN_ALL = """
import contextlib, io, json, sys, traceback
results = {}
for page, examples in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            for example in examples:
                exec(compile(example, page, "exec"), {"__name__": "__main__"})
            error = None
        except BaseException:
            error = traceback.format_exc()
    results[page] = error, printed.getvalue()
json.dump(results, sys.stdout)
"""
PRINTED = {
    "index": "equal: no difference at all",
    "sharp-bits": "[1 2]",
    **dict.fromkeys(
        ("convolution", "model-parallelism", "pipelining", "programs", "hybrids", "verification", "reproducibility"), ""
    ),
}


@pytest.fixture(scope="module")
def of_examples(tmp_path_factory):
    """page -> (traceback or None, what was printed), of all examples of all pages, in one Python."""
    run = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps({page: python_blocks(ROOT / "docs" / f"{page}.md") for page in PRINTED}),
        cwd=tmp_path_factory.mktemp("pages"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("page", PRINTED)
def test_examples_of_the_pages_run(of_examples, page):
    assert python_blocks(ROOT / "docs" / f"{page}.md")
    error, printed = of_examples[page]
    assert error is None, error
    assert PRINTED[page] in printed
