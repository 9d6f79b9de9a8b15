"""What @pytest.mark.ranks(1, 2, 4, timeout=30) says, and one clear line when it says something else."""

from __future__ import annotations

import pytest

PARAMETER = "_ranks"  # the parameter that stands for the number of ranks in an item's id

# The number of ranks around this very process: in a rank, or under a user's own mpirun; None in the main process.
RANKS_HERE = pytest.StashKey["int | None"]()
# Whether this process is a rank of a group's job, which runs only the items for its own number of ranks.
IN_GROUP = pytest.StashKey[bool]()


def marked(item: pytest.Item) -> bool:
    """Whether the item has the mark, its own or its class's or module's."""
    return item.get_closest_marker("ranks") is not None


def numbers_of(item: pytest.Item) -> list[int]:
    """The numbers of ranks of the mark that is closest to the test."""
    mark = item.get_closest_marker("ranks")
    assert mark is not None
    for number in mark.args:
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            _refuse(item, repr(number), "must be a number of ranks, at least 1")
        if mark.args.count(number) > 1:
            _refuse(item, ", ".join(map(repr, mark.args)), f"{number} is there twice")
    if not mark.args:
        _refuse(item, "", "needs at least one number of ranks, e.g. ranks(1, 2)")
    for name, value in mark.kwargs.items():
        if name != "timeout":
            _refuse(item, f"{name}={value!r}", "the only keyword is timeout")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            _refuse(item, f"timeout={value!r}", "must be a number of seconds above 0")
    return list(mark.args)


def _refuse(item: pytest.Item, said: str, valid: str) -> None:
    pytest.fail(f"{item.nodeid}: @pytest.mark.ranks({said}): {valid}", pytrace=False)


def number_of_ranks(item: pytest.Item) -> int | None:
    """The number of ranks that this item runs on; None for an item without the mark."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(PARAMETER)


def timeout_of(item: pytest.Item) -> float:
    """Seconds that the item may take on its ranks."""
    mark = item.get_closest_marker("ranks")
    assert mark is not None
    return float(mark.kwargs.get("timeout", item.config.getini("ranks_timeout")))
