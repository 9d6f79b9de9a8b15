"""All benchmarks, one after the other, one BLAS thread per rank: python -m benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys

from parallel_dl import launch

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> int:
    """Runs each in processes of its own; the first failure's status, or 0."""
    status = 0
    modules = {"start_up": 1, "training_step": 1, "convolution": 1, "memory": 1, "watchdog": 1, "all_reduce": 2}
    modules |= {"two_ranks": 2, "model_parallel": 2, "pipeline": 2, "weights_in_cache": 2, "reproducible": 2}
    for module, ranks in modules.items():
        print(f"-- {module}", flush=True)
        if ranks == 1:
            command = [sys.executable, "-m", f"benchmarks.{module}"]
            code = subprocess.run(command, env={**os.environ, **ONE_THREAD}, check=False).returncode
        else:
            code = launch.run(ranks, ["-m", f"benchmarks.{module}"], ONE_THREAD)
        status = status or code
    return status


if __name__ == "__main__":
    sys.exit(main())
