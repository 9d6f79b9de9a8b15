"""Who may import whom: the arrows between the packages go one way only."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "parallel_dl"
BASE = {"errors", "partition", "files", "from_file"}  # what any unit may import
MATHS = {"autograd", "nn", "networks", "optim"}
PARALLEL = {"data_parallel", "model_parallel", "pipeline_parallel", "hybrid"}
TRAINING = {
    "cost",
    "schedule",
    "layout",
    "refusals",
    "stage",
    "trainer",
    "engine",
    "evaluation",
    "global_norms",
    "whole",
    "checkpoint",
    "metrics",
    "datasets",
    "mpi",
    "mesh",
    "splits",
    "reproducible",
    *PARALLEL,
    *MATHS,
}

# package or module -> what it may import of ours. Itself always; a new package needs a line here.
OURS = {
    "errors": set(),
    "partition": set(),
    "files": {"errors"},
    "from_file": {"errors", "files"},
    "convolution": {"errors"},
    "autograd": {"convolution", *BASE},
    "nn": {"autograd", "convolution", *BASE},
    "networks": {"nn", *BASE},
    "mesh": BASE,
    "cost": {"nn", "convolution", "mesh", "splits", "schedule", *BASE},
    "splits": {"nn", "autograd", "convolution", "mesh", *BASE},
    "schedule": BASE,
    "stage": {"nn", "autograd", "datasets", "schedule", *BASE},
    "optim": {"nn", *BASE},
    "datasets": BASE,
    "mpi": {"autograd", "launch", "mesh", "watchdog", *BASE},
    "data_parallel": {"mpi", "nn", *BASE},
    "pipeline_parallel": {"stage", "mesh", "whole", "mpi", "nn", "autograd", "cost", "datasets", "schedule", *BASE},
    "reproducible": {"nn", "autograd", "convolution", "optim", *BASE},
    "whole": {"mpi", "nn", "mesh", *BASE},
    "model_parallel": {"mpi", "nn", "autograd", "mesh", "splits", "whole", *BASE},
    "hybrid": {
        *{"stage", "mpi", "nn", "autograd", "optim", "mesh", "splits", "schedule", "datasets", "model_parallel"},
        *BASE,
    },
    "refusals": {"schedule", *BASE},
    "layout": {"schedule", "refusals", *BASE},
    "checkpoint": {"nn", *BASE},
    "metrics": {"autograd", *BASE},
    "engine": TRAINING - {"checkpoint", "trainer", "evaluation", "global_norms", "metrics"} | BASE,
    "global_norms": {"engine", "nn", "optim", *BASE},
    "evaluation": {"autograd", "engine", "metrics", "reproducible", *BASE},
    "trainer": {
        *{"engine", "evaluation", "global_norms", "layout", "metrics", "datasets", "mpi", "nn", "optim", "schedule"},
        *BASE,
    },
    "equivalence": TRAINING | BASE | {"launch", "watchdog"},
    "interrupts": set(),
    "watchdog": set(),
    "launch": {"errors", "interrupts", "watchdog"},
    "testing": {"launch", "mpi", "errors", "watchdog"},
    "cli": TRAINING | BASE | {"cost", "equivalence", "interrupts", "launch", "schedule"},
    "__init__": set(),
    "__main__": {"cli", "interrupts"},
}

# beside the standard library; nothing for those without a line, and mpi4py for one only
THIRD_PARTY = {
    **{
        unit: {"numpy"}
        for unit in (
            *MATHS,
            "splits",
            "stage",
            "whole",
            "engine",
            "evaluation",
            "global_norms",
            "convolution",
            "datasets",
            "reproducible",
            *PARALLEL,
            "equivalence",
            "trainer",
            "metrics",
        )
    },
    "mpi": {"mpi4py", "numpy", "threadpoolctl"},
    "watchdog": {"numpy"},
    "checkpoint": {"numpy", "safetensors"},
    "testing": {"pytest", "_pytest"},
    "cli": {"numpy", "rich", "threadpoolctl", "typer"},
}

# never while the package is imported: each costs a good part of a second, or is not needed by every command
LATE = {"torch", "matplotlib", "scipy", "sklearn", "pandas", "safetensors", "rich", "threadpoolctl"}

FILES = sorted(PACKAGE.rglob("*.py"))
UNITS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES})


def unit_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules_named(node, path):
    """The full names of what an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
    if node.module == "parallel_dl":
        return [f"parallel_dl.{alias.name}" for alias in node.names]
    return [node.module]


def statements_at_import(tree):
    """All nodes but those inside functions: what runs when the module is imported, and what only types need."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not for_types_only(node):
            todo += ast.iter_child_nodes(node)


def for_types_only(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path, nodes):
    return {name for node in nodes for name in modules_named(node, path.name)}


def ours(names):
    """The packages and modules of ours among the names; what `parallel_dl` itself defines is none."""
    inside = {name.split(".")[1] for name in names if name.startswith("parallel_dl.")}
    return {name for name in inside if name in UNITS}


@pytest.mark.parametrize("unit", UNITS)
def test_arrows(unit):
    """Also in functions: a late import is an import."""
    assert unit in OURS, f"{unit} is new: say in OURS what it may import"
    for path in FILES:
        if unit_of(path) == unit:
            names = imported(path, ast.walk(ast.parse(path.read_text())))
            assert ours(names) <= OURS[unit] | {unit}, path.name
            top = {name.split(".")[0] for name in names} - {"parallel_dl"} - sys.stdlib_module_names
            assert top <= THIRD_PARTY.get(unit, set()), path.name


def test_arrows_have_no_cycle():
    done = set()
    while len(done) < len(OURS):
        ready = {unit for unit, needs in OURS.items() if unit not in done and needs - {unit} <= done}
        assert ready, f"a cycle among {sorted(OURS.keys() - done)}"
        done |= ready


def test_only_mpi_imports_mpi4py():
    assert [unit for unit, allowed in THIRD_PARTY.items() if "mpi4py" in allowed] == ["mpi"]
    serial = {"autograd", "nn", "networks", "optim", "datasets"}
    assert not any("mpi" in OURS[unit] for unit in serial)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_late(path):
    names = imported(path, statements_at_import(ast.parse(path.read_text())))
    assert {name.split(".")[0] for name in names}.isdisjoint(LATE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_its_idea(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].strip()


PUBLIC_NAMES = """
import importlib, inspect, sys
for package in sys.argv[1:]:
    module = importlib.import_module(package)
    names = module.__all__
    assert len(set(names)) == len(names), f"{package}.__all__ names something twice"
    for name in names:
        assert hasattr(module, name), f"{package}.__all__ names {name}, which is not there"
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing):
            text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
            assert text and not text.startswith(f"{name}("), f"{package}.{name} has no docstring"
"""


PACKAGES = [f"parallel_dl.{unit}" for unit in UNITS if (PACKAGE / unit).is_dir() and unit != "testing"]


@pytest.mark.parametrize(
    "packages",
    [PACKAGES, *(pytest.param([package], marks=pytest.mark.grid) for package in PACKAGES)],
    ids=lambda packages: packages[0] if len(packages) == 1 else "all",
)
def test_public_names_exist_and_are_documented(packages, environment):
    """In a process of its own: this one never imports MPI. (A dataclass's own docstring is only its signature.)"""
    run = subprocess.run([sys.executable, "-c", PUBLIC_NAMES, *packages], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_hypothesis_profiles_are_loaded_in_one_place():
    """A profile loaded while a test module is imported is that of all modules after it; tests use @settings."""
    calls = {"register_profile", "load_profile"}
    for path in (ROOT / "tests").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path.name == "conftest.py" or names.isdisjoint(calls), path


def test_names_of_test_files_are_unique():
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
