"""Iprobe and Test loops beside a computation, and matched probes of messages whose length is not known.

Ranks: 3
Prints: [(1, 10), (2, 20)] [5, 6]
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
status = MPI.Status()
if comm.rank == 0:
    lengths = []
    while len(lengths) < 2:
        if not comm.Iprobe(source=MPI.ANY_SOURCE, tag=1, status=status):
            continue
        buffer = np.empty(status.Get_count(MPI.DOUBLE))
        comm.Recv(buffer, source=status.source, tag=1)
        lengths.append((status.source, len(buffer)))
    numbers = []
    for source in (1, 2):
        message = comm.Mprobe(source=source, tag=2, status=status)
        buffer = np.empty(status.Get_count(MPI.INT), dtype="i4")
        message.Recv(buffer)
        numbers.append(len(buffer))
        while (found := comm.improbe(source=source, tag=3)) is None:
            pass
        assert found.recv() == source
    print(sorted(lengths), numbers)
else:
    comm.Send(np.zeros(10 * comm.rank), dest=0, tag=1)
    request = comm.Isend(np.zeros(4 + comm.rank, dtype="i4"), dest=0, tag=2)
    while not request.Test():
        np.linalg.norm(np.ones(100))
    comm.send(comm.rank, dest=0, tag=3)
