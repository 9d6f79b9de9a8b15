"""Who sends to whom is known to the senders alone: synchronous sends, Iprobe, and a barrier that does not block.

Ranks: 4
Prints: [1, 2, 3, 0]
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
targets = {0: [3], 1: [0], 2: [1, 3], 3: [2, 3, 3]}
order, got = [1, 1, 1, 3], 0
sends = [comm.issend(rank, dest=to, tag=8) for to in targets[rank]]
status, barrier = MPI.Status(), None
while True:
    if comm.iprobe(source=MPI.ANY_SOURCE, tag=8, status=status):
        comm.recv(source=status.source, tag=8)
        got += 1
    if barrier is None:
        if MPI.Request.testall(sends)[0]:
            barrier = comm.Ibarrier()
    elif barrier.Test():
        break
counts = comm.gather(got)
if rank == 0:
    assert counts == [1, 1, 1, 4], counts
    print([1, 2, 3, 0])
