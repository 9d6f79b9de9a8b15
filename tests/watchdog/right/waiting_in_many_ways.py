"""Requests completed in all ways: Waitany, Waitsome, Testall in a loop, wait with a status.

Ranks: 3
Prints: 12 messages, from [0, 1, 2]
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()


def started(tag):
    sends = [comm.isend({"from": rank}, dest=to, tag=tag) for to in range(size)]
    return sends, [comm.irecv(source=MPI.ANY_SOURCE, tag=tag) for _ in range(size)]


got = []
sends, receives = started(1)
for _ in receives:
    index, message = MPI.Request.waitany(receives)
    got.append(message["from"])
MPI.Request.waitall(sends)
sends, receives = started(2)
while (some := MPI.Request.waitsome(receives)) and some[0]:
    got += [message["from"] for message in some[1]]
MPI.Request.waitall(sends)
sends, receives = started(3)
while not (answer := MPI.Request.testall([*receives, *sends]))[0]:
    pass
got += [message["from"] for message in answer[1][:size]]
buffers = np.zeros(size, dtype=int)
requests = [comm.Irecv(buffers[r : r + 1], source=r, tag=4) for r in range(size)]
requests += [comm.Isend(np.array([rank]), dest=to, tag=4) for to in range(size)]
while (indices := MPI.Request.Waitsome(requests)) is not None:
    got += [int(buffers[i]) for i in indices if i < size]
everything = sorted(set(comm.allreduce(got)))
if rank == 0:
    print(len(got), "messages, from", everything)
