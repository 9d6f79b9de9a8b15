"""Whole steps: as in the files of `steps/`, proved, told apart from damaged ones, and timed."""

from pathlib import Path

import pytest

from parallel_dl.layout import Layout
from parallel_dl.schedule import (
    Action,
    Plan,
    PlanError,
    Times,
    check,
    find_cycle,
    is_asynchronous,
    make,
    one_weird_trick,
    parse,
    plan_of_hybrid_step,
    plan_of_step,
    read,
    replicated,
    schedules,
    simulate,
    with_messages,
    with_recomputation,
    with_sharded_state,
    with_update,
    write,
)

FOLDER = Path(__file__).parent / "steps"
STEPS = {
    "serial": plan_of_step(),
    "accumulated-3": plan_of_step(microbatches=3),
    "replicated-2": plan_of_step(replicas=2),
    "1f1b-2x3-replicated-2": plan_of_step("1f1b", 2, 3, replicas=2),
    "interleaved-2x2-replicated-2": plan_of_step("interleaved", 2, 2, replicas=2),
    "pipedream-2x2-replicated-2": plan_of_step("pipedream", 2, 2, replicas=2),
    "sharded-state-2x2": with_sharded_state(plan_of_step("1f1b", 2, 2, replicas=2)),
    "recomputed-2x2": with_recomputation(plan_of_step("gpipe", 2, 2)),
    "scheme-a-3": plan_of_hybrid_step("a", [[2, 2, 1]]),
    "scheme-b-3": plan_of_hybrid_step("b", [[2, 2, 1]]),
    "scheme-b-3-one-sample": plan_of_hybrid_step("b", [[1, 0, 0]]),
    "scheme-c-2": plan_of_hybrid_step("c", [[2, 2]]),
    "scheme-a-2-accumulated": plan_of_hybrid_step("a", [[2, 1], [1, 1]]),
    "scheme-c-2-variable": plan_of_hybrid_step("c", [[2, 2]], variable_batch=True),
}


@pytest.mark.parametrize("name", STEPS)
def test_golden(name):
    assert write(STEPS[name]) == (FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", [name for name in STEPS if name != "scheme-b-3-one-sample"])
def test_steps_are_right(name):
    step = STEPS[name]
    assert check(step).line is None
    assert simulate(step).makespan > 0
    back = read(FOLDER / f"{name}.txt")
    assert back.programs == step.programs
    assert not check(back).faults


def test_the_layout_says_which_step():
    assert Layout(microbatches=3).plan() == STEPS["accumulated-3"]
    assert Layout(dp=2, pp=2, microbatches=3).plan() == STEPS["1f1b-2x3-replicated-2"]
    assert Layout(dp=2, mp=4).plan() == STEPS["replicated-2"], "ranks that split layers are one"
    assert Layout(dp=3, hybrid="owt", scheme="b").plan(5) == STEPS["scheme-b-3"]
    assert Layout(dp=2, hybrid="owt", scheme="c", variable_batch=True).plan() == STEPS["scheme-c-2-variable"]


# -- damage ----------------------------------------------------------------------------------------------------------
def changed(plan, rank, change):
    programs = [list(program) for program in plan.programs]
    programs[rank] = change(programs[rank])
    return Plan(plan.name, tuple(map(tuple, programs)))


@pytest.mark.parametrize("name", [name for name in STEPS if name != "scheme-b-3-one-sample"])
def test_every_action_is_needed_once(name):
    """But updates, whose absence is another step, and recomputation."""
    step = STEPS[name]
    for rank, program in enumerate(step.programs):
        for at, action in enumerate(program):
            without = changed(step, rank, lambda p, at=at: p[:at] + p[at + 1 :])
            if action.kind not in ("U", "R"):
                assert check(without).faults, f"without {action}"
            twice = changed(step, rank, lambda p, at=at, action=action: [*p[: at + 1], action, *p[at + 1 :]])
            assert check(twice).faults, f"twice {action}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0F0 0B0 U\n0F0 0B0 U", "rank 1, action 0: 0F0 is of a stage that rank 0 computes"),
        ("0F0 0B0 AR U\n0F0 0B0 U", "rank 1, action 2: U needs 0AR, which rank 1 never does"),
        ("0F0 0B0 AR U\n0F0 0B0", "rank 0 does AR, but rank 1 never does it"),
        ("0F0 AR 0B0 U\n0F0 AR 0B0 U", "rank 0, action 1: AR comes before 0B0"),
        ("0F0 0B0 U AR\n0F0 0B0 U AR", "rank 0, action 2: U comes before AR"),
        ("0F0 0F1 0B0 U 0B1", "rank 0, action 3: U comes before 0B1"),
        ("0F0 0B0 RS U\n0F0 0B0 RS U", "rank 0 updates shards of its weights, and never gathers them: AG is missing"),
        ("0F0 1F0 1B0 0B0 0AR 1AR\n0F0 1F0 1B0 0B0 1AR 0AR", "rank 0 does 0AR where rank 1 does 1AR first"),
        ("0F0 0B0 AR U\n0F0 0B0 0F1 0B1 AR U", "rank 0 never does 0F1"),
        ("0F0 0B0 0R0", "rank 0, action 1: 0B0 comes before 0R0"),
        (
            "0F0 0SF0 0RB0 0B0 0AR\n1RF0 1F0 1B0 1SB0\n0F0 0SF0 0RB0 0B0 0AR",
            "between a stage of 2 and one of 1 rank",
        ),
        ("0F0 0SF0:0 1RF0:0 1F0:0 1B0:0 1SB0:0 0B0", "0B0 needs 0RB0:0, which rank 0 never does"),
        ("0F0 0SF0:0 1F0:0 1B0:0 1SB0:0 0RB0:0 0B0", "1F0:0 needs 1RF0:0, which rank 0 never does"),
    ],
)
def test_the_first_fault(text, said):
    assert said in check(parse(text)).line


def test_exchanges_that_wait_for_each_other():
    """Each rank waits for what the other posts later; one that is posted first waits for nobody."""
    step = STEPS["scheme-c-2"]
    late = changed(step, 0, lambda p: [Action(0, "F", 0), Action(1, "RF", 0, 0), Action(0, "SF", 0, 0), *p[3:]])
    assert [str(wait) for wait in find_cycle(late, rendezvous=False)] == []
    late = changed(late, 1, lambda p: [Action(0, "F", 0), Action(1, "RF", 0, 0), Action(0, "SF", 0, 0), *p[3:]])
    assert check(late).line == ("deadlock: rank 0 at 1RF0:0 waits for rank 1, rank 1 at 1RF0:0 waits for rank 0")


def test_a_collective_waits_for_its_group():
    """Rank 0 stands at its sum until rank 1 comes, which waits for a message of rank 2."""
    waiting = parse("0F0 0AR0 0B0\n0F0 0RB0 0AR0 0B0\n1RF0 1F0 1B0 1SB0")
    assert [str(wait) for wait in find_cycle(waiting, rendezvous=False)] == [
        "rank 0 at 0AR0 waits for rank 1",
        "rank 1 at 0RB0 waits for rank 2",
        "rank 2 at 1RF0 waits for rank 0",
    ]
    alone = parse("0F0 0B0 0AR\n0F0 0B0")
    assert [str(wait) for wait in find_cycle(alone, rendezvous=False)] == ["rank 0 at 0AR waits for rank 1"]


# -- memory and time ---------------------------------------------------------------------------------------------------
def test_memory_of_what_is_recomputed():
    """GPipe keeps one activation instead of m; of a sub-batch only that one is alive beside the share's."""
    assert check(with_recomputation(with_messages(make("gpipe", 2, 4)))).peak_live == (1, 1)
    assert check(with_messages(make("gpipe", 2, 4))).peak_live == (4, 4)
    assert check(STEPS["scheme-c-2"]).peak_live == (2, 2)


def test_collectives_take_their_time_from_the_last_rank_on():
    """The first stage ends at 2 (p - 1) + m (F + B) = 10, the second one before it."""
    times = Times(backward_weight=0.0, all_reduce=(3.0, 5.0), update=1.0)
    pipeline = simulate(with_messages(with_update(make("1f1b", 2, 4))), times)
    replicas = simulate(STEPS_OF_TWO, times)
    assert pipeline.makespan == 11
    sums = {event.rank: (event.start, event.end) for event in replicas.traffic if event.action.kind == "AR"}
    assert sums == {0: (10, 13), 1: (10, 13), 2: (9, 14), 3: (9, 14)}
    assert replicas.makespan == 15
    assert sum(replicas.busy) == 2 * sum(pipeline.busy)


STEPS_OF_TWO = plan_of_step("1f1b", 2, 4, replicas=2)


def test_a_rank_waits_in_a_collective_for_the_last_one():
    """Rank 1 recomputes its forward, and comes one unit of time later."""
    found = simulate(parse("0F0 0B0 AR U\n0F0 0R0 0B0 AR U"), Times(all_reduce=2.0, update=1.0))
    assert [(e.rank, e.start, e.end) for e in found.traffic] == [(0, 4, 6), (1, 4, 6)]
    assert (found.makespan, found.busy, found.idle) == (7, (4, 5), (3, 2))
    assert [str(event.action) for event in found.critical_path] == ["0F0", "0R0", "0B0", "U"]


def test_a_collective_of_one_rank_is_none():
    assert simulate(parse("0F0 0B0 AR U"), Times(all_reduce=5.0)).makespan == 3
    assert replicated(make("1f1b", 2, 2), 1) == make("1f1b", 2, 2)


def test_one_weird_trick_with_microbatches():
    """Each passes the scheme by itself."""
    step = one_weird_trick(2, [range(2)] * 2)
    assert check(step).ok
    assert step.microbatches == 2


# -- schedules from elsewhere ------------------------------------------------------------------------------------------
def reversed_gpipe(pp, microbatches):
    """All forwards, then all backwards, from the last microbatch on."""
    order = list(range(microbatches))
    return [[(stage, "F", j) for j in order] + [(stage, "B", j) for j in order[::-1]] for stage in range(pp)]


def of_two_stages(pp, microbatches, chunks=2):
    return make("interleaved", pp, microbatches, chunks).programs


def test_a_function_is_a_schedule():
    plan = make(reversed_gpipe, 3, 4)
    assert (plan.name, plan.pp, plan.stages, plan.microbatches) == ("reversed_gpipe", 3, 3, 4)
    assert check(plan_of_step(reversed_gpipe, 3, 4, replicas=2)).ok
    assert make(of_two_stages, 2, 4).stages == 4
    assert make(of_two_stages, 2, 4, 3).stages == 6
    with pytest.raises(PlanError, match="chunks 2: applies only to interleaved; reversed_gpipe has one stage per rank"):
        make(reversed_gpipe, 3, 4, 2)


def test_a_schedule_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    schedules.register("mine.py:backwards", reversed_gpipe)
    plan = Layout(pp=2, schedule="mine.py:backwards", microbatches=3).plan()
    assert (plan.name, plan.lines()[1]) == (
        "mine.py:backwards",
        "1RF0 1F0 1RF1 1F1 1RF2 1F2 1B2 1SB2 1B1 1SB1 1B0 1SB0 U",
    )
    assert not is_asynchronous("mine.py:backwards")
    schedules.register(
        "mine.py:updates", lambda pp, m: [[(s, k, j) for j in range(m) for k in "FBU"] for s in range(pp)]
    )
    assert Layout(pp=2, schedule="mine.py:updates", microbatches=3).is_asynchronous


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        (None, "wrong returned None: expected a list for each rank of"),
        ([[("F", 0)]] * 2, "wrong returned .*: expected a list for each rank of"),
        ([[(0, "X", 0)]], "wrong returned"),
        ([[(0, "F", 0), (0, "B", 0)]], "wrong returned programs for 1 rank and 1 microbatch; expected 2 and 1"),
        ([[(0, "F", 0), (0, "B", 0)], [(1, "B", 0), (1, "F", 0)]], "wrong: rank 1, action 0: 1B0 comes before 1F0"),
    ],
)
def test_what_a_function_returns_is_checked(programs, said):
    def wrong(pp, microbatches):
        return programs

    with pytest.raises(PlanError, match=said):
        make(wrong, 2, 1)
