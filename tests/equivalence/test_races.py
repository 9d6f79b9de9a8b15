"""Known races: under stress each is caught and named, whatever the seed, and right programs have none."""

import pytest

from parallel_dl import nn
from parallel_dl.equivalence import assert_equivalent, verify
from parallel_dl.equivalence.mutants import experiments, mutants_of, planted, verdicts
from parallel_dl.equivalence.mutants.races import RACES
from parallel_dl.errors import InputError
from parallel_dl.mpi import stress

SAMPLE = ("second barrier", "freed", "their bucket is summed", "two buffers in turn", "halo")
NAMES = [
    pytest.param(race, id=race.name, marks=[] if any(word in race.name for word in SAMPLE) else pytest.mark.grid)
    for race in RACES
]


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("race", NAMES)
def test_every_race_is_caught_and_named(comm, race):
    with stress.stressed(comm, 3) as late:
        (verdict,) = verdicts(late, [race])
    if comm.rank == 0:
        assert verdict.caught
        assert verdict.named, verdict.diagnosis


@pytest.mark.grid
@pytest.mark.ranks(2)
@pytest.mark.parametrize("seed", range(20))
def test_with_every_seed(comm, seed):
    with stress.stressed(comm, seed) as late:
        found = [verdict for verdict in verdicts(late, RACES) if verdict is not None]
    assert all(verdict.caught and verdict.named for verdict in found), found
    assert len(found) == (len(RACES) if comm.rank == 0 else 0)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.grid)])
def test_right_programs_have_none(comm, every):
    tasks = [*{(race.network, str(race.layout)): (race.network, race.layout) for race in RACES}.values()][::every]
    with stress.stressed(comm, 1) as late:
        cells = [cell for cell in verify(late, experiments(), tasks) if cell is not None]
        assert stress.races(late) == []
    assert all(cell.equal for cell in cells), cells


@pytest.mark.ranks(2)
def test_an_assertion_under_stress(comm):
    """A race that without stress makes no difference: the messages are small, and leave at once."""
    race = next(race for race in RACES if race.name == "race: send buffer cleared while it is sent")
    with stress.stressed(comm, 2) as late:
        assert_equivalent(lambda: mlp(4, 3), race.layout, 6, 2, comm=late, input_shape=(4,))
        said = "DIFFERENT: a race; rank 0: the buffer of a send to rank 1 on 'pipe'"
        with planted(race), pytest.raises(AssertionError, match=said):
            assert_equivalent(lambda: mlp(4, 3), race.layout, 6, 2, comm=late, input_shape=(4,))


def mlp(inputs, classes):
    return nn.Sequential(fc1=nn.Linear(inputs, 5), act=nn.Tanh(), fc2=nn.Linear(5, classes))


def test_they_have_names_of_their_own():
    assert len(RACES) >= 8
    assert len({race.name for race in RACES}) == len(RACES)
    assert mutants_of(RACES[0].name, RACES) == [RACES[0]]
    with pytest.raises(InputError, match="unknown mutant"):
        mutants_of(RACES[0].name)
