"""Inside a rank: an ordinary pytest session over the same files that runs the items it is told to, one by one."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

import pytest

from parallel_dl.launch import rank
from parallel_dl.launch.environment import mpirun_rank
from parallel_dl.launch.tracebacks import end_at_the_call
from parallel_dl.testing.marks import IN_GROUP, RANKS_HERE

# What the main process has decided already, or does itself with the reports.
_NEUTRAL: dict[str, Any] = {
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "cacheclear": False,
    "maxfail": 0,
    "xmlpath": None,
    "usepdb": False,
    "trace": False,
    "pastebin": None,
    "log_file": None,
    "numprocesses": None,
    "dist": "no",
    "tx": [],
    "no_cov": True,
}


class RankSession:
    """The plugin that turns a pytest session into one rank's share of the main session."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.errors: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Before anything is configured: the main session's options, without what selects and what reports."""
        for name, value in {**self.setup["options"], **_NEUTRAL}.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.option.basetemp = f"{self.setup['basetemp']}-rank-{mpirun_rank()}"
        config.args[:] = self.setup["files"]
        config.stash[RANKS_HERE] = self.setup["ranks"]
        config.stash[IN_GROUP] = True
        # the attribute by which pytest's parts that write files (cache, XML) know that another process does it
        config.workerinput = {"workerid": f"rank{mpirun_rank()}"}  # type: ignore[attr-defined]

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Says what has been collected, then runs what the main process names until it says `finish`."""
        items = {item.nodeid: item for item in session.items}
        missing = [nodeid for nodeid in self.setup["items"] if nodeid not in items]
        rank.send(("collected", missing, "\n".join(self.errors)))
        while True:
            command, *content = rank.receive()
            if command == "finish":
                return True
            item, following = items[content[0]], items.get(content[1])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            rank.tell_end()
            rank.send(("finished", item.nodeid))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> None:
        if call.excinfo is not None and not item.config.getoption("fulltrace", False):
            end_at_the_call(call.excinfo.value)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        try:
            pickle.dumps(data)
        except Exception:  # what a test records may be anything; the rest of a report is plain data
            data["user_properties"] = [(name, repr(value)) for name, value in data["user_properties"]]
        rank.send(("report", data))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.config = session.config


def main() -> None:
    """Receives what the main session is, and becomes a part of it."""
    setup = rank.receive()
    sys.path[:] = setup["path"]
    if setup["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = setup["pythonpath"]
    os.chdir(setup["folder"])
    # the plugin is imported before this session exists; a warning about that would be an error under -W error
    # what a crash leaves is in the job's folder, which pytest's own faulthandler would not write to
    arguments = [*setup["arguments"], "-p", "no:faulthandler", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main(arguments, plugins=[RankSession(setup)])
    rank.send(("closed", int(status)))
    rank.complete()


if __name__ == "__main__":
    main()
