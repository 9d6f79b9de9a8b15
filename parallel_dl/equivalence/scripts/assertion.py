"""`assert_same_program`: in a test, does a program train on several ranks as it does on one?"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parallel_dl.equivalence.scripts.compared import EQUAL, FAILED, Verdict, compare_runs, not_deterministic
from parallel_dl.equivalence.scripts.runs import ScriptRun, run_script
from parallel_dl.errors import InputError, number_of


def assert_same_program(
    main: str | os.PathLike[str] | Callable[[], Any],
    ranks: Sequence[int] = (2,),
    arguments: Sequence[str] = (),
    steps: int = 10,
    serial: str | os.PathLike[str] | Callable[[], Any] | None = None,
    timeout: float = 120.0,
) -> None:
    """Raises AssertionError unless a training program does the same on each of these numbers of `ranks` as on one.

    `main` is a function without arguments, at the top level of a file, or the path of a script, which is called with
    `arguments`. `serial` is what runs on one rank, by default `main`. As in `parallel-dl compare`, gradients and
    weights are compared after each of the first `steps` updates; the message says in which of them the runs part, and
    names the likely cause. Each run may take `timeout` seconds. Call it in an ordinary test, without
    @pytest.mark.ranks: it starts the ranks itself. InputError for a function that another process cannot find, and for
    a program that gives different results when it is run twice on one rank.
    """
    __tracebackhide__ = True
    program, reference = program_of(main), program_of(main if serial is None else serial)
    with tempfile.TemporaryDirectory(prefix="pdl-compare-") as folder:

        def run(what: str, number: int, name: str, nudge: bool = False) -> ScriptRun:
            return run_script(what, arguments, number, Path(folder, name), steps, timeout, nudge)

        one = run(reference, 1, "serial")
        if one.status:
            raise AssertionError("\n".join([f"on 1 rank it ended with status {one.status}", *one.last_lines]))
        if said := not_deterministic(one, run(reference, 1, "again")):
            raise InputError(f"assert_same_program: not deterministic: {said}")
        nudged = run(reference, 1, "nudged", nudge=True)
        wrong: list[str] = []
        for number in ranks:
            found = run(program, number, number_of(number, "rank"))
            verdict = compare_runs(one, nudged, found)
            if verdict.verdict != EQUAL:
                wrong += _told(verdict, found)
        if wrong:
            raise AssertionError("\n".join(wrong))


def _told(verdict: Verdict, run: ScriptRun) -> list[str]:
    line = f"{number_of(verdict.ranks, 'rank')}: {verdict.line}"
    return [line, *(run.last_lines if verdict.verdict == FAILED else ())]


def program_of(main: str | os.PathLike[str] | Callable[[], Any]) -> str:
    """FILE, or FILE:NAME for a function."""
    if isinstance(main, str | os.PathLike):
        if not os.path.isfile(main):
            raise InputError(f"{os.fspath(main)}: no such file")
        return os.path.abspath(main)
    name, file = getattr(main, "__qualname__", ""), inspect.getsourcefile(main) if callable(main) else None
    if file is None or not name.isidentifier():
        raise InputError(
            f"assert_same_program: {name or main!r}: expected a script, or a function of a file's top level"
        )
    return f"{os.path.abspath(file)}:{name}"
