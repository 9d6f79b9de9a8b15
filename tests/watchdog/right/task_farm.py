"""A task farm: workers say that they are ready, and the tag tells what a message is.

Ranks: 4
Prints: 285 of 10
"""

from enum import IntEnum

from mpi4py import MPI


class Tag(IntEnum):
    READY, DONE, EXIT, START = range(4)


comm = MPI.COMM_WORLD
status = MPI.Status()
if comm.rank == 0:
    tasks, results, closed = iter(range(10)), [], 0
    while closed < comm.size - 1:
        data = comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=status)
        source, tag = status.Get_source(), status.Get_tag()
        if tag == Tag.READY:
            task = next(tasks, None)
            comm.send(task, dest=source, tag=Tag.EXIT if task is None else Tag.START)
        elif tag == Tag.DONE:
            results.append(data)
        else:
            closed += 1
    print(f"{sum(results)} of {len(results)}")
else:
    while True:
        comm.send(None, dest=0, tag=Tag.READY)
        task = comm.recv(source=0, tag=MPI.ANY_TAG, status=status)
        if status.Get_tag() == Tag.EXIT:
            break
        comm.send(task**2, dest=0, tag=Tag.DONE)
    comm.send(None, dest=0, tag=Tag.EXIT)
