"""Derived datatypes: a column by Create_vector, a block by Create_subarray, records by a structured type.

Ranks: 2
Prints: [1, 6, 11] [[5, 6], [10, 11]] 2.5
"""

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
matrix = np.arange(15.0).reshape(3, 5)
column = MPI.DOUBLE.Create_vector(3, 1, 5).Commit()
block = MPI.DOUBLE.Create_subarray([3, 5], [2, 2], [1, 0]).Commit()
record = MPI.Datatype.Create_struct([1, 1], [0, 8], [MPI.INT64_T, MPI.DOUBLE]).Commit()
if comm.rank == 0:
    comm.Send([matrix.ravel()[1:], 1, column], dest=1, tag=1)
    comm.Send([matrix, 1, block], dest=1, tag=2)
    comm.Send([np.array([(7, 2.5)], dtype=[("i", "i8"), ("x", "f8")]), 1, record], dest=1, tag=3)
else:
    values, part = np.empty(3), np.zeros((3, 5))
    entry = np.empty(1, dtype=[("i", "i8"), ("x", "f8")])
    comm.Recv([values, 3, MPI.DOUBLE], source=0, tag=1)
    comm.Recv([part, 1, block], source=0, tag=2)
    comm.Recv([entry, 1, record], source=0, tag=3)
    print(values.astype(int).tolist(), part[1:, :2].astype(int).tolist(), entry["x"][0])
for kind in (column, block, record):
    kind.Free()
