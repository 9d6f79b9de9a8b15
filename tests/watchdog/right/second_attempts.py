"""A send that Python refuses is made again in another form: only one message was ever sent.

Ranks: 2
Prints: [0, 2, 4] dict
"""

import threading

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
if comm.rank == 0:
    every_second = np.arange(6)[::2]
    for start in (comm.Send, comm.Isend):
        try:
            request = start(every_second, dest=1)
        except (ValueError, BufferError):
            request = start(np.ascontiguousarray(every_second), dest=1)
    request.Wait()
    try:
        comm.send(threading.Lock(), dest=1)
    except TypeError:
        comm.send({"lock": None}, dest=1)
else:
    buffer = np.empty(3, dtype=int)
    comm.Recv(buffer, source=0)
    comm.Recv(buffer, source=0)
    print(buffer.tolist(), type(comm.recv(source=0)).__name__)
