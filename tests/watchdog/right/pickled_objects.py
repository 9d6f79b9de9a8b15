"""Pickled objects of very different sizes, None among them, mixed with the upper-case calls.

Ranks: 3
Prints: None {'epoch': 3} [0, 1000000, 2000000] 3.0
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank = comm.rank
nothing = comm.bcast(None, root=1)
state = comm.bcast({"epoch": 3} if rank == 0 else None)
lengths = comm.gather("x" * (rank * 1_000_000))
part = comm.scatter([list(range(10**r)) for r in (0, 3, 5)] if rank == 0 else None)
assert len(part) == 10 ** (0, 3, 5)[rank]
if rank == 0:
    comm.send(np.zeros(300_000), dest=1)
    comm.send(None, dest=2)
elif rank == 1:
    assert comm.recv().size == 300_000
else:
    assert comm.recv(source=MPI.ANY_SOURCE) is None
total = np.empty(1)
comm.Allreduce(np.ones(1), total)
everything = comm.allgather({"rank": rank, "text": "y" * 10**rank})
assert [len(one["text"]) for one in everything] == [1, 10, 100]
if rank == 0:
    print(nothing, state, [len(one) for one in lengths], total[0])
