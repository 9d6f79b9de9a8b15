"""Every movement of arrays against NumPy: dtypes, memory orders, uneven and empty shards, arrays cut into parts."""

from itertools import accumulate, pairwise

import numpy as np
import pytest

from parallel_dl import partition
from parallel_dl.mpi import Communicator, alone, buffers

pytestmark = pytest.mark.ranks(1, 2, 3, 4)

SUMMED = ["int8", "int64", "uint16", "float16", "float32", "float64", "longdouble", "complex64", "complex128"]
MOVED = [*SUMMED, "bool", "datetime64[s]", "S5", ">f4", [("a", "i1"), ("b", "f8")]]
LENGTHS = ([3, 3, 3, 3], [2, 0, 5, 1], [0, 0, 4, 0], [0, 0, 0, 0])


def draw(rank: int, shape: tuple[int, ...], dtype: object = "float64") -> np.ndarray:
    """Small integers: their sums are exact in every dtype."""
    values = np.random.default_rng([rank, *shape]).integers(0, 6, shape)
    dtype = np.dtype(dtype)
    if dtype.names:
        out = np.zeros(shape, dtype)
        out["a"], out["b"] = values, values + 0.5
        return out
    return values.astype(dtype)


def equal(result: np.ndarray, expected: np.ndarray) -> None:
    assert result.flags.c_contiguous
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", SUMMED)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (4, 5)])
def test_all_reduce_and_reduce(comm, dtype, shape):
    arrays = [draw(rank, shape, dtype) for rank in range(comm.size)]
    expected = sum(arrays[1:], arrays[0])
    before = arrays[comm.rank].copy()
    equal(comm.all_reduce(arrays[comm.rank]), expected)
    np.testing.assert_array_equal(arrays[comm.rank], before)
    equal(comm.all_reduce(arrays[comm.rank].T), expected.T)
    root = comm.size - 1
    total = comm.reduce(arrays[comm.rank].T, root)
    if comm.rank == root:
        equal(total, expected.T)
    else:
        assert total is None


@pytest.mark.parametrize(
    ("op", "reference"), [("max", np.maximum), ("min", np.minimum), ("prod", np.multiply), ("sum", np.add)]
)
@pytest.mark.parametrize("dtype", ["int32", "float16", "float32", "float64"])
def test_operations(comm, op, reference, dtype):
    arrays = [draw(rank, (4, 3), dtype) for rank in range(comm.size)]
    equal(comm.all_reduce(arrays[comm.rank], op), np.array([reference.reduce(arrays)], dtype)[0])


def test_logical_operations(comm):
    arrays = [draw(rank, (40,)) > 2 for rank in range(comm.size)]
    for op, reference in (("or", np.any), ("max", np.any), ("and", np.all), ("min", np.all)):
        equal(comm.all_reduce(arrays[comm.rank], op), reference(arrays, axis=0))


@pytest.mark.parametrize("op", ["max", "min"])
def test_a_nan_on_one_rank_is_a_nan_on_all(comm, op):
    for where in range(comm.size):
        x = np.array([1.0, np.nan if comm.rank == where else comm.rank, 2.0])
        result = comm.all_reduce(x, op)
        assert np.isnan(result).tolist() == [False, True, False]


@pytest.mark.parametrize("op", ["max", "min"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f8"])
def test_extremes_of_all_floats(comm, op, dtype):
    """Infinities, zeros, the smallest numbers and NaN of either sign; the blocking calls and the started one."""
    limits = np.finfo(np.dtype(dtype).newbyteorder("="))
    some = np.array([0, 1, -1, np.inf, -np.inf, limits.max, limits.min, limits.tiny, -limits.tiny, limits.eps], dtype)
    arrays = [
        np.append(np.random.default_rng(rank).permutation(some), [rank, 1]).astype(dtype) for rank in range(comm.size)
    ]
    arrays[-1][-1] = np.copysign(np.nan, -1)
    expected = (np.maximum if op == "max" else np.minimum).reduce(arrays)
    x = arrays[comm.rank].reshape(3, 4)
    before = x.copy()
    np.testing.assert_array_equal(comm.all_reduce(x, op), expected.reshape(3, 4))
    total = comm.reduce(x, 0, op)
    assert (total is None) == (comm.rank != 0)
    if total is not None:
        np.testing.assert_array_equal(total, expected.reshape(3, 4))
    np.testing.assert_array_equal(x, before)
    if dtype != np.float16:
        assert comm.start_all_reduce(x, op).wait() is x
        np.testing.assert_array_equal(x, expected.reshape(3, 4))
    single = comm.all_reduce(np.asarray(x[0, 0]), op)
    assert single.shape == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_no_reduction_calls_python(comm, dtype):
    """MPI would call it, and a KeyboardInterrupt in it would end MPI."""
    for op in ("sum", "prod", "max", "min"):
        assert buffers.reduction_for(op, np.dtype(dtype)).operation.is_predefined


def test_all_reduce_into_out(comm):
    arrays = [draw(rank, (4, 6)) for rank in range(comm.size)]
    expected = sum(arrays)
    x = arrays[comm.rank].copy()
    out = np.empty_like(x)
    assert comm.all_reduce(x, out=out) is out
    equal(out, expected)
    wide = np.zeros((4, 12))
    comm.all_reduce(x, out=wide[:, ::2])
    equal(np.ascontiguousarray(wide[:, ::2]), expected)
    assert not wide[:, 1::2].any()
    overlapping = np.zeros(48)
    overlapping[:24] = x.ravel()
    comm.all_reduce(overlapping[:24], out=overlapping[12:36])
    equal(overlapping[12:36], expected.ravel())
    assert comm.all_reduce(x, out=x) is x
    equal(x, expected)
    with pytest.raises(ValueError, match="out is float32"):
        comm.all_reduce(x, out=np.empty((4, 6), np.float32))


def test_sums_are_the_same_bits_on_every_rank(comm):
    """And right: to the rounding of the largest summand."""
    for size in (1, 7, 1000, 100_003):
        for dtype in (np.float32, np.float64, np.float16, np.complex64):
            randoms = [np.random.default_rng(rank) for rank in range(comm.size)]
            parts = [(r.standard_normal(size) * 10.0 ** r.integers(-3, 4, size)).astype(dtype) for r in randoms]
            total = comm.all_reduce(parts[comm.rank])
            assert len(set(comm.all_gather_object(total.tobytes()))) == 1
            wide = [part.astype(complex) for part in parts]
            error = np.abs(total - sum(wide)) / (sum(map(np.abs, wide)) + np.finfo(dtype).tiny)
            assert error.max() <= comm.size * np.finfo(dtype).eps


def test_half_precision_is_summed_in_single(comm):
    """2048 + 1 is 2048 in float16."""
    x = np.array([2048 if comm.rank == 0 else 1], np.float16)
    assert comm.all_reduce(x)[0] == np.float16(np.float32(2048 + comm.size - 1))


def test_what_cannot_be_summed(comm):
    with pytest.raises(TypeError, match="'sum' is not defined for bool"):
        comm.all_reduce(np.ones(2, bool))
    with pytest.raises(ValueError, match="expected one of sum"):
        comm.all_reduce(np.ones(2), "average")
    with pytest.raises(TypeError, match="Python objects"):
        comm.all_gather(np.array([None]))


def test_start_all_reduce(comm):
    arrays = [[draw(rank, (size,)) for size in (0, 3, 5000)] for rank in range(comm.size)]
    own = [x.copy() for x in arrays[comm.rank]]
    pending = [comm.start_all_reduce(x) for x in own]
    for k, exchange in enumerate(pending):
        assert exchange.wait() is own[k]
        equal(own[k], sum(arrays[rank][k] for rank in range(comm.size)))
    with pytest.raises(ValueError, match="contiguous"):
        comm.start_all_reduce(np.ones((3, 3))[:, 1])


@pytest.mark.parametrize("dtype", MOVED, ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gathers(comm, dtype, axis, lengths):
    sizes = lengths[: comm.size]
    shape = [3, 4, 2]

    def array(rank):
        shape[axis] = sizes[rank]
        return draw(rank, tuple(shape), dtype)

    expected = np.concatenate([array(rank) for rank in range(comm.size)], axis)
    own = array(comm.rank)
    equal(comm.all_gather(own, axis), expected)
    equal(comm.all_gather(np.asfortranarray(own), axis, sizes), expected)
    for root in range(comm.size):
        whole = comm.gather(own, root, axis)
        if comm.rank == root:
            equal(whole, expected)
        else:
            assert whole is None
        back = comm.scatter(np.asfortranarray(whole) if whole is not None else None, root, axis, sizes)
        equal(back, own)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex128"])
def test_reduce_scatter_and_scatter_by_shares(comm, length, axis, dtype):
    shape = [3, 2, 4]
    shape[axis] = length
    arrays = [draw(rank, tuple(shape), dtype) for rank in range(comm.size)]
    own = [slice(None)] * 3
    own[axis] = partition.share(length, comm.size, comm.rank)
    equal(comm.reduce_scatter(arrays[comm.rank], axis), sum(arrays[1:], arrays[0])[tuple(own)])
    equal(comm.scatter(arrays[0] if comm.rank == 0 else None, 0, axis), arrays[0][tuple(own)])


def test_reduce_scatter_with_sizes(comm):
    sizes = [0, 5, 1, 2][: comm.size]
    arrays = [draw(rank, (sum(sizes), 3)) for rank in range(comm.size)]
    start = sum(sizes[: comm.rank])
    equal(comm.reduce_scatter(arrays[comm.rank], 0, sizes), sum(arrays)[start : start + sizes[comm.rank]])
    with pytest.raises(ValueError, match="do not cut"):
        comm.reduce_scatter(arrays[comm.rank], 0, [1] * (comm.size + 1))


@pytest.mark.parametrize(
    "axes",
    [(0, 1), (2, 0), (-1, 1), *(pytest.param(axes, marks=pytest.mark.grid) for axes in ((1, 0), (0, 2), (1, 2)))],
)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", [("a", "i1"), ("b", "f8")]], ids=str)
@pytest.mark.parametrize("split", [0, 2, 5])
def test_all_to_all(comm, axes, lengths, dtype, split):
    split_axis, concat_axis = axes
    sizes = lengths[: comm.size]
    shape = [3, 2, 4]
    shape[split_axis] = split
    shape[concat_axis] = sum(sizes)
    whole = draw(0, tuple(shape), dtype)
    start = sum(sizes[: comm.rank])
    mine, expected = [slice(None)] * 3, [slice(None)] * 3
    mine[concat_axis] = slice(start, start + sizes[comm.rank])
    expected[split_axis] = partition.share(split, comm.size, comm.rank)
    equal(comm.all_to_all(whole[tuple(mine)], split_axis, concat_axis), whole[tuple(expected)])


def test_all_to_all_needs_two_axes(comm):
    with pytest.raises(ValueError, match="same axis 1"):
        comm.all_to_all(np.ones((2, 2)), 1, -1)


@pytest.mark.parametrize("dtype", MOVED, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 4)])
def test_broadcast(comm, dtype, shape):
    for root in range(comm.size):
        x = draw(root, shape, dtype)
        equal(comm.broadcast(x.T if comm.rank == root else None, root), x.T)
        native = x.dtype.newbyteorder("=")
        equal(comm.broadcast(x if comm.rank == root else None, root, x.shape, native), x)


@pytest.mark.parametrize("offset", [-5, -1, 0, 1, 2])
@pytest.mark.parametrize("cyclic", [True, False])
def test_shift_of_uneven_arrays(comm, offset, cyclic):
    def array(rank):
        return draw(rank, (LENGTHS[1][rank], 3))

    own, source = array(comm.rank), comm.rank - offset
    result = comm.shift(own, offset, cyclic)
    if cyclic or 0 <= source < comm.size:
        equal(result, array(source % comm.size))
    else:
        equal(result, np.zeros_like(own))


def test_send_and_receive(comm):
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    x = [draw(rank, (3, 50), "float16") for rank in range(comm.size)]
    incoming = np.empty((3, 50), np.float16)
    receiving = comm.ireceive(incoming, source, tag=5)
    comm.isend(x[comm.rank], to, tag=5).wait()
    assert receiving.wait() is incoming
    equal(incoming, x[source])
    sending = comm.isend(x[comm.rank][:, ::2], to)
    equal(comm.receive(source, (3, 25), np.float16), x[source][:, ::2])
    sending.wait()
    with pytest.raises(ValueError, match="C-contiguous"):
        comm.ireceive(incoming[:, 1], source)
    sending = comm.isend(np.ones(2), to)
    with pytest.raises(ValueError, match="expected 24 bytes from rank"):
        comm.receive(source, (3,), np.float64)
    sending.wait()
    if comm.size > 1:
        if comm.rank == 0:
            comm.send(x[0], 1)
        if comm.rank == 1:
            equal(comm.receive(0, (3, 50), np.float16), x[0])


@pytest.mark.parametrize("limit", [1, 7, 24])
def test_large_arrays_are_cut_into_parts(comm, monkeypatch, limit):
    monkeypatch.setattr(buffers, "MAX_COUNT", limit)
    arrays = [draw(rank, (5, 5)) for rank in range(comm.size)]
    own = arrays[comm.rank]
    equal(comm.all_reduce(own), sum(arrays))
    equal(comm.all_reduce(own.copy(), "max"), np.max(arrays, axis=0))
    total = comm.reduce(own)
    if comm.rank == 0:
        equal(total, sum(arrays))
    equal(comm.broadcast(own, 0), arrays[0])
    equal(comm.shift(own, 1), arrays[comm.rank - 1])
    started = own.copy()
    comm.start_all_reduce(started).wait()
    equal(started, sum(arrays))


def test_what_cannot_be_cut_is_refused_on_every_rank(comm, monkeypatch):
    monkeypatch.setattr(buffers, "MAX_COUNT", 3)
    size = comm.size
    calls = {
        "all_gather": lambda: comm.all_gather(np.ones((1 + (comm.rank == 0), 2))),
        "gather": lambda: comm.gather(np.ones((1 + (comm.rank == 0), 2))),
        "scatter": lambda: comm.scatter(np.ones((2, 2)) if comm.rank == 0 else None),
        "reduce_scatter": lambda: comm.reduce_scatter(np.ones((2, 2))),
        "all_to_all": lambda: comm.all_to_all(np.ones((size * 2, 2)), 0, 1),
    }
    for name, call in calls.items():
        with pytest.raises(OverflowError, match=f"{name} of .* values"):
            call()
    equal(comm.all_reduce(np.ones(1)), np.full(1, float(size)))


def test_wrong_sizes_and_axes(comm):
    with pytest.raises(ValueError, match="has a length of 2"):
        comm.all_gather(np.ones(2), 0, [3] * comm.size)
    with pytest.raises(ValueError, match=r"axis 1 of an array with 1 axis$"):
        comm.all_gather(np.ones(2), 1)


@pytest.mark.parametrize("wanted_from", [0, 3])
def test_exchange_slices_and_its_return(comm, wanted_from):
    """Rank r wants the last rows but r, whoever has them."""
    lengths = LENGTHS[1][: comm.size]
    owned = [slice(a, b) for a, b in pairwise(accumulate(lengths, initial=0))]
    total = sum(lengths)
    wanted = [slice(min(wanted_from, total - min(rank, total)), total - min(rank, total)) for rank in range(comm.size)]
    whole = draw(0, (4, total))
    equal(comm.exchange_slices(whole[:, owned[comm.rank]], 1, owned, wanted), whole[:, wanted[comm.rank]])
    expected = np.zeros((4, total))
    for rank in range(comm.size):
        expected[:, wanted[rank]] += draw(rank, (4, total))[:, wanted[rank]]
    mine = draw(comm.rank, (4, total))[:, wanted[comm.rank]]
    equal(comm.return_slices(mine, 1, owned, wanted), np.ascontiguousarray(expected[:, owned[comm.rank]]))


def test_split_duplicate_and_objects(comm):
    part = comm.split(comm.rank % 2, key=-comm.rank, name="parity")
    members = [rank for rank in reversed(range(comm.size)) if rank % 2 == comm.rank % 2]
    assert part.all_gather_object(comm.rank) == members
    assert (part.name, part.size, part.rank) == ("parity", len(members), members.index(comm.rank))
    part.free()
    some = comm.split(0 if comm.rank == 0 else None)
    assert (some is None) == (comm.rank != 0)
    if some is not None:
        some.free()
    twin = comm.duplicate()
    twin.barrier()
    twin.free()
    assert comm.broadcast_object({"rank": comm.rank}, comm.size - 1) == {"rank": comm.size - 1}
    assert comm.shard_sizes(comm.rank * 2) == [rank * 2 for rank in range(comm.size)]
    assert comm.is_one_node


def test_one_rank_alone_is_a_communicator_too(comm):
    me = Communicator(alone().mpi, checked=False)
    x = np.arange(3.0)
    for result in (me.all_reduce(x), me.all_gather(x), me.shift(x, 1), me.broadcast(x), me.reduce_scatter(x)):
        equal(result, x)
    assert (me.size, me.rank, me.checked) == (1, 0, False)


# -- byte order ----------------------------------------------------------------------------------------------------
FOREIGN = [">f4", ">f8", ">i2", ">u8", ">c8", ">f2"]


@pytest.mark.parametrize("checked", [True, False])
def test_foreign_byte_order_between_two_ranks(comm, checked):
    """Named by the sender, the receiver, both or neither: the values arrive, into the array that is given."""
    comm = comm if checked else Communicator(comm.mpi, checked=False)
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for dtype in FOREIGN:
        values, native = draw(source, (3, 5), dtype), np.dtype(dtype).newbyteorder("=")
        for sent in (draw(comm.rank, (3, 5), dtype), draw(comm.rank, (3, 5), native)):
            for received in (dtype, native):
                sends = [comm.isend(sent, to), comm.isend(sent[:, ::2], to)]
                own = np.empty((3, 5), received)
                pending = comm.ireceive(own, source)
                equal(comm.receive(source, (3, 3), received), values[:, ::2])
                assert pending.wait() is own
                assert pending.wait() is own
                assert own.dtype == received
                np.testing.assert_array_equal(own, values)
                for one in sends:
                    one.wait()
            equal(comm.shift(sent, 1), values)
            equal(comm.shift(sent, 1, shape=(3, 5)), values)


def test_foreign_byte_order_in_collectives(comm):
    """Also on one rank alone: it is no other type."""
    for dtype in FOREIGN[:-1]:
        native = np.dtype(dtype).newbyteorder("=")
        arrays = [draw(rank, (4, 6), native) for rank in range(comm.size)]
        own = arrays[comm.rank].astype(dtype if comm.rank == 0 else native)
        for root in range(comm.size):
            given = own if comm.rank == root else None
            for known in (dtype, native):
                equal(comm.broadcast(given, root, (4, 6), np.dtype(known)), arrays[root])
            sizes = [4] + [0] * (comm.size - 1)
            equal(comm.scatter(given, root, 0, sizes), arrays[root][: sizes[comm.rank]])
        out = np.empty((4, 6), dtype)
        assert comm.all_reduce(own, out=out) is out
        np.testing.assert_array_equal(out, sum(arrays))
        started = own.copy()
        assert comm.start_all_reduce(started).wait() is started
        np.testing.assert_array_equal(started, sum(arrays))
        equal(comm.all_gather(own), np.concatenate(arrays))
        equal(comm.all_gather(own, 0, [4] * comm.size), np.concatenate(arrays))
        owned = [slice(4 * rank, 4 * rank + 4) for rank in range(comm.size)]
        equal(comm.exchange_slices(own, 0, owned, owned[::-1]), arrays[comm.size - 1 - comm.rank])
        equal(comm.return_slices(own, 0, owned, owned), arrays[comm.rank])


# -- what only one rank can see to be wrong ------------------------------------------------------------------------
def wrong_at_root(comm, root):
    """Name -> (call, error, words): the root's arguments are wrong, the others' are not."""
    mine = comm.rank == root
    x = np.ones((4, 3), np.float32)
    return {
        "another shape": (
            lambda: comm.broadcast(x if mine else None, root, (4, 2), np.float32),
            ValueError,
            "as float32",
        ),
        "another dtype": (lambda: comm.broadcast(x if mine else None, root, (4, 3), np.int32), ValueError, "as int32"),
        "a shape alone": (lambda: comm.broadcast(x if mine else None, root, (3, 4)), ValueError, r"\(3, 4\)"),
        "a dtype alone": (lambda: comm.broadcast(x if mine else None, root, None, ">f8"), ValueError, "as float64"),
        "nothing to broadcast": (lambda: comm.broadcast(None, root), TypeError, "Python objects"),
        "nothing of a shape": (lambda: comm.broadcast(None, root, (4, 3), "f4"), TypeError, "Python objects"),
        "objects": (lambda: comm.scatter(np.array([None] * 4) if mine else None, root), TypeError, "Python objects"),
        "nothing to scatter": (lambda: comm.scatter(None, root), TypeError, "Python objects"),
        "a number": (lambda: comm.scatter(np.array(3.0) if mine else None, root), ValueError, "axis 0 of an array"),
        "no pickle": (lambda: comm.broadcast_object((lambda: 1) if mine else 1, root), TypeError, f"rank {root} has a"),
        "no pickles": (lambda: comm.all_gather_object((lambda: 1) if mine else 1), TypeError, f"rank {root} has a"),
    }


@pytest.mark.parametrize("checked", [True, False])
def test_errors_at_the_root_fail_on_every_rank(comm, checked):
    comm = comm if checked else Communicator(comm.mpi, checked=False)
    root = comm.size - 1
    for name, (call, error, words) in wrong_at_root(comm, root).items():
        with pytest.raises(error, match=words):
            call()
        assert comm.all_gather_object(name) == [name] * comm.size  # nobody is left behind


def test_the_sizes_of_a_scatter_are_the_roots(comm):
    comm = Communicator(comm.mpi, checked=False)
    x, sizes = draw(0, (5, 3)), [0] * (comm.size - 1) + [5]
    part = comm.scatter(x if comm.rank == 0 else None, 0, 0, sizes if comm.rank == 0 else None)
    equal(part, x[: sizes[comm.rank]])
    with pytest.raises(ValueError, match="do not cut a length of 5"):
        comm.scatter(x if comm.rank == 0 else None, 0, 0, [1] * comm.size if comm.rank == 0 else None)


def test_a_result_that_does_not_fit_keeps_nobody_waiting(comm):
    comm = Communicator(comm.mpi, checked=False)
    x = draw(comm.rank, (4, 6))
    total = sum(draw(rank, (4, 6)) for rank in range(comm.size))
    for one in (comm, comm.in_tree()) if comm.size != 3 else (comm,):
        for out in (np.empty((4, 6), np.float32), np.empty((2, 4, 6))):
            if comm.rank == 0:
                with pytest.raises(ValueError, match="out is float"):
                    one.all_reduce(x, out=out)
            else:
                equal(one.all_reduce(x), total)
