"""The reports of all ranks on one test become one: the worst outcome wins, and tracebacks name their ranks."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import pytest

from parallel_dl.launch.tracebacks import MISMATCHES


class Crash:
    """What pytest's summary line and its XML file take from a failure: one message."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __str__(self) -> str:
        return self.message


class Tracebacks:
    """A failure's text: parts with a heading each; a part is text, or a representation of pytest's own."""

    def __init__(self, message: str, parts: Sequence[tuple[str | None, Any]]) -> None:
        self.reprcrash = Crash(message)
        self.parts = parts

    def toterminal(self, terminal: Any) -> None:
        """Writes all parts, with pytest's colours where it has made the part."""
        for heading, part in self.parts:
            if heading is not None:
                terminal.line(f"--- {heading} ---", bold=True)
            if hasattr(part, "toterminal"):
                part.toterminal(terminal)
            else:
                terminal.line(str(part).rstrip("\n"))

    def __str__(self) -> str:
        lines = []
        for heading, part in self.parts:
            lines += [] if heading is None else [f"--- {heading} ---"]
            lines.append(str(part).rstrip("\n"))
        return "\n".join(lines)


def ranks_named(numbers: Sequence[int]) -> str:
    """`rank 1` or `ranks 0, 2`."""
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, sorted(numbers)))


def failing_parts(reports: dict[int, pytest.TestReport], size: int) -> list[tuple[str | None, Any]]:
    """One part for each different traceback, with the ranks that have it."""
    alike: dict[str, list[int]] = {}
    for rank in sorted(reports):
        alike.setdefault(_without_arguments(reports[rank]), []).append(rank)
    return [(f"{ranks_named(ranks)} of {size}", reports[ranks[0]].longrepr) for ranks in alike.values()]


def _without_arguments(report: pytest.TestReport) -> str:
    """A traceback's text without the values of the arguments: a communicator among them differs on every rank."""
    entries = []
    for traceback, crash, description in getattr(report.longrepr, "chain", ()):
        for entry in traceback.reprentries:
            entries.append("\n".join([*entry.lines, str(getattr(entry, "reprfileloc", ""))]))
        entries.append(f"{crash} {description}")
    return "\n".join(entries) or report.longreprtext


def message_of(report: pytest.TestReport) -> str:
    """The failure's one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = getattr(crash, "message", None) or report.longreprtext
    return str(text)


def merged(phases: dict[int, dict[str, pytest.TestReport]], size: int) -> list[pytest.TestReport]:
    """The reports on setup, call and teardown to emit, from each rank's own (rank -> phase -> report)."""
    by_phase = {
        when: {rank: phases[rank][when] for rank in sorted(phases) if when in phases[rank]}
        for when in ("setup", "call", "teardown")
    }
    setup, call, teardown = (_worst(by_phase[when], size) for when in ("setup", "call", "teardown"))
    if setup is not None and setup.failed and call is not None and call.failed:
        _add_to(setup, call)
    elif call is not None and call.failed:  # where it was skipped on other ranks, the failure is what counts
        setup = next((r for r in by_phase["setup"].values() if r.passed), setup)
    if setup is not None and not setup.passed:
        call = None
    return [report for report in (setup, call, teardown) if report is not None]


def _worst(reports: dict[int, pytest.TestReport], size: int) -> pytest.TestReport | None:
    if not reports:
        return None
    failed = {rank: report for rank, report in reports.items() if report.failed}
    expected = {rank: report for rank, report in reports.items() if report.skipped and hasattr(report, "wasxfail")}
    if expected:  # it failed on some rank as it was expected to: passing on the others is no surprise
        failed = {rank: report for rank, report in failed.items() if "[XPASS(strict)]" not in report.longreprtext}
    skipped = {rank: report for rank, report in reports.items() if report.skipped}
    chosen = failed or expected or skipped or reports
    report = copy.copy(next(iter(chosen.values())))
    report.duration = max(each.duration for each in reports.values())
    if size > 1:
        report.sections = _sections({**chosen, **reports})
        if failed:
            mismatches = _mismatches(failed)
            parts = [] if len(mismatches) == len(failed) else failing_parts(failed, size)
            shown = [(None, text) for text in dict.fromkeys(mismatches)]
            report.longrepr = Tracebacks(message_of(report).splitlines()[0], [*shown, *parts])  # type: ignore[assignment]
    return report


def _mismatches(failed: dict[int, pytest.TestReport]) -> list[str]:
    """What the ranks called that does not match, of each that has found it: side by side, in place of tracebacks."""
    messages = [message_of(report) for report in failed.values()]
    heads = [text.partition(":")[0] for text in messages]
    found = [(text, head) for text, head in zip(messages, heads) if head.rpartition(".")[2] in MISMATCHES]
    return [text[len(head.rpartition(".")[0]) :].lstrip(".") for text, head in found]


def _sections(reports: dict[int, pytest.TestReport]) -> list[tuple[str, str]]:
    """The captured output of all ranks, each piece with the ranks that wrote it."""
    alike: dict[tuple[str, str], list[int]] = {}
    for rank, report in reports.items():
        for section in report.sections:
            alike.setdefault((section[0], section[1]), []).append(rank)
    return [(f"{title} ({ranks_named(ranks)})", text) for (title, text), ranks in alike.items()]


def _add_to(setup: pytest.TestReport, call: pytest.TestReport) -> None:
    if isinstance(setup.longrepr, Tracebacks) and isinstance(call.longrepr, Tracebacks):
        setup.longrepr = Tracebacks(message_of(setup), [*setup.longrepr.parts, *call.longrepr.parts])
        setup.sections = [*setup.sections, *call.sections]


def failure(
    item: pytest.Item,
    message: str,
    parts: list[tuple[str | None, Any]] | None = None,
    sections: list[tuple[str, str]] | None = None,
    duration: float = 0.0,
) -> list[pytest.TestReport]:
    """The three reports of an item whose call has failed for this reason."""
    text = Tracebacks(message.splitlines()[0], parts or [(None, message)])

    def report(when: Any, outcome: Any, longrepr: Any = None, seconds: float = 0.0) -> pytest.TestReport:
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome=outcome,
            longrepr=longrepr,
            when=when,
            sections=(sections or []) if when == "call" else (),
            duration=seconds,
            start=time.time() - seconds,
            stop=time.time(),
        )

    return [report("setup", "passed"), report("call", "failed", text, duration), report("teardown", "passed")]
