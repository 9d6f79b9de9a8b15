"""Tables fit 80 columns where COLUMNS says so, with every number; otherwise each row is one line."""

import pytest

from parallel_dl.cli import main
from parallel_dl.cli.report import finite
from parallel_dl.cli.train_report import _print_ledger

LEDGER = [
    {
        "rank": rank,
        "axis": "model",
        "layer": "inception.branches.conv",
        "direction": "backward",
        "call": "reduce_scatter",
        "messages": 12,
        "values": 123_456_789,
        "bytes": 987_654_321,
        "shared_memory_bytes": rank * 1_234_567,
    }
    for rank in range(2)
]
COMMANDS = [
    ("summary", "alexnet"),
    ("summary", "alexnet", "--mp", "4"),
    ("summary", "mlp_deep", "--pp", "4", "--cache-bytes", "133000"),
    ("summary", "vgg_small", "--hybrid", "owt", "--ranks", "2"),
]


def shown(call, capfd, monkeypatch, columns):
    """The lines of all tables, and their words."""
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    call()
    out, err = capfd.readouterr()
    assert err == ""
    tables = [line.rstrip() for line in out.splitlines() if line.startswith(" ")]
    return tables, sorted({word for line in tables for word in line.split() if any(one.isdigit() for one in word)})


@pytest.mark.parametrize(
    "call",
    [*(lambda command=command: main(list(command)) for command in COMMANDS), lambda: _print_ledger(LEDGER)],
    ids=[*(" ".join(command) for command in COMMANDS), "ledger"],
)
def test_on_a_narrow_screen(call, capfd, monkeypatch):
    narrow, numbers = shown(call, capfd, monkeypatch, "80")
    assert max(map(len, narrow)) <= 80
    wide, expected = shown(call, capfd, monkeypatch, None)
    assert numbers == expected
    assert len(wide) <= len(narrow)


def test_numbers_that_json_does_not_have():
    assert finite({"a": [1.0, float("nan")], "b": {"c": float("inf")}, "d": 3, "e": "inf"}) == {
        "a": [1.0, None],
        "b": {"c": None},
        "d": 3,
        "e": "inf",
    }
