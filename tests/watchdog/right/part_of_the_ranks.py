"""Communicators of some ranks only: Create_group without the others, Create with all, groups by exclusion.

Ranks: 4
Prints: 3 [1, 3] 6
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
everyone = comm.Get_group()
workers = everyone.Excl([0])
found = None
if comm.rank != 0:
    team = comm.Create_group(workers, tag=3)
    count = team.allreduce(1)
    if team.rank == 0:
        comm.send(count, dest=0)
    team.Free()
else:
    found = comm.recv(source=1)
odd = comm.Create(everyone.Incl([1, 3]))
members = odd.allgather(comm.rank) if odd != MPI.COMM_NULL else None
gathered = comm.gather(members)
copies = [comm.Dup() for _ in range(3)]
total = sum(copy.allreduce(comm.rank) for copy in copies) // 3
for copy in copies:
    copy.Free()
if comm.rank == 0:
    print(found, gathered[1], total)
workers.Free()
everyone.Free()
