"""The checker: right plans pass, every damage is found, and deadlock exactly where the graph has a circle."""

import graphlib
import random
from pathlib import Path

import pytest
from schedule_plans import graph, plan, plans, shuffled

from parallel_dl.schedule import Action, Plan, check, find_cycle, parse, peak_live, read, with_messages

GOLDEN = Path(__file__).parent / "golden"


def test_all_schedules_are_right_and_never_deadlock():
    for name, pp, microbatches, chunks, each in plans():
        report = check(each)
        assert report.ok, (name, pp, microbatches, chunks, report.line)
        assert report.line is None


def test_blocking_1f1b_deadlocks_under_rendezvous():
    for _, pp, microbatches, _, each in plans("1f1b"):
        report = check(with_messages(each, blocking=True))
        assert report.buffered == ()
        assert bool(report.rendezvous) == (pp >= 2 and microbatches >= 2)
        assert report.ok == (not report.rendezvous)
        for wait, following in zip(report.rendezvous, report.rendezvous[1:] + report.rendezvous[:1]):
            assert wait.other == following.rank


def test_blocking_gpipe_and_naive_never_deadlock():
    for name, *_, each in plans("gpipe", "naive"):
        assert check(with_messages(each, blocking=True)).ok, name


def test_the_deadlock_is_named():
    report = check(with_messages(plan("1f1b", 2, 2), blocking=True))
    assert report.line == (
        "deadlock if sends wait for their receive: rank 0 at 0SF1 waits for rank 1, rank 1 at 1SB0 waits for rank 0"
    )


def test_peak_live():
    for name, pp, microbatches, _, each in plans("naive", "gpipe", "1f1b", "pipedream", "zb-h1"):
        expected = {
            "naive": [1] * pp,
            "gpipe": [microbatches] * pp,
            "zb-h1": [min(pp, microbatches)] * pp,
        }.get(name, [min(pp - stage, microbatches) for stage in range(pp)])
        assert list(peak_live(each)) == expected


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
@pytest.mark.parametrize("blocking", [False, True])
def test_files(path, blocking):
    """PyTorch's messages are in an order in which even sends that wait for their receive come to an end."""
    report = check(with_messages(read(path), blocking=blocking))
    assert report.faults == report.buffered == ()
    if path.stem.startswith("pytorch") and path.stem.endswith("messages"):
        assert report.ok


# -- damage ----------------------------------------------------------------------------------------------------
SMALL = [("gpipe", 2, 2), ("1f1b", 3, 3), ("interleaved", 2, 2), ("zb-h1", 3, 3), ("pipedream", 2, 3)]


def with_program(of, rank, program):
    programs = [*of.programs]
    programs[rank] = tuple(program)
    return Plan(of.name, tuple(programs))


@pytest.mark.parametrize("arguments", SMALL)
def test_every_action_is_needed_once_and_on_its_rank(arguments):
    right = plan(*arguments)
    for rank, program in enumerate(right.programs):
        for at, action in enumerate(program):
            without, after = [*program[:at], *program[at + 1 :]], program[at + 1 :]
            if action.kind != "U":
                assert check(with_program(right, rank, without)).faults, f"without {action}"
            assert check(with_program(right, rank, [*program[: at + 1], action, *after])).faults, f"twice {action}"
            other = (rank + 1) % right.pp
            moved = with_program(with_program(right, rank, without), other, [*right.programs[other], action])
            assert check(moved).faults, f"{action} on rank {other}"


@pytest.mark.parametrize("arguments", SMALL)
def test_every_wrong_kind_is_found(arguments):
    right = plan(*arguments)
    for rank, program in enumerate(right.programs):
        for at, action in enumerate(program):
            for kind in {"F", "B", "I", "W", "SF", "RF", "SB", "RB"} - {action.kind}:
                if action.kind == "U":
                    continue
                wrong = [*program[:at], Action(action.stage, kind, action.microbatch), *program[at + 1 :]]
                assert check(with_program(right, rank, wrong)).faults, f"{kind} instead of {action}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0B0", "there is no forward pass"),
        ("0B0 0F0", "rank 0, action 0: 0B0 comes before 0F0, action 1, which it needs"),
        ("0F0", "rank 0 never does 0B0"),
        ("0F0 0F0 0B0", "rank 0, action 1: 0F0 has been done before, as action 0"),
        ("0F0 0I0", "rank 0 never does 0W0, the other half of 0I0"),
        ("0F0 0W0 0I0", "rank 0, action 1: 0W0 comes before 0I0, action 2, which it needs"),
        ("0F0 0W0", "rank 0, action 1: 0W0 needs 0I0, which rank 0 never does"),
        ("0F0 0B0 0I0 0W0", "rank 0 does 0B0 and 0I0: the same twice"),
        ("0F0 0U0 0B0", "rank 0, action 1: 0U0 comes before 0B0, action 2, which it needs"),
        ("0F0 0I0 0U0 0W0", "rank 0, action 2: 0U0 comes before 0W0, action 3, which it needs"),
        ("0F0 0B0 0F2 0B2", "rank 0 never does 0F1"),
        ("0F0 0B0\n2F0 2B0", "no rank computes stage 1, and the stages are 0 to 2"),
        ("0F0 0B0\n0F1 0B1", "rank 1, action 0: 0F1 is of a stage that rank 0 computes"),
        ("0F0 0SF0 0RB0 0B0\n1F0 1B0 1SB0", "rank 1, action 0: 1F0 needs 1RF0, which rank 1 never does"),
        ("0F0 0RB0 0B0\n1RF0 1F0 1B0 1SB0", "rank 1 does 1RF0, but rank 0 never does 0SF0"),
        ("0F0 0SF0 0RB0 0B0\n1RF0 1F0 1B0", "rank 0 does 0RB0, but rank 1 never does 1SB0"),
        ("0SF0 0F0 0RB0 0B0\n1RF0 1F0 1B0 1SB0", "0SF0 comes before 0F0"),
        ("0F0 0SF0 0RB0 0B0\n1RF0 1F0 1SB0 1B0", "1SB0 comes before 1B0"),
        ("0F0 0SF0 0B0", "0SF0 goes beyond the stages, which are 0 to 0"),
        ("0F0 0SF0 1RF0 1F0 1B0 1SB0 0RB0 0B0", "0SF0 is a message of rank 0 to itself, which also has stage 1"),
        ("1F0 0F0 1B0 0B0", "1F0 comes before 0F0"),
        ("0F0 1F0 0B0 1B0", "0B0 comes before 1B0"),
        ("0F999999 0B999999", "rank 0 never does 0F0"),
        ("0F0 0B0 999999F0", "no rank computes stage 1, "),
        (
            "0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1\n1RF1 1F1 1B1 1SB1 1RF0 1F0 1B0 1SB0",
            "rank 0 does 0SF0 where rank 1 receives 0SF1 first",
        ),
    ],
)
def test_the_first_fault(text, said):
    report = check(with_messages(parse(text)))
    assert not report.ok
    assert said in report.line
    assert len(report.faults) <= 100


def test_deadlock_with_buffered_sends():
    """Each side waits for what the other sends later."""
    text = "0F0 0SF0 0RB0 0B0 0F1 0SF1 0RB1 0B1\n1RF0 1F0 1RF1 1F1 1B0 1SB0 1B1 1SB1"
    for blocking in (False, True):
        report = check(with_messages(parse(text), blocking))
        assert report.faults == ()
        assert report.line == "deadlock: rank 0 at 0RB0 waits for rank 1, rank 1 at 1RF1 waits for rank 0"
        assert report.rendezvous


def test_a_circle_of_three_is_named_without_those_who_wait_for_it():
    """Ranks 1 to 3 wait for each other in turn, and rank 0 for rank 1."""
    text = "0F0 0SF0 0RB0 0B0\n1F0 1RF0\n2F0\n3F0"
    programs = [*parse(text).programs]
    programs[1] = tuple(map(Action.parse, ["1RB0", "1RF0", "1F0", "1SF0", "1B0", "1SB0"]))
    programs[2] = tuple(map(Action.parse, ["2RB0", "2RF0", "2F0", "2SF0", "2B0", "2SB0"]))
    programs[3] = tuple(map(Action.parse, ["3RF0", "3F0", "3B0", "3SB0"]))
    circle = find_cycle(Plan("three", tuple(programs)), rendezvous=False)
    assert [(wait.rank, str(wait.action), wait.other) for wait in circle] == [(2, "2RB0", 3), (3, "3RF0", 2)]


@pytest.mark.parametrize("arguments", [("1f1b", 3, 3), ("gpipe", 2, 3), ("interleaved", 2, 4), ("zb-h1", 4, 4)])
def test_deadlock_is_a_circle_of_the_graph(arguments):
    """Told in another way: the graph of programs and messages has a circle, send and receive joined for rendezvous."""
    found = {(False, False): 0, (False, True): 0, (True, True): 0}
    for seed in range(150):
        each = shuffled(with_messages(plan(*arguments), blocking=True), seed, random.Random(seed).choice([0, 1, 4, 12]))
        circles = []
        for rendezvous in (False, True):
            try:
                graphlib.TopologicalSorter(graph(each, joined=rendezvous)).prepare()
                circles.append(False)
            except graphlib.CycleError:
                circles.append(True)
            assert bool(find_cycle(each, rendezvous)) == circles[-1], each.lines()
        found[tuple(circles)] += 1
    assert found[False, True]
    assert found[True, True]


def test_sends_that_do_not_block_never_wait():
    for seed in range(50):
        each = shuffled(plan("1f1b", 3, 3), seed, 3)
        assert find_cycle(each, rendezvous=True) == find_cycle(each, rendezvous=False)
