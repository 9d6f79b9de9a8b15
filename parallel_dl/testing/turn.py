"""One test on all ranks of a job: waits until all have finished, or until it is clear that they will not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from parallel_dl.launch import Job
from parallel_dl.launch.ends import positions_of
from parallel_dl.testing.marks import timeout_of
from parallel_dl.testing.reports import failing_parts, failure, merged, message_of, ranks_named
from parallel_dl.watchdog.watchdog import HEARD, Deadlock, Watchdog

_LOOK_SECONDS = 0.1  # between two looks at ranks that wait


class Turn:
    """One item on all ranks of a job: what each has reported, until all have finished or it is clear they will not."""

    def __init__(self, job: Job, item: pytest.Item, grace: float, left: set[str]) -> None:
        """`left`: what earlier tests of this job have left behind."""
        self.job, self.item, self.grace, self._left = job, item, grace, left
        self.phases: dict[int, dict[str, pytest.TestReport]] = {rank: {} for rank in range(job.ranks)}
        self.finished: set[int] = set()
        self.dead: int | None = None
        self.began = time.monotonic()
        self.reason = ""
        self.deadlock: Deadlock | None = None
        self._watchdog = Watchdog(job.send)

    @property
    def in_order(self) -> bool:
        """Whether every rank has finished."""
        return len(self.finished) == self.job.ranks

    def wait(self) -> None:
        """Until all ranks have finished, one has died, those left never can, or the time or a failure's grace is up."""
        limit = timeout_of(self.item)
        deadline = self.began + limit
        self.reason = f"within {limit:g} s"
        failed = False
        while not self.in_order and self.dead is None and time.monotonic() < deadline:
            self.deadlock = self._watchdog.look()
            if self.deadlock is not None:
                break
            for event in self.job.events(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))):
                self._take(event.rank, event.kind, event.content)
            if not failed and any(report.failed for reports in self.phases.values() for report in reports.values()):
                failed = True
                if time.monotonic() + self.grace < deadline:
                    deadline = time.monotonic() + self.grace
                    self.reason = f"within {self.grace:g} s after another rank had failed"
        if self.dead is not None:  # what others had to say before they are ended too
            for event in self.job.events(0.2):
                self._take(event.rank, event.kind, event.content)

    def _take(self, rank: int, kind: str, content: tuple) -> None:
        if kind == "report":
            config: Any = self.item.config
            report = config.hook.pytest_report_from_serializable(config=config, data=content[0])
            self.phases[rank][report.when] = report
        elif kind == "finished":
            self.finished.add(rank)
        elif kind in HEARD:
            self._watchdog.hear(rank, kind, content)
        elif kind in ("lost", "closed", "exited", "failed") and self.dead is None:
            self.dead = rank

    def reports(self) -> list[pytest.TestReport]:
        """All ranks have finished: their reports, merged. What the test has left behind is a warning."""
        left = [line for line in self._watchdog.leftovers() if line not in self._left]
        self._left.update(left)
        for line in left:
            self.item.warn(pytest.PytestWarning(line))
        return merged(self.phases, self.job.ranks)

    def broken(self, how_it_died: Callable[[int], str]) -> list[pytest.TestReport]:
        """Not all have finished: first what failed, then who died, then where the others are."""
        size, headline = self.job.ranks, ""
        parts: list[tuple[str | None, Any]] = []
        failed = {rank: r for rank, reports in self.phases.items() for r in reports.values() if r.failed}
        if failed:
            parts += failing_parts(failed, size)
            headline = message_of(next(iter(failed.values())))
        if self.dead is not None:
            line = how_it_died(self.dead)
            parts.append((f"rank {self.dead} of {size}", "\n".join([line, *_up_to_pytest(self.job.crash(self.dead))])))
            headline = headline or line
        elif self.deadlock is not None:
            parts.append((None, "\n".join([self.deadlock.line, *self.deadlock.picture])))
            headline = headline or self.deadlock.line
        else:
            waiting = [rank for rank in range(size) if rank not in self.finished]
            line = f"{ranks_named(waiting)} of {size} had not finished {self.reason}"
            parts.append((None, "\n".join([line, *positions_of(self.job, self._watchdog)])))
            headline = headline or line
        sections = []
        for rank, reports in self.phases.items():
            for last in list(reports.values())[-1:]:  # a phase's report has the output of the phases before it too
                sections += [(f"{title} (rank {rank})", text) for title, text in last.sections]
        return failure(self.item, headline, parts, sections, time.monotonic() - self.began)


def _up_to_pytest(lines: list[str]) -> list[str]:
    """A stack's lines, innermost first, up to pytest's; at least its heading and one frame."""
    end = next((i for i, line in enumerate(lines) if "/_pytest/" in line), len(lines))
    return lines[: max(end, 2)]
