"""A binary-tree sum and broadcast by hand, of the lower-case calls; not all ranks have partners in each round.

Ranks: 3
Prints: total 6
"""

from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
value, distance = rank + 1, 1
while distance < size:
    if rank % (2 * distance) == distance:
        comm.send(value, dest=rank - distance, tag=distance)
        break
    if rank + distance < size:
        value += comm.recv(source=rank + distance, tag=distance)
    distance *= 2
top = 1
while top < size:
    top *= 2
distance = top // 2
while distance >= 1:
    if rank % (2 * distance) == 0 and rank + distance < size:
        comm.send(value, dest=rank + distance, tag=100)
    elif rank % (2 * distance) == distance:
        value = comm.recv(source=rank - distance, tag=100)
    distance //= 2
print(f"total {value}") if rank == size - 1 else None
