"""Collectives that do not block, begun in the backward pass and waited for before the update.

Ranks: 4
Prints: 4.0 root 2.0 done
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
root_says = np.full(2, float(comm.rank))
layers = [np.full(1000 * (k + 1), 1.0) for k in range(4)]
for _ in range(3):
    sums, requests = [np.empty_like(layer) for layer in layers], []
    for layer, total in reversed(list(zip(layers, sums))):
        requests.append(comm.Iallreduce(layer, total))
        np.tanh(layer).sum()
    MPI.Request.Waitall(requests)
request = comm.Ibcast(root_says, root=2)
while not request.Test():
    np.tanh(layers[0]).sum()
barrier = comm.Ibarrier()
barrier.Wait()
reduced = np.empty(1)
comm.Ireduce(np.ones(1), reduced, op=MPI.MAX, root=0).Wait()
if comm.rank == 0:
    print(sums[0][0], "root", root_says[0], "done")
