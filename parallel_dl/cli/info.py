"""`parallel-dl info`: the MPI, BLAS, threads and cores in use."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from typing import Any

from parallel_dl import __version__, launch
from parallel_dl.cli.flags import AsJson
from parallel_dl.cli.terminal import console
from parallel_dl.errors import InputError


def facts() -> dict[str, Any]:
    """What `info` prints."""
    import numpy
    import threadpoolctl

    found: dict[str, Any] = {
        "parallel_dl": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": launch.cores(),
        "mpi": None,
        "mpi4py": None,
        "mpirun": None,
        "blas": [
            {"library": pool["internal_api"], "version": pool.get("version"), "threads": pool["num_threads"]}
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
    }
    try:
        found["mpirun"] = str(launch.find_mpirun())
    except InputError as error:
        print(f"parallel-dl: {error}", file=sys.stderr)
    try:
        from parallel_dl.mpi import library_version

        found["mpi"] = library_version()
        import importlib.metadata  # late: it is slow to import

        found["mpi4py"] = importlib.metadata.version("mpi4py")
    except InputError as error:
        print(f"parallel-dl: {error}", file=sys.stderr)
    return found


def info(as_json: AsJson = False) -> None:
    """Show the MPI, BLAS, threads and cores in use."""
    found = facts()
    if as_json:
        print(json.dumps(found))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if name == "blas":
            value = "; ".join(f"{b['library']} {b['version']}, {b['threads']} threads" for b in value) or "unknown"
        table.add_row(name.replace("_", " "), "not found" if value is None else str(value))
    console().print(table)
