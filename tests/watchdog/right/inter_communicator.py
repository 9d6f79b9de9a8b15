"""Two groups of ranks joined by an intercommunicator, and merged at the end.

Ranks: 4
Prints: [2, 3] 5 4
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
color = comm.rank // 2
local = comm.Split(color)
inter = local.Create_intercomm(0, comm, 2 * (1 - color), tag=12)
theirs = inter.allgather(comm.rank)
if color == 0:
    inter.send(comm.rank, dest=local.rank)
else:
    assert inter.recv(source=local.rank) == comm.rank - 2
total = inter.bcast(None if color else 5, root=0 if color else (MPI.ROOT if local.rank == 0 else MPI.PROC_NULL))
merged = inter.Merge(high=bool(color))
size = merged.allreduce(1)
merged.Free()
inter.Disconnect()
if comm.rank == 0:
    print(theirs, 5, size)
else:
    assert color == 0 or total == 5
