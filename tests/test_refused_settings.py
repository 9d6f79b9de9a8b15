"""The table of settings that cannot be combined: each row refuses its example only, and the docs print the table."""

import dataclasses
import re

import pytest
from conftest import ROOT

from parallel_dl.cli.limits import flag_of
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.refusals import REFUSALS

FIELDS = {field.name for field in dataclasses.fields(Layout)}


def refused(settings):
    """The error for a layout and a training run with these settings, or None."""
    layout = {name: value for name, value in settings.items() if name in FIELDS}
    training = {name: value for name, value in settings.items() if name not in FIELDS}
    try:
        Layout(**layout).require_training(**training)
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row.field}-{row.beside}")
def test_each_row_refuses_its_example(row):
    error = refused(row.example)
    assert error.field == row.field
    assert str(error).endswith(row.said.format_map(row.example).replace("`", ""))


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row.field}-{row.beside}")
def test_without_the_setting_it_is_not_refused(row):
    needed = {"hybrid": "owt"} if row.beside == "no `hybrid`" else {}
    rest = {name: value for name, value in row.example.items() if name != row.field}
    scheme = {"scheme": "b"} if needed and row.field == "variable_batch" else {}
    assert refused(rest) is None
    if needed:
        assert refused({**row.example, **needed, **scheme}) is None


def test_the_page_prints_the_table():
    page = (ROOT / "docs" / "command-line.md").read_text()
    section = re.search(r"^## Settings that cannot be combined\n(.*?)^##", page, re.DOTALL | re.MULTILINE)[1]

    def in_flags(text):
        return re.sub(r"`(\w+)`", lambda field: f"`{flag_of(field[1])}`", text)

    rows = [
        f"| `{flag_of(row.field)}` | {in_flags(row.beside)} | {in_flags(row.said.format_map(row.example))} |"
        for row in REFUSALS
    ]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows
