r"""The package's communicator: both halves of a pair receive first.

Ranks: 4
Said: deadlock: ranks 2 and 3 wait for each other
First: rank 2  waits in receive\(.*\) on 'world' .*for rank 3 to send .*:17
"""

import numpy as np

from parallel_dl.mpi import world

comm = world()
other = comm.rank ^ 1
if comm.rank == 0:
    comm.send(np.ones(2), other)
else:
    comm.receive(other, (2,), float)  # BUG: not rank 3
