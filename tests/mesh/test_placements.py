"""Meshes, placements and the paths between them, from arithmetic alone."""

import itertools

import pytest

from parallel_dl.errors import InputError
from parallel_dl.mesh import (
    Invariant,
    MeshShape,
    Move,
    NotOffered,
    Partial,
    Placement,
    Replicated,
    Shard,
    Windows,
    dual,
    even,
    reshard,
)

LINE = MeshShape(model=3)
WHOLE = (5, 7, 9, 4)
SLICES, OTHER_SLICES, ROWS = Shard(1, (3, 2, 2)), Shard(1, (1, 0, 6)), Shard(2, (3, 3, 3))
HALO = Windows(2, (slice(0, 4), slice(2, 7), slice(5, 9)))


def on(state, mesh=LINE):
    return Placement(mesh, (state,))


def names(before, after, whole=WHOLE):
    return [move.name for move in reshard(before, after, whole)]


@pytest.mark.parametrize(
    ("before", "after", "path"),
    [
        (Invariant(), Replicated(), ["replicate"]),
        (Invariant(), SLICES, ["shard"]),
        (SLICES, Invariant(), ["unshard"]),
        (SLICES, Replicated(), ["all_gather"]),
        (Replicated(), SLICES, ["select"]),
        (SLICES, ROWS, ["all_to_all"]),
        (SLICES, OTHER_SLICES, ["exchange_slices"]),
        (Partial(), Invariant(), ["all_reduce"]),
        (Partial(), Replicated(), ["all_reduce", "replicate"]),
        (Partial(), SLICES, ["reduce_scatter"]),
        (ROWS, HALO, ["exchange_slices"]),
        (Invariant(), HALO, ["shard", "exchange_slices"]),
        (SLICES, HALO, ["all_to_all", "exchange_slices"]),
        (Partial(), HALO, ["reduce_scatter", "exchange_slices"]),
        (Replicated(), HALO, ["select"]),
        (Shard(0), SLICES, ["all_to_all"]),
        (Shard(0), Replicated(), ["all_gather"]),
    ],
    ids=str,
)
def test_the_table(before, after, path):
    assert names(on(before), on(after)) == path


@pytest.mark.parametrize("state", [Invariant(), Replicated(), Partial(), SLICES], ids=str)
def test_nothing_moves_to_where_it_is(state):
    assert reshard(on(state), on(state), WHOLE) == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [(Replicated(), Invariant()), (Replicated(), Partial()), (Invariant(), Partial()), (SLICES, Partial())],
    ids=str,
)
def test_paths_that_are_not_offered(before, after):
    with pytest.raises(NotOffered):
        reshard(on(before), on(after), WHOLE)


def test_the_adjoint_of_a_path_goes_from_dual_to_dual():
    states = [Invariant(), Replicated(), Partial(), SLICES, OTHER_SLICES, ROWS]
    for before, after in itertools.product(states, states):
        try:
            path = reshard(on(before), on(after), WHOLE)
        except NotOffered:
            continue
        there = on(before).states[0]
        for move in path:
            assert move.before == there
            there = move.after
            assert (move.adjoint.before, move.adjoint.after) == (dual(move.after), dual(move.before))
            assert move.adjoint.adjoint == move
        assert there == after


def test_duals():
    assert dual(Replicated()) == Partial()
    assert dual(Partial()) == Replicated()
    assert on(Replicated()).dual == on(Partial())
    for state in (Invariant(), SLICES):
        assert dual(state) == state


def test_tiles_are_shards_over_a_refined_axis():
    mesh = MeshShape(data=2, model=6).refine("model", rows=2, columns=3)
    assert dict(mesh) == {"data": 2, "rows": 2, "columns": 3}
    with pytest.raises(InputError, match="mesh axis model of 6 is not rows 2 x columns 2"):
        MeshShape(model=6).refine("model", rows=2, columns=2)
    grid = MeshShape(rows=2, columns=3)
    tiles = Placement.on(grid, rows=Shard(2, (5, 4)), columns=Shard(3, (2, 1, 1)))
    assert tiles.shape(4, WHOLE) == (5, 7, 4, 1)
    assert tiles.index(4, WHOLE) == (slice(0, 5), slice(0, 7), slice(5, 9), slice(2, 3))
    whole = on(Invariant(), MeshShape(model=6))
    assert names(tiles, whole) == ["unshard", "unshard"]
    assert [move.axis for move in reshard(tiles, whole, WHOLE)] == ["columns", "rows"]
    assert names(tiles, on(Replicated(), MeshShape(model=6))) == ["all_gather", "all_gather"]
    assert [move.axis for move in reshard(whole, tiles, WHOLE)] == ["rows", "columns"]
    other = Placement.on(MeshShape(rows=3, columns=2), rows=Shard(2, (3, 3, 3)), columns=Shard(3, (2, 2)))
    assert names(tiles, other) == ["unshard", "unshard", "shard", "shard"]


def test_coordinates():
    mesh = MeshShape(pipe=2, data=3, model=4)
    assert mesh.ranks == 24
    for rank in range(24):
        place = mesh.coordinates(rank)
        assert rank == (place["pipe"] * 3 + place["data"]) * 4 + place["model"] == mesh.rank(place)
    assert mesh.along(9, ["model"]) == [8, 9, 10, 11]
    assert mesh.along(9, ["data"]) == [1, 5, 9]
    assert mesh.along(9, ["data", "model"]) == list(range(12))
    assert mesh.along(9, []) == [9]
    with pytest.raises(InputError, match="every size is at least 1"):
        MeshShape(rows=0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_slices_of_a_placement_are_side_by_side(ranks):
    for length in (0, 1, 4, 11):
        place = on(Shard(1, even(length, ranks)), MeshShape(model=ranks))
        parts = [place.index(rank, (2, length)) for rank in range(ranks)]
        assert [part[0] for part in parts] == [slice(0, 2)] * ranks
        assert sum(part[1].stop - part[1].start for part in parts) == length
        assert [part[1].start for part in parts[1:]] == [part[1].stop for part in parts[:-1]]


def test_samples_are_shared_evenly_whatever_their_number():
    share = on(Shard(0))
    assert [share.shape(rank, (5, 2)) for rank in range(3)] == [(2, 2), (2, 2), (1, 2)]
    assert [share.shape(rank, (1, 2)) for rank in range(3)] == [(1, 2), (0, 2), (0, 2)]


def test_messages_count_what_leaves_a_rank():
    """By hand, of an array (5, 7, 9, 4) on three ranks: the row of axis 1 has 5 * 9 * 4 = 180 values."""

    def sent(before, after, rank):
        move = Move(LINE, "model", before, after)
        x = on(before).shape(rank, WHOLE)
        return {(one.direction, one.call): (one.messages, one.values) for one in move.messages(rank, x, WHOLE)}

    assert sent(SLICES, Replicated(), 0) == {
        ("forward", "all_gather"): (1, 4 * 180),
        ("backward", "reduce_scatter"): (1, 4 * 180),
    }
    assert sent(Invariant(), SLICES, 0) == {("backward", "all_gather"): (1, 4 * 180)}
    assert sent(Partial(), SLICES, 1) == {
        ("forward", "reduce_scatter"): (1, 5 * 180),
        ("backward", "all_gather"): (1, 5 * 180),
    }
    assert sent(Partial(), Invariant(), 2) == {("forward", "all_reduce"): (1, 7 * 180)}
    assert sent(Replicated(), SLICES, 2) == {}
    # 3 of 7 channels, then 3 of 9 rows: of its 3 * 9 rows it keeps 3 * 3
    assert sent(SLICES, ROWS, 0) == {
        ("forward", "all_to_all"): (1, 5 * 4 * 3 * 6),
        ("backward", "all_to_all"): (1, 5 * 4 * 3 * 4),
    }
    # rank 1 gives row 3 to rank 0, row 5 to rank 2, and gets rows 2 and 6
    row = 5 * 7 * 4
    assert sent(ROWS, HALO, 1) == {("forward", "isend"): (2, 2 * row), ("backward", "isend"): (2, 2 * row)}
