"""A serial run for a test on several ranks: made by one of them, while the others wait, and given to all."""

from parallel_dl.equivalence import record


def serial_run(comm, *arguments):
    """record(*arguments), which must be a serial run; the same on every rank of `comm`."""
    return comm.broadcast_object(record(*arguments) if comm.rank == 0 else None)
