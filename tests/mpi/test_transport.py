"""The transport: a communicator makes the calls that are listed there, and no others."""

import numpy as np
import pytest

from parallel_dl.mpi import MPI, Communicator, Ledger
from parallel_dl.mpi.transport import Transport

LISTED = {name for name in vars(Transport) if not name.startswith("_")} | set(Transport.__annotations__)


class Listed:
    """A transport that has what is listed, and is no communicator of mpi4py."""

    def __init__(self, mpi):
        self.carrier = mpi

    def __getattr__(self, name):
        assert name in LISTED, f"{name} is not listed in Transport"
        found = getattr(self.carrier, name)
        return found if name not in ("Dup", "Split", "Split_type") else lambda *given: Listed(found(*given))


def calls(comm):
    """What all of them give."""
    size, rank = comm.size, comm.rank
    ours, to, source = np.arange(12.0).reshape(3, 4) + rank, (rank + 1) % size, (rank - 1) % size
    rows = [slice(3 * r, 3 * r + 3) for r in range(size)]
    wider = [slice(max(0, part.start - 1), part.stop) for part in rows]
    leaving = comm.isend(ours, to)
    part = comm.duplicate().split(0, -rank)
    found = [
        comm.receive(source, (3, 4), np.float64),
        leaving.wait(),
        comm.start_all_reduce(ours.copy()).wait(),
        comm.all_reduce(ours, "max"),
        comm.reduce(ours, 1),
        comm.reduce_scatter(ours, 1),
        comm.all_gather(ours),
        comm.gather(ours, 1, 1),
        comm.scatter(ours, 1),
        comm.all_to_all(ours, 0, 1),
        comm.broadcast(ours, 1),
        comm.broadcast(ours, 1, (3, 4), np.float64),
        comm.shift(ours, 1, False),
        comm.return_slices(comm.exchange_slices(ours, 0, rows, wider), 0, rows, wider),
        comm.all_gather_object(rank),
        comm.broadcast_object("x", 1),
        comm.is_one_node,
        part.all_reduce(ours),
    ]
    if rank:
        comm.send(ours, rank - 1)
    if rank < size - 1:
        arriving = comm.ireceive(np.empty((3, 4)), rank + 1)
        while not arriving.test():
            pass
        found.append(arriving.wait())
    comm.barrier()
    part.free()
    return found


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("checked", [False, True])
def test_whatever_has_these_calls_can_carry_a_communicator(comm, checked):
    ledgers = Ledger(), Ledger()
    plain = Communicator(comm.mpi, checked=checked, ledger=ledgers[0])
    listed = Communicator(Listed(comm.mpi), checked=checked, ledger=ledgers[1])
    with ledgers[0].counting(), ledgers[1].counting():
        for ours, theirs in zip(calls(listed), calls(plain), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert ledgers[0].rows() == ledgers[1].rows() != []


def test_mpi4py_has_them_all():
    assert {name for name in LISTED if not hasattr(MPI.COMM_SELF, name)} == set()
