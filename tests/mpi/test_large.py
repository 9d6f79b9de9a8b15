"""Arrays of more than 2^31 bytes (make soak; 12 GB of memory)."""

import numpy as np
import pytest


@pytest.mark.soak
@pytest.mark.ranks(2, timeout=300)
def test_more_than_two_gigabytes(comm):
    count = 2**29 + 1000  # float32: 2^31 + 4000 bytes
    array = np.full(count, comm.rank + 1, np.float32)
    total = comm.all_reduce(array, out=array)
    assert total[0] == total[-1] == total[count // 2] == 3
    del array, total
    array = np.full(count, comm.rank, np.float32)
    array = comm.broadcast(array, root=1)
    assert array[0] == array[-1] == 1
    del array
    small = np.full(count // 2, comm.rank, np.float32)
    whole = comm.all_gather(small)
    assert whole.size == 2 * (count // 2)
    assert (whole[0], whole[-1]) == (0, 1)
