"""A pytest plugin: a test marked @pytest.mark.ranks(1, 2, 4) runs on that many MPI ranks under a plain `pytest`.

The main process decides what runs and never imports MPI; all tests for one number of ranks share one mpirun. To read in
this order: marks, group and turn (in the main process), session (inside a rank), reports. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

from typing import Any

import pytest

from parallel_dl.errors import number_of
from parallel_dl.launch.environment import inside_mpirun, mpirun_size
from parallel_dl.testing.group import Group
from parallel_dl.testing.marks import IN_GROUP, PARAMETER, RANKS_HERE, marked, number_of_ranks, numbers_of
from parallel_dl.testing.reports import failure

_GROUP = pytest.StashKey["Group | None"]()
_COMMUNICATORS: list[Any] = []  # the one of the last test that used the fixture comm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("ranks_timeout", "seconds that a test on several ranks may take", default="60")
    parser.addini("ranks_checked", "whether ranks compare their calls before they make them", type="bool", default=True)
    parser.addini("ranks_grace", "seconds that the other ranks have to finish when one has failed", default="5")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "ranks(*numbers, timeout=None): run the test on each of these numbers of MPI ranks (parallel_dl)"
    )
    config.stash[_GROUP] = None
    if RANKS_HERE not in config.stash:  # a rank of a group's job has set it already
        config.stash[RANKS_HERE] = mpirun_size() if inside_mpirun() else None
    for name in ("ranks_timeout", "ranks_grace"):
        try:
            valid = float(config.getini(name)) > 0
        except ValueError:
            valid = False
        if not valid:
            raise pytest.UsageError(f"{name} = {config.getini(name)}: must be a number of seconds above 0")


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("ranks") is not None:
        numbers = numbers_of(metafunc.definition)
        if metafunc.config.stash.get(IN_GROUP, False):  # makes none of the other items, which may be thousands
            numbers = [number for number in numbers if number == metafunc.config.stash[RANKS_HERE]] or numbers[:1]
        metafunc.fixturenames.append(PARAMETER)
        metafunc.parametrize(PARAMETER, numbers, ids=[f"ranks={number}" for number in numbers])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Items for the same number of ranks together, unmarked ones first; the order is otherwise kept."""
    items.sort(key=lambda item: number_of_ranks(item) or 0)
    here = config.stash[RANKS_HERE]
    if here is not None:
        for item in items:
            number = number_of_ranks(item)
            if number not in (None, here):
                reason = f"needs {number_of(number, 'MPI rank')}; this pytest itself runs under an mpirun with {here}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a marked item on its ranks and emits what they report as if it had run here."""
    config = item.config
    if config.stash[RANKS_HERE] is not None or not marked(item):
        return None
    number = number_of_ranks(item)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    if number is None:
        reports = failure(item, "@pytest.mark.ranks works on test functions and on methods of plain classes only")
    else:
        group = config.stash[_GROUP]
        if group is None or group.ranks != number:
            _end_group(config)
            group = config.stash[_GROUP] = Group(config, number)
        reports = group.run(item, nextitem)
    # what unmarked items have set up in this process and the next item does not need
    left = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(nextitem), when="teardown")
    if left.excinfo is not None:
        reports[-1] = item.ihook.pytest_runtest_makereport(item=item, call=left)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    if nextitem is None or number_of_ranks(nextitem) != number:
        _end_group(config)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    _end_group(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    _end_group(config)


def _end_group(config: pytest.Config) -> None:
    group = config.stash.get(_GROUP, None)
    if group is not None:
        config.stash[_GROUP] = None
        group.end()


@pytest.fixture
def comm(request: pytest.FixtureRequest) -> Any:
    """A checked communicator of this test alone, over all its ranks: a duplicate of MPI's world."""
    if not marked(request.node) or request.config.stash[RANKS_HERE] is None:
        pytest.fail("fixture comm: mark the test with @pytest.mark.ranks(...)", pytrace=False)
    from parallel_dl.mpi import Communicator, world

    # Freeing is collective. That all ranks are here again means that all have passed the test before; right after a
    # test the ranks that passed would wait for those that failed.
    while _COMMUNICATORS:
        _COMMUNICATORS.pop().free()
    _COMMUNICATORS.append(Communicator(world().mpi.Dup(), checked=True, name="comm"))
    return _COMMUNICATORS[0]
