"""The schedules: as in the files of `golden/`, as PyTorch has them, and what they refuse."""

import itertools
from pathlib import Path

import pytest
from schedule_plans import plan, plans

from parallel_dl.schedule import Action, PlanError, make, parse, read, with_messages, without_messages, write
from parallel_dl.schedule.actions import KINDS

GOLDEN = Path(__file__).parent / "golden"
OURS = sorted(path for path in GOLDEN.glob("*.txt"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_golden(path):
    name, _, sizes = path.stem.removesuffix("-messages").rpartition("-")
    made = make(name, *map(int, sizes.split("x")))
    if path.stem.endswith("-messages"):
        made = with_messages(made)
    assert write(made) == path.read_text()


def test_interleaved_is_that_of_pytorch():
    theirs = read(GOLDEN / "pytorch-interleaved-4x8.csv")
    assert theirs.programs == make("interleaved", 4, 8, 2).programs


def test_messages_are_those_of_pytorch():
    """Which, but not where: PyTorch receives early."""
    theirs, ours = read(GOLDEN / "pytorch-interleaved-4x8-messages.csv"), plan("interleaved", 4, 8, 2)
    assert [sorted(program) for program in theirs.programs] == [sorted(program) for program in ours.programs]


def test_text_form_is_read_back():
    for _, _, _, _, each in itertools.islice(plans(), 0, None, 7):
        back = parse(write(each))
        assert back.programs == each.programs
        assert back.blocking == each.has_messages
        assert without_messages(back).programs == tuple(
            tuple(action for action in program if len(action.kind) == 1) for program in each.programs
        )


def test_interleaved_with_one_stage_on_one_rank_is_1f1b():
    assert make("interleaved", 1, 5, 1).programs == make("1f1b", 1, 5).programs


def test_with_messages_twice_is_once():
    once = plan("zb-h1", 3, 4)
    assert with_messages(once) == once
    assert with_messages(once, blocking=True).blocking
    assert with_messages(with_messages(once, blocking=True)).blocking


def test_ranks_with_stages_side_by_side_send_nothing_between_them():
    vee = with_messages(parse("0F0 3F0 3B0 0B0\n1F0 2F0 2B0 1B0"))
    assert vee.lines() == ["0F0 0SF0 3RF0 3F0 3B0 3SB0 0RB0 0B0", "1RF0 1F0 2F0 2SF0 2RB0 2B0 1B0 1SB0"]


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_read(kind):
    assert Action.parse(f" 12{kind}345 ") == Action(12, kind, 345)
    assert str(Action(12, kind, 345)) == f"12{kind}345"


@pytest.mark.parametrize(("theirs", "ours"), [("SEND_F", "SF"), ("RECV_F", "RF"), ("SEND_B", "SB"), ("RECV_B", "RB")])
def test_pytorchs_names(theirs, ours):
    action = Action.parse(f"2{theirs}7")
    assert action == Action(2, ours, 7)
    assert action.partner.partner == action


@pytest.mark.parametrize(
    "text", ["", "F", "2F", "F0", "2f0", "2X0", "-1F0", "2F0 2F1", "2F1.5", "2_F0", "9" * 5000 + "F0"]
)
def test_invalid_actions_are_refused(text):
    with pytest.raises(PlanError, match="is not an action: expected stage, kind and microbatch, like 2F0"):
        Action.parse(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gpip", 2, 2), "unknown schedule 'gpip': did you mean 'gpipe'[?] expected one of naive, gpipe, 1f1b"),
        (("1F1B", 2, 2), "did you mean '1f1b'"),
        (("xyzzy", 2, 2), "^unknown schedule 'xyzzy': expected one of"),
        (("gpipe", 0, 2), "^pp 0: must be at least 1"),
        (("gpipe", 2, 0), "^microbatches 0: must be at least 1"),
        (("interleaved", 2, 2, 0), "^chunks 0: must be at least 1"),
        (("interleaved", 4, 6), "^microbatches 6: interleaved takes multiples of pp, here 4, 8, 12 and so on"),
        (("1f1b", 2, 2, 1), "^chunks 1: applies only to interleaved; 1f1b has one stage per rank"),
        (("1f1b", 1000, 1000), "at most 100,000 forward passes"),
    ],
)
def test_what_is_refused(arguments, said):
    with pytest.raises(PlanError, match=said):
        make(*arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no line"),
        ("# nothing\n\n", "has no line"),
        ("0F0 0X0", "rank 0: '0X0' is not an action"),
        ("0F0\n0B0 hello", "rank 1: 'hello' is not an action"),
        ("0F0,0B0\n1F0,?\n", "rank 1: '[?]' is not an action"),
        ('0F0,"0B0\n' + "x" * 200_000, "cannot be read as CSV"),
    ],
)
def test_files_that_cannot_be_read(text, said, tmp_path):
    path = tmp_path / "plan.txt"
    path.write_text(text)
    with pytest.raises(PlanError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in (("nothing", "no such file"), (".", "is a folder"), ("binary", "is not UTF-8 text")):
        with pytest.raises(PlanError, match=said):
            read(tmp_path / name)


def test_csv():
    """Empty cells, blanks, what is not of the pipeline, two actions at a time, a rank without any."""
    text = "0UNSHARD,0F0 ,,0B0,0REDUCE_GRAD,0RESHARD\r\n,,,\r\n\r\n(1F0;1B0)OVERLAP_F_B,,\r\n"
    assert parse(text).lines() == ["0F0 0B0", "", "1F0 1B0"]
