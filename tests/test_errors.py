"""A line of an error repeats at most 80 characters of a value, and is one line that a terminal can show."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_dl.cli.limits import flag_of
from parallel_dl.errors import (
    MOST_OF_LINE,
    MOST_OF_VALUE,
    InputError,
    bounded,
    named,
    number_of,
    one_of,
    shown,
    unknown_name,
    up_to,
)
from parallel_dl.schedule import PlanError


def longest_run(line, letter):
    return max((len(run) for run in "".join(c if c == letter else " " for c in line).split()), default=0)


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("value", ["x" * 10_000, "x" * 81, "'" * 200 + "x" * 90, b"x" * 500, ["x" * 500], 10**400])
def test_shown_is_short(value):
    assert len(shown(value)) <= MOST_OF_VALUE


def test_shown_of_what_python_does_not_write():
    for value in (10**5000, [16**6000], nested(100_000), {"a": nested(50_000)}):
        assert len(shown(value)) <= MOST_OF_VALUE


def test_shown_of_short_values():
    assert (shown("a b"), shown(12), shown(["a"]), shown(None)) == ("'a b'", "12", "['a']", "None")


@pytest.mark.parametrize(
    "line",
    [
        f"--loss {'x' * 5000}: unknown",
        f"unknown --loss {'x' * 5000!r}: expected one of mse",
        f"unknown --loss {'x y ' * 500!r}: expected one of mse",
        f"{'/tmp/' + 'x' * 5000}: no such file",
        f"{'x/' * 3000}: no such file",
        f"--output={'x' * 300}, {'x' * 300}: twice",
    ],
)
def test_values_in_a_line_are_cut(line):
    found = str(InputError(line))
    assert longest_run(found, "x") < MOST_OF_VALUE
    assert found.count("x") <= 2 * MOST_OF_VALUE
    assert "..." in found
    assert found[:6] == line[:6]
    assert found[-4:] == line[-4:]


def test_a_path_is_told_as_far_as_it_exists(tmp_path):
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    assert bounded(f"{folder / 'file'}: no such file") == f"{folder / 'file'}: no such file"
    line = bounded(f"{folder / ('c' * 300)}: no such file")
    assert line.startswith(str(folder))
    assert longest_run(line, "c") < MOST_OF_VALUE


@pytest.mark.parametrize("text", ["a\nb\r\n\tc", "a\x1b[31m b", "a\0 b", "a \u202e b", "a\ud800 b"])
def test_no_line_breaks_no_control_characters(text):
    line = str(InputError(text))
    assert line.isprintable()
    line.encode()


def test_apostrophes_are_no_quotes():
    text = "it is the network's " + "word " * 40 + "and all ranks' things"
    assert bounded(text) == text


def test_many_valid_names_are_not_all_listed():
    line = str(unknown_name("tensor", "layer7", [f"layer{number}" for number in range(100_000)]))
    assert len(line) < MOST_OF_LINE
    assert "did you mean" in line
    assert line.endswith("and 99950 more")


@pytest.mark.parametrize(
    ("valid", "said"),
    [
        (["owt"], "unknown --hybrid 'x': expected owt"),
        (["b", "a"], "unknown --hybrid 'x': expected one of a, b"),
        ([], "unknown --hybrid 'x': none is valid"),
    ],
)
def test_what_is_valid_in_the_singular(valid, said):
    assert str(unknown_name("--hybrid", "x", valid)) == said


def test_counts_and_choices():
    assert [number_of(n, "rank") for n in (0, 1, 2, 1437)] == ["0 ranks", "1 rank", "2 ranks", "1,437 ranks"]
    words = ("microbatch", "class", "axis", "layer", "box")
    assert [number_of(2, word) for word in words] == ["2 microbatches", "2 classes", "2 axes", "2 layers", "2 boxes"]
    assert [number_of(1, word) for word in words[:3]] == ["1 microbatch", "1 class", "1 axis"]
    assert (up_to(1), up_to(8)) == ("expected 1", "expected 1 to 8")
    assert (one_of(["a"]), one_of([2, 4])) == ("expected a", "expected one of 2, 4")


def test_an_empty_path_can_be_seen():
    assert (named(""), named("a")) == ("''", "a")


@given(st.text(max_size=4000))
def test_bounded_is_bounded_and_says_the_same_twice(text):
    line = bounded(text)
    assert len(line) <= MOST_OF_LINE
    assert bounded(line) == line


def test_fields_are_called_as_they_were_given():
    error = InputError("cannot be combined with `hybrid` owt; use `variable_batch` or `dp`", "mp", 2)
    assert str(error) == "mp 2: cannot be combined with hybrid owt; use variable_batch or dp"
    assert error.spoken(lambda field: f"<{field}>") == (
        "<mp> 2: cannot be combined with <hybrid> owt; use <variable_batch> or <dp>"
    )
    assert [flag_of(field) for field in ("mp", "variable_batch", "stages")] == ["--mp", "--variable-batch", "--stage"]
    assert error.field == "mp"
    assert unknown_name("`loss`", "mes", ["mse"]).field == "loss"
    assert InputError("a line, with no field").field is None


def test_an_error_of_another_rank_keeps_its_fields():
    error = pickle.loads(pickle.dumps(PlanError("must be at least 1", "pp", 0)))
    assert (type(error), str(error), error.field) == (PlanError, "pp 0: must be at least 1", "pp")
