"""Every kind of split is the serial run: losses, gradients, optimizer state and weights after 5 steps.

Here is a sample; `make grid` takes every case on every number of ranks.
"""

import pytest
from split_cases import BRANCHES, CASES, CONVOLUTIONS, FAMILIES, FULLY, GROUPS, LAYERS, RANKS, SAMPLES, check

NAMES = list(CASES)
# those whose sizes, corners or neighbours are only interesting on many ranks
MANY = (
    "narrow",
    "many classes",
    "filters, depthwise",
    "channels",
    "towers, 3",
    "rows, kernel larger than a slab",
    "filters at the end",
    "rows, few",
    "rows-columns",
    "2x4",
    "filters, rows",
    "max pool follows rows",
    "response norm, wide",
    "batch norm on few rows",
    "dropout on tiles",
    "towers, concatenate of 5",
    "ends differ, concatenated",
)
# those of which a third rank has nothing
FEW = ["towers alone", "towers alone, concatenated", "tower around"]


def able(names, ranks):
    return [name for name in names if ranks in CASES[name].ranks]


@pytest.mark.sampled(2)
@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", able(NAMES, 2)[::2])
def test_on_two_ranks(comm, name):
    check(comm, name)


@pytest.mark.sampled(2)
@pytest.mark.ranks(3)
@pytest.mark.parametrize("name", able([*CONVOLUTIONS, *LAYERS], 3)[::3] + able([*FULLY, *BRANCHES], 3)[1::3] + FEW)
def test_on_three_ranks(comm, name):
    check(comm, name)


@pytest.mark.sampled(2)
@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("name", SAMPLES)
def test_along_the_samples(comm, name):
    check(comm, name)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", ["one weird trick", "all samples", "samples after a sum"])
def test_along_the_samples_of_replicas_and_microbatches(comm, name):
    check(comm, name, dp=2, microbatches=3)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", [n for n in NAMES if CASES[n].ranks == (4,)] + able([*LAYERS, *GROUPS], 4)[1::5])
def test_on_four_ranks(comm, name):
    check(comm, name)


@pytest.mark.sampled(2)
@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", able(NAMES, 2)[::4])
def test_beside_data_parallelism(comm, name):
    """2 replicas on 2 ranks each, with shares of 3 and 2 samples."""
    check(comm, name, dp=2)


@pytest.mark.ranks(8)
@pytest.mark.parametrize("name", MANY)
def test_on_eight_ranks(comm, name):
    check(comm, name)


@pytest.mark.ranks(1)
@pytest.mark.parametrize("name", able(NAMES, 1)[::6])
def test_on_one_rank(comm, name):
    """A way that is asked for is taken there, too."""
    check(comm, name)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("name", ["pair", "dropout", "mse", "every way", "batch norm on tiles", "towers, sum of 5"])
def test_microbatches(comm, name):
    check(comm, name, batch_size=7, microbatches=3)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", [name for name in FULLY if name.startswith("one ")])
def test_one_layer_in_several_places(comm, name):
    check(comm, name, batch_size=7, microbatches=2)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("sequences", "linear on"))])
def test_sequences(comm, name):
    """Fully connected layers on (samples, ..., features); on three ranks some shares are empty."""
    check(comm, name)


@pytest.mark.sampled(2)
@pytest.mark.ranks(4, 8)
@pytest.mark.parametrize(
    ("name", "batch_size", "microbatches"),
    [
        ("dropout", 1, 1),
        ("logistic", 1, 1),
        ("alexnet", 1, 1),
        ("towers of images", 1, 1),
        ("every way", 1, 1),
        ("rows-columns to input", 3, 2),
        ("batch norm on rows", 3, 2),
        ("norms", 2, 1),
    ],
)
def test_empty_shares(comm, name, batch_size, microbatches):
    """Fewer samples than replicas, in a batch or in a microbatch."""
    check(comm, name, comm.size // 2, batch_size, microbatches)


# -- the whole grid ------------------------------------------------------------------------------------------------
@pytest.mark.grid
@pytest.mark.ranks(*RANKS, timeout=600)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_case(comm, family):
    for name in able(FAMILIES[family], comm.size):
        check(comm, name)


@pytest.mark.grid
@pytest.mark.ranks(2, 4, 6, 8, timeout=600)
@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_case_beside_data_parallelism(comm, family, microbatches):
    for name in able(FAMILIES[family], comm.size // 2):
        check(comm, name, dp=2, microbatches=microbatches)
