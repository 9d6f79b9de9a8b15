"""Known bugs, planted one at a time: each is caught and named, and none stays behind."""

import dataclasses

import pytest

from parallel_dl.equivalence import Experiment, layouts_of, noise_floor, record, replay, synthetic_experiment, verify
from parallel_dl.equivalence.compare.runs import compare
from parallel_dl.equivalence.mutants import MUTANTS, NETWORKS, RANKS, experiments, planted, verdicts
from parallel_dl.layout import Layout

REFUSED = [mutant for mutant in MUTANTS if mutant.refused]
SAMPLE = ("one rank leaves out", "sent twice over", "a weight replaced", "a new weight")  # the rest is in the grid
NAMES = [
    pytest.param(
        mutant,
        id=mutant.name,
        marks=[pytest.mark.grid] if mutant.refused and not mutant.name.startswith(SAMPLE) else [],
    )
    for mutant in MUTANTS
]


@pytest.mark.sampled(3)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("mutant", NAMES)
def test_every_mutant_is_caught_and_named(comm, mutant):
    assert comm.size == RANKS
    (verdict,) = verdicts(comm, [mutant])
    if comm.rank == 0:
        assert verdict.caught
        assert verdict.named, verdict.diagnosis
        assert verdict.error is None if mutant.refused else verdict.error > 1e-4


@pytest.mark.ranks(2)
def test_existing_bug_does_not_count_as_caught(comm, monkeypatch):
    """Batch norm that is never synchronised: planting that again changes nothing, and must not count."""
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == "batch norm unsynchronised"]
    with planted(mutant):
        (verdict,) = verdicts(comm, [mutant])
    if comm.rank == 0:
        assert not verdict.caught
        assert verdict.diagnosis.endswith("different also without the bug")


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["one rank leaves out an all-reduce", "halo rows sent twice over"])
def test_a_refusal_counts_only_on_every_rank_and_with_the_right_words(comm, name):
    """A bug that is not there; and one of which something else is said."""
    (mutant,) = [mutant for mutant in REFUSED if mutant.name == name]
    harmless = dataclasses.replace(mutant, plant=lambda stack: None)
    otherwise = dataclasses.replace(mutant, says=("rank 7 calls",))
    found = list(verdicts(comm, [harmless, otherwise, mutant]))
    if comm.rank == 0:
        assert [(verdict.caught, verdict.named) for verdict in found] == [(False, False), (True, False), (True, True)]
        assert found[0].diagnosis == "nothing was refused"


@pytest.mark.ranks(2)
def test_nothing_stays_planted(comm):
    """The layouts of all mutants are right before and after."""
    for mutant in MUTANTS:
        with planted(mutant):
            pass
    tasks = [
        (name, layout) for name, layout in {(m.network, str(m.layout)): (m.network, m.layout) for m in MUTANTS}.values()
    ]
    cells = [cell for cell in verify(comm, experiments(), tasks) if cell is not None]
    assert all(cell.equal and cell.divergence is None for cell in cells)
    assert len(cells) == (len(tasks) if comm.rank == 0 else 0)


def test_there_are_enough_of_them():
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.says for mutant in MUTANTS)
    assert len(MUTANTS) - len(REFUSED) == 44, "docs/verification.md says how many"
    assert len(REFUSED) == 16, "docs/verification.md says how many"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("microbatches", [1, 3])
def test_the_noise_floor_is_rounding(name, microbatches):
    """Another order of summation: different bits, but next to nothing."""
    experiment = experiments()[name]
    serial = record(experiment, Layout(microbatches=microbatches))
    again = replay(experiment, microbatches)
    assert any((again.gradients[0][key] != array).any() for key, array in serial.gradients[0].items())
    assert 0 < compare(serial, again).worst.error == noise_floor(experiment, serial, microbatches) < 1e-12


@pytest.mark.sampled(2)
@pytest.mark.ranks(1, 2, 3)
def test_verify(comm):
    """Every layout of a small network; the serial runs are made once for each number of microbatches."""
    build, shape = NETWORKS["images"]
    what = synthetic_experiment(build, shape, 6, batch_size=7, steps=2)
    assert isinstance(what, Experiment)
    layouts = layouts_of(comm.size, build(), shape)
    cells = list(verify(comm, {"images": what}, [("images", layout) for layout in layouts]))
    if comm.rank:
        assert not any(cells)
        return
    assert [cell.layout for cell in cells] == [layout.as_dict() for layout in layouts]
    assert all(cell.equal and cell.worst["error"] <= cell.worst["bound"] == 1e-10 for cell in cells)
    # pure ones, pipelines (with too few layers for two chunks each on 3 ranks), owt in three schemes and with variable
    # batch in two, other splits
    expected = {1: 4, 2: 2 + 6 + 5 + 12, 3: 2 + 5 + 5 + 12}[comm.size]
    assert len(cells) == expected, [cell.layout for cell in cells]


def test_layouts():
    """All products, and every schedule."""
    build, shape = NETWORKS["fully"]
    found = layouts_of(4, build(), shape)
    products = {(layout.dp, layout.mp, layout.pp) for layout in found}
    assert products == {(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)}
    schedules = [layout.schedule for layout in found if (layout.pp, layout.mp, layout.split) == (2, 2, None)]
    assert schedules == ["naive", "gpipe", "1f1b", "interleaved", "zb-h1", "pipedream"]
    assert [layout.schedule for layout in found if layout.pp == 4] == ["naive", "gpipe", "1f1b", "zb-h1", "pipedream"]
    assert all(layout.ranks == 4 for layout in found)
    assert {layout.microbatches for layout in layouts_of(6, build(), shape, 5)} == {5}
    assert not [layout for layout in layouts_of(6, build(), shape) if layout.pp == 6], "4 layers have weights"
