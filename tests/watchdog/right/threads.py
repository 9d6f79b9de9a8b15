"""A thread receives and answers while the main thread takes part in collectives.

Ranks: 3
Prints: 300 served 3
"""

import threading

from mpi4py import MPI

comm = MPI.COMM_WORLD
assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
side = comm.Dup()
served = []


def serve():
    status = MPI.Status()
    while True:
        message = side.recv(source=MPI.ANY_SOURCE, tag=1, status=status)
        if message is None:
            return
        served.append(message)
        side.send(message + 1, dest=status.source, tag=2)


thread = threading.Thread(target=serve)
thread.start()
for number in range(100):
    side.send(number, dest=(comm.rank + 1) % comm.size, tag=1)
    assert side.recv(source=(comm.rank + 1) % comm.size, tag=2) == number + 1
    comm.Barrier()
side.send(None, dest=comm.rank, tag=1)
thread.join()
total = comm.reduce(len(served))
if comm.rank == 0:
    print(total, "served", comm.size)
