"""`assert_same_program` on functions and scripts: once right, once wrong, and what it refuses."""

import pytest
import trained

from parallel_dl.equivalence import assert_same_program
from parallel_dl.equivalence.scripts import run_script
from parallel_dl.errors import InputError


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def one_serial_run(kept, monkeypatch):
    """The right program runs on one rank twice, as it is and with its weights changed in their last bits."""

    def run_once(main, arguments, ranks, folder, steps, timeout, nudge):
        if ranks > 1:
            return run_script(main, arguments, ranks, folder, steps, timeout, nudge)
        if (main, nudge) not in kept:
            kept[main, nudge] = run_script(main, arguments, ranks, folder, steps, timeout, nudge)
        return kept[main, nudge]

    monkeypatch.setattr("parallel_dl.equivalence.scripts.assertion.run_script", run_once)


@pytest.mark.usefixtures("one_serial_run")
def test_the_same():
    assert_same_program(trained.right, ranks=[3], steps=5)  # the fourth batch is smaller


@pytest.mark.usefixtures("one_serial_run")
def test_not_the_same():
    with pytest.raises(AssertionError) as raised:
        assert_same_program(trained.wrong, ranks=[2], steps=5, serial=trained.right)
    assert str(raised.value).startswith("2 ranks: DIFFERENT from update 0 on: the gradient of 0.weight by 5.0e-01 ")
    assert str(raised.value).endswith("; likely: 2 times the serial gradient: a factor 1/2 is missing")


def test_what_is_refused():
    for main, words in (
        (lambda: None, "expected a script, or a function of a file's top level"),
        (3, "expected a script, or a function of a file's top level"),
        ("none.py", "none.py: no such file"),
    ):
        with pytest.raises(InputError, match=words):
            assert_same_program(main)
