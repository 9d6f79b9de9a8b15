"""The executor: every action becomes one call, in the order of the program; and the package needs nothing."""

import subprocess
import sys

import pytest
from conftest import HANG
from schedule_plans import plan

from parallel_dl.schedule import ALL, Action, PlanError, StageObject, execute
from parallel_dl.schedule.actions import KINDS
from parallel_dl.schedule.execute import METHODS


class Recorder:
    """Writes down what is called."""

    def __init__(self):
        self.calls, self.named = [], []

    def __getattr__(self, name):
        def note(*arguments, **named):
            self.calls.append((name, *arguments))
            self.named += [] if name in ("expect", "finish") else [named]

        return note


def test_each_action_is_a_call():
    runner = Recorder()
    execute(plan("1f1b", 2, 1).programs[0], runner)
    assert runner.calls == [
        ("expect", [Action(0, "RB", 0)]),
        ("forward", 0, 0),
        ("send_activation", 0, 0),
        ("receive_gradient", 0, 0),
        ("backward", 0, 0),
        ("finish",),
    ]


@pytest.mark.parametrize("name", ["interleaved", "zb-h1", "pipedream"])
def test_the_order_is_that_of_the_program(name):
    for program in plan(name, 3, 6).programs:
        runner = Recorder()
        execute(program, runner)
        (expect, receives), *calls, finish = runner.calls
        assert (expect, finish) == ("expect", ("finish",))
        assert receives == [action for action in program if action.kind in ("RF", "RB")]
        kinds = {method: kind for kind, method in METHODS.items()}
        assert [Action(stage, kinds[method], j) for method, stage, j in calls] == list(program)


def test_every_kind_has_a_method():
    assert set(METHODS) == set(KINDS)
    assert len(set(METHODS.values())) == len(KINDS)


def test_nothing_is_done_of_an_unknown_kind():
    runner = Recorder()
    with pytest.raises(PlanError, match="3X0: unknown kind 'X'"):
        execute((Action(0, "F", 0), Action(3, "X", 0)), runner)
    assert runner.calls == []


def test_nothing_is_done_that_the_object_has_no_method_for():
    class Forward(StageObject):
        done = 0

        def forward(self, stage, microbatch):
            self.done += 1

    stages = Forward()
    with pytest.raises(PlanError, match="0B0: Forward has no backward"):
        execute(plan("naive", 1, 1).programs[0], stages)
    assert not stages.done


def test_what_an_action_names_is_passed():
    runner = Recorder()
    execute(tuple(map(Action.parse, ["0SF1:2", "0:3AG", "AR", "0U4"])), runner)
    assert runner.named == [{"sub_batch": 2}, {"unit": 3}, {}, {}]
    assert [call[1:] for call in runner.calls[1:-1]] == [(0, 1), (0, ALL), (ALL, ALL), (0, 4)]


def test_finish_is_not_called_after_an_exception():
    runner = Recorder()
    runner.backward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        execute(plan("naive", 1, 1).programs[0], runner)
    assert [name for name, *_ in runner.calls] == ["expect", "forward"]


def test_the_package_needs_the_standard_library_only(environment):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['numpy', 'mpi4py', 'rich', 'typer']))\n"
        "import parallel_dl.schedule as s, parallel_dl.schedule.grid\n"
        "print(s.simulate(s.with_messages(s.make('1f1b', 4, 8))).makespan)\n"
        "used = {m.split('.')[1] for m in sys.modules if m.startswith('parallel_dl.')}\n"
        "print(used - {'schedule', 'files', 'errors', 'partition', 'from_file'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
    assert (run.stdout, run.stderr) == ("33.0\nset()\n", "")
