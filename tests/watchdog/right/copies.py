"""The same communicator in several objects: copies by the class, by deepcopy and by pickle, used side by side.

Ranks: 3
Prints: 3 True True True
"""

import copy
import pickle

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
same = MPI.Intracomm(comm)
third = type(comm)(comm)
mine = (comm, same, third)[comm.rank]
mine.Barrier()
total = mine.allreduce(1)
value = np.full(1, float(comm.rank))
mine.Bcast(value, root=0)
if comm.rank == 0:
    same.send("hello", dest=1)
    third.Send(np.ones(2), dest=2)
elif comm.rank == 1:
    assert comm.recv(source=0) == "hello"
else:
    same.Recv(np.empty(2), source=0)
again, pickled = copy.deepcopy(comm), pickle.loads(pickle.dumps(comm))
again.Barrier()
pickled.Barrier()
kinds = isinstance(same, MPI.Intracomm) and isinstance(comm.Dup(), MPI.Intracomm)
if comm.rank == 0:
    print(total, kinds, same == comm, isinstance(comm, MPI.Comm) and again == pickled)
