"""The differentiable movements as cases: input, function, expected value, and how inner products count them."""

from itertools import accumulate, pairwise

import numpy as np

from parallel_dl import partition
from parallel_dl.autograd import Tensor
from parallel_dl.mpi import collectives

LENGTHS = ([3, 3, 3, 3], [2, 0, 5, 1], [0, 0, 4, 0], [0, 0, 0, 0])


def draw(role: str, rank: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([*role.encode(), rank, *shape]).standard_normal(shape)


def counted_once(value: np.ndarray, other: np.ndarray, comm, kind: str, root: int) -> float:
    """This rank's part of the inner product over all ranks."""
    if (kind == "replicated" and comm.rank != 0) or (kind == "rooted" and comm.rank != root):
        return 0.0
    return float(np.vdot(value, other))


class Case:
    """One movement on `comm`: input and output kinds, a function of tensors, and what it should give."""

    def __init__(self, comm, run, x_kind, y_kind, shape_of, expected, root=0):
        self.comm, self.run, self.x_kind, self.y_kind, self.root = comm, run, x_kind, y_kind, root
        self.arrays = [draw("input", 0 if x_kind == "replicated" else r, shape_of(r)) for r in range(comm.size)]
        self.expected = expected(self.arrays)

    def input(self, dtype=np.float64, order="C", requires_grad=True):
        if self.x_kind == "rooted" and self.comm.rank != self.root:
            return None
        array = self.arrays[self.comm.rank].astype(dtype)
        if order == "strided":
            wide = np.full([2 * n for n in array.shape], np.nan, dtype)
            wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
            array = wide[tuple(slice(None, None, 2) for _ in array.shape)]
        return Tensor(np.asarray(array, order="F") if order == "F" else array, requires_grad)

    def check_value(self, y, dtype=np.float64, tolerance=1e-12):
        if self.y_kind == "rooted" and self.comm.rank != self.root:
            assert y.size == 0
            return
        assert y.dtype == dtype
        assert y.shape == self.expected.shape
        np.testing.assert_allclose(y.data, self.expected, rtol=tolerance, atol=tolerance)

    def cotangent(self, y):
        return draw("cotangent", 0 if self.y_kind == "replicated" else self.comm.rank, y.shape)


def slices(lengths):
    return [slice(a, b) for a, b in pairwise(accumulate(lengths, initial=0))]


def cases(comm, lengths, axis):
    """name -> Case, for slices of `lengths` along `axis` of an array with three axes."""
    size, rank = comm.size, comm.rank
    lengths = lengths[:size]
    total = sum(lengths)
    other = 1 if axis == 0 else 0
    root = size - 1

    def shape(length, split=5):
        result = [2, 3, 4]
        result[axis], result[other] = length, split
        return tuple(result)

    def along(array, part, which=axis):
        index = [slice(None)] * 3
        index[which] = part
        return array[tuple(index)]

    def whole(arrays):
        return np.concatenate(arrays, axis)

    def own_slice(r):
        return shape(lengths[r])

    def full(r):
        return shape(total)

    own = slices(lengths)[rank]
    share = partition.share(total, size, rank)
    c = collectives
    result = {
        "replicate": Case(comm, lambda x: c.replicate(x, comm), "replicated", "varying", full, lambda a: a[0]),
        "all_reduce": Case(comm, lambda x: c.all_reduce(x, comm), "varying", "replicated", full, sum),
        "shard": Case(
            comm, lambda x: c.shard(x, comm, axis), "replicated", "varying", full, lambda a: along(a[0], share)
        ),
        "shard by sizes": Case(
            comm, lambda x: c.shard(x, comm, axis, lengths), "replicated", "varying", full, lambda a: along(a[0], own)
        ),
        "unshard": Case(comm, lambda x: c.unshard(x, comm, axis), "varying", "replicated", own_slice, whole),
        "all_gather": Case(comm, lambda x: c.all_gather(x, comm, axis), "varying", "varying", own_slice, whole),
        "all_gather by sizes": Case(
            comm, lambda x: c.all_gather(x, comm, axis, lengths), "varying", "varying", own_slice, whole
        ),
        "reduce_scatter": Case(
            comm, lambda x: c.reduce_scatter(x, comm, axis), "varying", "varying", full, lambda a: along(sum(a), share)
        ),
        "reduce_scatter by sizes": Case(
            comm,
            lambda x: c.reduce_scatter(x, comm, axis, lengths),
            "varying",
            "varying",
            full,
            lambda a: along(sum(a), own),
        ),
        "all_to_all": Case(
            comm,
            lambda x: c.all_to_all(x, comm, other, axis),
            "varying",
            "varying",
            own_slice,
            lambda a: along(whole(a), partition.share(5, size, rank), other),
        ),
        "broadcast": Case(
            comm, lambda x: c.broadcast(x, comm, root), "rooted", "varying", full, lambda a: a[root], root
        ),
        "reduce": Case(comm, lambda x: c.reduce(x, comm, root), "varying", "rooted", full, sum, root),
        "scatter": Case(
            comm,
            lambda x: c.scatter(x, comm, root, axis),
            "rooted",
            "varying",
            full,
            lambda a: along(a[root], share),
            root,
        ),
        "scatter by sizes": Case(
            comm,
            lambda x: c.scatter(x, comm, root, axis, lengths),
            "rooted",
            "varying",
            full,
            lambda a: along(a[root], own),
            root,
        ),
        "gather": Case(comm, lambda x: c.gather(x, comm, root, axis), "varying", "rooted", own_slice, whole, root),
    }
    for offset in (-1, 1, 2):
        for cyclic in (True, False):
            source = rank - offset
            from_end = not cyclic and not 0 <= source < size

            def shifted(a, source=source, from_end=from_end):
                return np.zeros_like(a[rank]) if from_end else a[source % size]

            result[f"shift by {offset}, {'cyclic' if cyclic else 'not cyclic'}"] = Case(
                comm,
                lambda x, offset=offset, cyclic=cyclic: c.shift(x, comm, offset, cyclic),
                "varying",
                "varying",
                own_slice,
                shifted,
            )
    for before, after in ((0, 0), (1, 2), (4, 0), (0, 100)):
        part = slice(max(0, own.start - before), min(total, own.stop + after))
        result[f"halo {before}, {after}"] = Case(
            comm,
            lambda x, before=before, after=after: c.exchange_halo(x, comm, axis, before, after),
            "varying",
            "varying",
            own_slice,
            lambda a, part=part: along(whole(a), part),
        )
    wanted = [slice(0, min(total, r)) for r in range(size)]
    result["exchange_slices"] = Case(
        comm,
        lambda x: c.exchange_slices(x, comm, axis, slices(lengths), wanted),
        "varying",
        "varying",
        own_slice,
        lambda a: along(whole(a), wanted[rank]),
    )
    return result
