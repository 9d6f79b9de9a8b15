"""The API reference is what the docstrings give, and they name every argument."""

import importlib
import inspect
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
make_reference = importlib.import_module("make_reference")
PAGES = make_reference.PAGES


def test_the_committed_pages_are_what_the_docstrings_give():
    committed = {path.name: path.read_text() for path in make_reference.FOLDER.iterdir()}
    made = make_reference.pages()
    assert committed.keys() == made.keys(), "run `make reference`"
    stale = [name for name, text in made.items() if committed[name] != text]
    assert not stale, f"{', '.join(stale)}: run `make reference`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.file)
def test_every_public_name_says_what_it_is_and_names_its_arguments(page):
    """In its own docstring, or that of the class around it, or among those that mean the same everywhere."""
    lacking = []
    for one in make_reference.entries_of(page):
        for each, context in [(one, ""), *((member, one.doc) for member in one.members)]:
            if not each.doc and each.kind != "attribute":
                lacking.append(f"{one.name} {each.name}: has no docstring")
            unnamed = set(make_reference.unnamed(each, context)) - make_reference.COMMON.keys()
            lacking += [f"{one.name} {each.name}: does not name {name}" for name in sorted(unnamed)]
    assert not lacking


def test_common_arguments_are_those_in_use():
    every = [one for page in PAGES for one in make_reference.entries_of(page)]
    used = {name for one in every for each in (one, *one.members) for name in each.arguments}
    assert make_reference.COMMON.keys() <= used


@pytest.mark.parametrize("package", ["nn", "autograd", "optim", "datasets"])
def test_signatures_are_those_of_what_is_called(package):
    """The source is read, not run: what Python says of the objects is the same."""
    module = importlib.import_module(f"parallel_dl.{package}")
    (page,) = (page for page in PAGES if page.file == package)
    compared = 0
    for one in make_reference.entries_of(page):
        thing = getattr(module, one.name)
        if one.kind not in ("class", "function") or one.name in make_reference.NOT_MADE:
            continue
        arguments = [name for name in inspect.signature(thing).parameters if name != "self"]
        if arguments == ["args", "kwargs"]:  # object's
            arguments = []
        assert one.arguments == arguments, one.name
        compared += 1
        for member in one.members:
            if member.kind == "method":
                given = inspect.signature(getattr(thing, member.name)).parameters
                assert member.arguments == [name for name in given if name not in ("self", "cls")], member.name
    assert compared >= 6


def test_the_pages_have_what_a_user_may_call():
    homes = make_reference.homes()
    expected = {
        "nn": ["Linear", "Module", "Parameter", "cross_entropy", "Operations"],
        "autograd": ["Tensor", "primitive", "backward", "no_grad"],
        "optim": ["SGD", "AdamW", "Optimizer"],
        "datasets": ["Dataset", "Loader", "load"],
        "mpi": ["Communicator", "world"],
        "collectives": ["all_reduce", "all_gather", "movement"],
        "trainer": ["Trainer"],
        "layout": ["Layout"],
    }
    for page, names in expected.items():
        assert [homes[name] for name in names] == [page] * len(names)
    for _, page, name, _ in make_reference.EXTENSIONS:
        assert homes[name] == page
