"""Flattened gradients summed in place, accumulated over two micro-batches and clipped by their global norm.

Ranks: 3
Prints: step 4 norm 1.000
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
shapes = [(4, 3), (3,), (3, 2)]
generator = np.random.default_rng(comm.rank)


def flattened(arrays):
    return np.concatenate([array.ravel() for array in arrays])


for step in range(5):
    gradients = [np.zeros(shape) for shape in shapes]
    for _ in range(2):
        for gradient in gradients:
            gradient += generator.standard_normal(gradient.shape) / comm.size / 2
    flat = flattened(gradients)
    comm.Allreduce(MPI.IN_PLACE, flat)
    norm = float(np.sqrt(np.dot(flat, flat)))
    flat *= min(1.0, 1.0 / norm)
    assert len(set(comm.allgather(norm))) == 1
    if comm.rank == 0 and step == 4:
        print(f"step {step} norm {min(norm, 1.0):.3f}")
