"""The ledger: every call's messages, values and bytes by hand; whose they are; and that results do not change."""

import pickle

import numpy as np
import pytest
from movement_cases import cases, slices

from parallel_dl.autograd import Tensor, backward, is_in_backward, primitive
from parallel_dl.mpi import MPI, CollectiveMismatch, Communicator, Ledger, Mesh, SharedWindow, buffers, gather_rows

pytestmark = pytest.mark.ranks(1, 2, 3)

LENGTHS = ([3, 0, 2], [1, 4, 3], [0, 0, 0])
COLUMNS = [1, 0, 4]  # of the 5 columns, in the order of the ranks; what is left is the first one's


@pytest.fixture(params=[False, True], ids=["plain", "checked"])
def counted(comm, request):
    """A communicator of the same ranks with a ledger."""
    return Communicator(comm.mpi, checked=request.param, name="counted", ledger=Ledger())


def counts(ledger, without=("object",)):
    """call -> (messages, values, bytes) of this rank, whatever the label."""
    found = {}
    for row in ledger.rows():
        if row.call not in without:
            before = found.get(row.call, (0, 0, 0))
            found[row.call] = tuple(a + b for a, b in zip(before, (row.messages, row.values, row.bytes)))
    return found


def labels(ledger):
    """(axis, layer, direction) -> messages, of this rank."""
    found = {}
    for row in ledger.rows():
        key = row.axis, row.layer, row.direction
        found[key] = found.get(key, 0) + row.messages
    return found


def draw(rank, *shape):
    return np.random.default_rng([rank, *shape]).standard_normal(shape).astype(np.float32)


def overlap(a, b):
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def calls(comm, lengths):
    """name -> (function of a communicator, {call: (messages, values)} by hand), slices being rows of five values."""
    size, rank = comm.size, comm.rank
    lengths, columns = lengths[:size], COLUMNS[:size]
    columns[0] += 5 - sum(columns)
    root, total, own = size - 1, sum(lengths), lengths[rank]
    whole, rows = draw(rank, total, 5), draw(rank, own, 5)
    scattered, gathered = 5 * (total - lengths[root]) * (rank == root), 5 * own * (rank != root)
    is_last, is_first = rank == size - 1, rank == 0
    owned = slices(lengths)
    wanted = [slice(0, min(total, r + 1)) for r in range(size)]
    others = [r for r in range(size) if r != rank]
    given = [n for n in (overlap(owned[rank], wanted[r]) for r in others) if n]
    returned = [n for n in (overlap(owned[r], wanted[rank]) for r in others) if n]

    def chain(start):
        """From each rank to the next one."""

        def run(c):
            pending = start(c) if not is_last else None
            got = c.receive(rank - 1, (lengths[rank - 1], 5)) if not is_first else None
            if pending is not None:
                pending.wait()
            return got

        return run

    return {
        "all_reduce": (lambda c: c.all_reduce(whole), {"all_reduce": (1, 5 * total)}),
        "all_reduce in place": (lambda c: c.all_reduce(x := whole.copy(), out=x), {"all_reduce": (1, 5 * total)}),
        "all_reduce into another": (
            lambda c: c.all_reduce(whole, out=np.empty_like(whole)),
            {"all_reduce": (1, 5 * total)},
        ),
        "all_reduce strided": (lambda c: c.all_reduce(whole[:, ::2]), {"all_reduce": (1, 3 * total)}),
        "start_all_reduce": (lambda c: c.start_all_reduce(whole.copy()).wait(), {"all_reduce": (1, 5 * total)}),
        "reduce": (lambda c: c.reduce(whole, root), {"reduce": (1, 5 * total)}),
        "reduce_scatter": (lambda c: c.reduce_scatter(whole, 0, lengths), {"reduce_scatter": (1, 5 * (total - own))}),
        "reduce_scatter along the other axis": (
            lambda c: c.reduce_scatter(whole.T, 1, lengths),
            {"reduce_scatter": (1, 5 * (total - own))},
        ),
        "all_gather": (lambda c: c.all_gather(rows, 0, lengths), {"all_gather": (1, 5 * (total - own))}),
        "all_gather along the other axis": (lambda c: c.all_gather(rows.T, 1), {"all_gather": (1, 5 * (total - own))}),
        "gather": (lambda c: c.gather(rows, root, 0, lengths), {"gather": (1, gathered)}),
        "scatter": (lambda c: c.scatter(whole, root, 0, lengths), {"scatter": (1, scattered)}),
        "all_to_all": (
            lambda c: c.all_to_all(rows, 1, 0, columns, lengths),
            {"all_to_all": (1, own * (5 - columns[rank]))},
        ),
        "broadcast": (
            lambda c: c.broadcast(whole, root, whole.shape, whole.dtype),
            {"broadcast": (1, 5 * total if rank == root else 0)},
        ),
        "broadcast of an unknown shape": (
            lambda c: c.broadcast(whole if rank == root else None, root),
            {"broadcast": (1, 5 * total if rank == root else 0)},
        ),
        "send": (chain(lambda c: c.send(rows, rank + 1)), {} if is_last else {"send": (1, 5 * own)}),
        "isend": (chain(lambda c: c.isend(rows, rank + 1)), {} if is_last else {"isend": (1, 5 * own)}),
        "shift": (lambda c: c.shift(rows, 1), {"send": (1, 5 * own)}),
        "shift to the end": (lambda c: c.shift(rows, 1, False), {} if is_last else {"send": (1, 5 * own)}),
        "shift to oneself": (lambda c: c.shift(rows, size), {}),
        "exchange_slices": (
            lambda c: c.exchange_slices(rows, 0, owned, wanted),
            {"isend": (len(given), 5 * sum(given))} if given else {},
        ),
        "return_slices": (
            lambda c: c.return_slices(draw(rank, wanted[rank].stop, 5), 0, owned, wanted),
            {"isend": (len(returned), 5 * sum(returned))} if returned else {},
        ),
        "barrier": (lambda c: c.barrier(), {}),
        "is_one_node": (lambda c: c.is_one_node, {}),
    }


# -- what is counted -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_call_by_hand_and_its_result_unchanged(comm, counted, lengths):
    ledger = counted.ledger
    for name, (run, expected) in calls(comm, lengths).items():
        without = run(comm)
        with ledger.counting():
            result = run(counted)
        assert type(result) is type(without), name
        if isinstance(result, np.ndarray):
            assert (result.shape, result.dtype) == (without.shape, without.dtype), name
            assert result.tobytes() == without.tobytes(), name
        by_hand = {} if comm.size == 1 else {call: (m, values, 4 * values) for call, (m, values) in expected.items()}
        assert counts(ledger) == by_hand, name
        assert all(row.shared_memory_bytes == 0 for row in ledger.rows()), name
        ledger.clear()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize(
    ("dtype", "values", "size"),
    [
        ("float16", 1, 2),
        ("float64", 1, 8),
        ("longdouble", 1, np.dtype(np.longdouble).itemsize),
        ("int8", 1, 1),
        ("bool", 1, 1),
        ("complex64", 1, 8),
        ("datetime64[s]", 1, 8),
        ("S5", 5, 1),
        ([("a", "i1"), ("b", "f8")], 9, 1),
    ],
    ids=str,
)
def test_values_of_every_dtype(counted, dtype, values, size):
    """`values` per element and their bytes; records and strings are bytes for MPI."""
    others = counted.size - 1
    with counted.ledger.counting():
        counted.all_gather(np.zeros((2, 3), dtype), 1, [3] * counted.size)
        counted.shift(np.zeros((2, 3), dtype), 1, shape=(2, 3))
    assert counts(counted.ledger) == {
        "all_gather": (1, 6 * others * values, 6 * others * values * size),
        "send": (1, 6 * values, 6 * values * size),
    }


@pytest.mark.ranks(2, 3)
def test_half_precision_is_counted_as_it_is_summed(counted):
    with counted.ledger.counting():
        counted.all_reduce(np.ones(7, np.float16))
    assert counts(counted.ledger) == {"all_reduce": (1, 7, 28)}


@pytest.mark.ranks(2, 3)
def test_an_array_cut_into_parts_is_several_messages(counted, monkeypatch):
    monkeypatch.setattr(buffers, "MAX_COUNT", 4)
    x = np.ones(10, np.float32)
    with counted.ledger.counting():
        counted.all_reduce(x)
        counted.start_all_reduce(x.copy()).wait()
        counted.reduce(x)
        counted.shift(x, 1, shape=(10,))
        counted.broadcast(x, 0, (10,), x.dtype)
    sent = 10 if counted.rank == 0 else 0
    assert counts(counted.ledger) == {
        "all_reduce": (6, 20, 80),
        "reduce": (3, 10, 40),
        "send": (3, 10, 40),
        "broadcast": (3, sent, 4 * sent),
    }


@pytest.mark.ranks(2, 3)
def test_objects_stand_apart(counted):
    """Lengths, shapes and dtypes that were not given are pickled: bytes that are no values."""
    rank, size, ledger = counted.rank, counted.size, counted.ledger

    def pickled(*things):
        return sum(len(pickle.dumps(thing, MPI.pickle.PROTOCOL)) for thing in things)

    def entered(run):
        ledger.clear()
        with ledger.counting():
            run()
        return [(r.messages, r.values, r.bytes) for r in ledger.rows() if r.call == "object"]

    x = np.ones((2, 3), np.float32)
    things = ["x" * 10**r for r in range(size)]
    others = [thing for r, thing in enumerate(things) if r != rank]
    shape = pickled((x.shape, x.dtype)) if rank == 1 else 0
    assert entered(lambda: counted.all_gather_object(things[rank])) == [(1, 0, pickled(*others))]
    assert entered(lambda: counted.shard_sizes(300)) == [(1, 0, (size - 1) * pickled(300))]
    assert entered(lambda: counted.all_gather(x)) == [(1, 0, (size - 1) * pickled(2))]
    assert entered(lambda: counted.broadcast_object(things[rank], 1)) == [
        (1, 0, pickled(things[1]) if rank == 1 else 0)
    ]
    assert entered(lambda: counted.broadcast(x, 1)) == [(1, 0, shape)]
    assert entered(lambda: counted.scatter(x, 1)) == [(1, 0, shape)]
    assert entered(lambda: counted.shift(x, 1)) == [(1, 0, pickled((2, 3)))]
    assert entered(lambda: counted.shift(x, 1, False)) == ([(1, 0, pickled((2, 3)))] if rank < size - 1 else [])
    assert entered(lambda: counted.all_gather(x, 0, [2] * size)) == []


def test_sums_in_shared_memory_stand_apart(counted):
    ledger = counted.ledger
    with ledger.counting():  # making and freeing one is not counted
        window = SharedWindow(counted.labelled("weights", "backward"), 1001, np.float64)
        assert ledger.rows() == []
        window.local[:] = counted.rank + 1
        for _ in range(3):
            total = window.all_reduce().copy()
        window.free()
    window = SharedWindow(counted, 5)
    window.all_reduce()
    window.free()
    assert (total == sum(range(counted.size + 1))).all()
    (row,) = ledger.rows() if counted.size > 1 else [None]
    if row is not None:
        assert (row.layer, row.direction, row.call) == ("weights", "backward", "window")
        assert (row.messages, row.values, row.bytes, row.shared_memory_bytes) == (0, 0, 0, 3 * 1001 * 8)


# -- when it counts ------------------------------------------------------------------------------------------------
@pytest.mark.ranks(2)
def test_nothing_is_counted_outside(counted):
    ledger, x = counted.ledger, np.ones(3)
    counted.all_reduce(x)
    assert ledger.rows() == []
    with ledger.counting():
        with ledger.counting():
            counted.all_reduce(x)
        assert ledger.is_counting
        counted.all_reduce(x)
    counted.all_reduce(x)
    with pytest.raises(ZeroDivisionError), ledger.counting():
        raise ZeroDivisionError
    assert not ledger.is_counting
    counted.all_reduce(x)
    assert counts(ledger) == {"all_reduce": (2, 6, 48)}
    ledger.clear()
    assert ledger.rows() == []


@pytest.mark.ranks(2)
def test_a_call_that_fails_is_not_counted(counted):
    with counted.ledger.counting(), pytest.raises(MPI.Exception):
        counted.send(np.ones(3), counted.size)
    assert counted.ledger.rows() == []


# -- under which label ---------------------------------------------------------------------------------------------
def test_without_a_ledger_a_label_is_nothing(comm):
    for c in (comm, Communicator(comm.mpi, checked=False)):
        assert c.ledger is None
        assert c.labelled("layer") is c
        assert c.labelled("layer", "backward") is c
        assert c.transport is c.mpi
    with pytest.raises(ValueError, match="direction 'sideways': expected forward or backward"):
        comm.labelled("layer", "sideways")


@pytest.mark.ranks(2, 3)
def test_two_labels_on_one_communicator(counted):
    first, second = counted.labelled("first"), counted.labelled("second", "backward")
    assert type(first) is type(counted)
    assert (first.rank, first.size, first.name, first.axis) == (counted.rank, counted.size, "counted", "world")
    assert first.labelled("second", "backward") is second
    assert second.labelled("") is counted
    assert counted.labelled("first") is first
    assert first.mpi == second.mpi == counted.mpi
    x = np.ones(2)
    with counted.ledger.counting():
        first.all_reduce(x)
        second.all_reduce(x)
        first.labelled("second").all_reduce(x)
        counted.all_reduce(x)
        first.all_reduce(x)
        if counted.rank == 0:
            first.send(x, 1)
        elif counted.rank == 1:
            assert (second.receive(0, (2,), x.dtype) == 1).all()
    assert labels(counted.ledger) == {
        ("world", "first", "forward"): 2 + (counted.rank == 0),
        ("world", "second", "backward"): 1,
        ("world", "second", "forward"): 1,
        ("world", "", "forward"): 1,
    }


@pytest.mark.ranks(2, 3)
def test_labels_are_checked_and_freed_as_one(comm):
    whole = Communicator(comm.mpi.Dup(), checked=True, name="whole", ledger=Ledger())
    first, second = whole.labelled("first"), whole.labelled("second")
    x = np.ones(2)
    whole.all_reduce(x)
    # as between communicators without a ledger, a label may differ between the ranks
    (first if comm.rank == 0 else second).all_reduce(x)
    with pytest.raises(CollectiveMismatch, match=r"rank 0 calls? barrier #3 but .* calls? all_reduce #3"):
        first.barrier() if comm.rank == 0 else second.all_reduce(x)
    assert first.is_one_node
    assert whole._shared.one_node
    assert second.is_one_node  # known: nothing is compared, #5 is the next call
    with pytest.raises(CollectiveMismatch, match="#5"):
        first.barrier() if comm.rank == 0 else second.all_reduce(x)
    first.free()
    for c in (whole, first, second):
        assert c.mpi == MPI.COMM_NULL
    assert whole._checks.private == MPI.COMM_NULL
    comm.barrier()


@pytest.mark.ranks(2)
def test_that_a_rank_has_ended_is_known_under_every_label(comm):
    whole = Communicator(comm.mpi, checked=True, ledger=Ledger())
    first, second = whole.labelled("first"), whole.labelled("second")
    first._checks.ended = "rank 1 has ended"
    for c in (whole, second):
        with pytest.raises(CollectiveMismatch, match="rank 1 has ended, so barrier cannot be called"):
            c.barrier()
    second.free()  # nobody is there to do it with
    assert first.mpi == comm.mpi


# -- on which axis -------------------------------------------------------------------------------------------------
def test_duplicates_and_splits_inherit_ledger_axis_and_label(counted):
    ledger, x = counted.ledger, np.ones(3)
    along = counted.split(0, axis="data")
    made = [counted.duplicate(), counted.duplicate("other"), counted.split(0), counted.split(0, name="other")]
    made += [along.duplicate("of data"), along.split(0, name="of data")]
    made += [counted.labelled("layer", "backward").duplicate(), counted.labelled("layer", "backward").split(0)]
    again = Communicator(counted, checked=False)
    assert counted.split(None) is None
    assert (counted.axis, again.axis) == ("world", "world")
    expected = []
    with ledger.counting():
        for c in [counted, again, along, *made]:
            assert c.ledger is ledger
            c.all_reduce(x)
            c.labelled("layer", "backward").all_reduce(x)
            expected += [c.axis] * 2
    assert [c.axis for c in made] == ["world"] * 4 + ["data"] * 2 + ["world"] * 2
    if counted.size > 1:
        assert labels(ledger) == {
            ("world", "", "forward"): 6,
            ("world", "layer", "backward"): 6 + 2 * 2,
            ("data", "", "forward"): 3,
            ("data", "layer", "backward"): 3,
        }
    for c in [*made, along]:
        c.free()


@pytest.mark.ranks(2, 3, 4)
def test_mesh(counted):
    size, ledger = counted.size, counted.ledger
    shapes = [(size, 1, 1), (1, size, 1), (1, 1, size)] + ([(2, 2, 1), (1, 2, 2), (2, 1, 2)] if size == 4 else [])
    for shape in shapes:
        sizes = dict(zip(("pipe", "data", "model"), shape))
        with ledger.counting():  # making a mesh is not counted
            mesh = Mesh(counted, **sizes)
            for axis in sizes:
                along = getattr(mesh, axis)
                assert (along.axis, along.ledger, along.checked) == (axis, ledger, counted.checked)
                along.labelled("layer").all_reduce(np.ones(2))
            mesh.world.all_reduce(np.ones(2))
        used = {(axis, "layer", "forward"): 1 for axis, size in sizes.items() if size > 1}
        assert labels(ledger) == {**used, ("world", "", "forward"): 1}
        ledger.clear()
        mesh.free()
    plain = Mesh(Communicator(counted, checked=False, ledger=None), data=size)
    assert plain.world.ledger is ledger  # it came with the other communicator
    plain.free()


# -- in which direction --------------------------------------------------------------------------------------------
MOVEMENTS = {
    "replicate": (set(), {"all_reduce"}),
    "all_reduce": ({"all_reduce"}, set()),
    "shard": (set(), {"all_gather"}),
    "unshard": ({"all_gather"}, set()),
    "all_gather": ({"all_gather"}, {"reduce_scatter"}),
    "reduce_scatter": ({"reduce_scatter"}, {"all_gather"}),
    "all_to_all": ({"all_to_all"}, {"all_to_all"}),
    "shift": ({"send"}, {"send"}),
    "exchange_slices": ({"isend"}, {"isend"}),
    "halo": ({"isend"}, {"isend"}),
    "broadcast": ({"broadcast"}, {"reduce"}),
    "reduce": ({"reduce"}, {"broadcast"}),
    "scatter": ({"scatter"}, {"gather"}),
    "gather": ({"gather"}, {"scatter"}),
}


@pytest.mark.ranks(2, 3)
def test_every_movement_in_both_directions(comm, counted):
    ledger = counted.ledger
    seen = set()
    for name, case in cases(counted, [2, 2, 3], 0).items():
        if name == "halo 0, 0":  # there is nothing to exchange
            continue
        movement = name.split(" ")[0].split(",")[0]
        forward, backward = MOVEMENTS[movement]
        if (name, comm.size) in {("shift by 2, cyclic", 2), ("shift by 2, not cyclic", 2)}:  # to oneself, or nowhere
            forward = backward = set()
        with ledger.counting():
            y = case.run(case.input())
            y.backward(case.cotangent(y))
        entered = {(row.direction, row.call) for row in gather_rows(comm, ledger) if row.call != "object"}
        expected = {("forward", call) for call in forward} | {("backward", call) for call in backward}
        assert entered == expected, name
        ledger.clear()
        seen.add(movement)
    assert seen == set(MOVEMENTS)


@pytest.mark.ranks(2)
def test_a_given_direction_holds_in_backward_too(counted):
    case = cases(counted.labelled("layer", "forward"), [2, 2], 0)["all_gather"]
    with counted.ledger.counting():
        y = case.run(case.input())
        y.backward(case.cotangent(y))
    assert labels(counted.ledger) == {("world", "layer", "forward"): 3}  # with the lengths


@pytest.mark.ranks(1)
def test_whether_backward_runs(comm):
    seen = []

    @primitive
    def watch(x, *, then=lambda: None):
        seen.append(is_in_backward())

        def pullback(g):
            then()
            seen.append(is_in_backward())
            return g

        return x, (pullback,)

    def nested():
        leaf = Tensor(np.ones(1), requires_grad=True)
        watch(leaf).backward()

    def fail():
        raise ZeroDivisionError

    x = Tensor(np.ones(1), requires_grad=True)
    watch(x).backward()
    assert seen == [False, True]
    seen.clear()
    watch(x, then=nested).backward()  # still in the outer one when the inner one has ended
    assert seen == [False, True, True, True]
    seen.clear()
    deferred = backward(watch(x), defer=[x])
    assert (seen, is_in_backward()) == ([False], False)
    deferred.run()
    assert seen == [False, True]
    with pytest.raises(ZeroDivisionError):
        watch(x, then=fail).backward()
    assert not is_in_backward()
    deferred = backward(watch(x, then=fail), defer=[x])
    with pytest.raises(ZeroDivisionError):
        deferred.run()
    assert not is_in_backward()
    remove = x.register_post_accumulate_grad_hook(lambda leaf: seen.append(is_in_backward()))
    seen.clear()
    x.backward()
    assert seen == [True]
    remove()


# -- the rows of all ranks -----------------------------------------------------------------------------------------
def test_rows_of_all_ranks(comm, counted):
    ledger = counted.ledger
    with ledger.counting():
        counted.labelled("first").all_gather(np.ones(counted.rank), 0, list(range(counted.size)))
        counted.labelled("second").shift(np.ones(3), 1, False, (3,))
        rows = gather_rows(counted, ledger)  # does not count itself
        again = gather_rows(comm, ledger)
    assert rows == again
    assert [row for row in rows if row.rank == comm.rank] == ledger.rows()
    expected = []
    if comm.size > 1:
        total = sum(range(comm.size))
        for rank in range(comm.size):
            values = total - rank
            expected.append((rank, "world", "first", "forward", "all_gather", 1, values, 8 * values, 0))
            if rank < comm.size - 1:
                expected.append((rank, "world", "second", "forward", "send", 1, 3, 24, 0))
    fields = ("rank", "axis", "layer", "direction", "call", "messages", "values", "bytes", "shared_memory_bytes")
    assert [tuple(getattr(row, field) for field in fields) for row in rows] == expected
    backwards = counted.split(0, -counted.rank)
    assert gather_rows(backwards, ledger) == rows  # by rank, not by the order of the communicator
    backwards.free()


def test_the_rank_of_a_ledger(comm):
    assert Ledger().rank == MPI.COMM_WORLD.rank
    ledger = Ledger(rank=7)
    c = Communicator(comm.mpi, checked=False, ledger=ledger)
    with ledger.counting():
        c.all_reduce(np.ones(1))
    assert {row.rank for row in ledger.rows()} == ({7} if comm.size > 1 else set())
