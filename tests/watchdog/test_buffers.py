"""Arrays that a program uses while MPI has them are named, with the line of the call and of the wait."""

import numpy as np
import pytest
from launched import MPI

from parallel_dl.watchdog import buffers, record

USED = {
    "computed from what has not come": (
        """
y, other = np.zeros(4), 1 - rank
r = comm.Irecv(y, other); s = comm.isend(1, other, 3)
total = y.sum()
comm.Send(np.ones(4), other)
r.Wait(); s.wait(); comm.recv(source=other)
""",
        "total was computed from the array of Irecv (program.py:LINE+1) before its wait (program.py:LINE+4)",
    ),
    "a float32 in a function": (
        """
def main():
    y, other = np.zeros(3, "f"), 1 - rank
    rs = [comm.Irecv(y, other), comm.Isend(np.ones(3, "f"), other)]
    half = [float(v) for v in 0.5 * y][0]
    MPI.Request.Waitall(rs)
main()
""",
        "half was computed from the array of Irecv (program.py:LINE+2) before its wait (program.py:LINE+4)",
    ),
    "written to while it is sent": (
        """
y, other = np.ones(5), 1 - rank
r = comm.Isend(y, other)
y[2] = 3
comm.Recv(np.empty(5), other)
r.Wait()
""",
        "the array of Isend (program.py:LINE+1) was changed before its wait (program.py:LINE+4)",
    ),
    "written to while it is received into": (
        """
y, other = np.ones(5), 1 - rank
r = comm.Irecv(y, other)
comm.Send(np.ones(5), other)
y[2] = 3
while not r.Test(): pass
""",
        "the array of Irecv (program.py:LINE+1) was written to before its wait (program.py:LINE+4)",
    ),
}

RIGHT = """
other = 1 - rank
x, y = np.zeros((2, 4), "f"), np.arange(8, dtype="f").reshape(2, 4)
rs = [comm.Irecv(x[i], other, i) for i in (0, 1)] + [comm.Isend(y[i], other, i) for i in (0, 1)]
z = y * 2
MPI.Request.Waitall(rs)
assert (x == y).all(), x
short = np.full(6, 5.0)
r = comm.Irecv(short, other); comm.Send(np.ones(3), other)
while not r.Get_status(): pass
assert short.tolist() == [1, 1, 1, 5, 5, 5], short
r.Wait()
whole = np.zeros(3, int)
r = comm.Irecv([whole, MPI.LONG], other); comm.Send(np.arange(3), other); r.Wait()
assert whole.tolist() == [0, 1, 2]
nan = np.full(2, np.nan)
r = comm.Irecv(np.empty(1), other); comm.Send(np.ones(1), other); r.Wait()
print("right")
"""


@pytest.mark.parametrize("mistake", USED)
def test_what_is_used_too_early_is_named(run, environment, mistake):
    program, said = USED[mistake]
    environment.setenv("PARALLEL_DL_CHECKED", "1")
    head = MPI + "import numpy as np\n"
    ended = run(head + program)
    first = 1 + 1 + head.count("\n") + 1  # two lines are put before, and the text begins with an empty one
    for offset in range(6, -1, -1):
        said = said.replace(f"LINE+{offset}", str(first + 1 + offset))
    assert ended.status == 1
    assert said in ended.err


def test_what_is_used_in_time_is_left_alone(run, environment):
    environment.setenv("PARALLEL_DL_CHECKED", "1")
    ended = run(MPI + "import numpy as np\n" + RIGHT)
    assert (ended.status, ended.out.count("right"), ended.err) == (0, 2, "")  # MPICH may mix the lines of ranks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_marks_go_through_arithmetic(dtype):
    array = np.linspace(0, 1, 6, dtype=dtype)
    before = array.copy()
    guard = buffers.ReceivedArray(array, "Irecv", record.caller(1))
    for value in (
        array.sum(),
        array[2] + 1,
        -array[1],
        float(array[0]) * 3,
        array * array,
        array @ array,
        array.mean(),
    ):
        with pytest.raises(buffers.BufferUsed, match=r"value was computed from the array of Irecv \(test_buffers"):
            buffers.require_unread({"value": value}, [guard])
    buffers.require_unread(
        {"array": array, "view": array[2:], "nan": np.nan, "nans": np.full(3, np.nan, dtype)}, [guard]
    )
    guard.arriving[:2] = 7
    guard.release()
    assert array.tolist() == [7, 7, *before[2:]]
