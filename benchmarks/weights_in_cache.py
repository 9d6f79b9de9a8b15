"""Weights that stay in a core's L2 cache: a pipeline's stage against the whole network; run as two ranks:

mpirun -n 2 python -m benchmarks.weights_in_cache

Two stages of equal layers. The time of rank 0's stage for a microbatch, twice, is what both stages need; it is divided
by that of a serial run of all layers with the same microbatches. Below 1 the stage is faster than its share. One rank
computes and the other one is idle, on either side. The weights of all layers are half of the cache (they fit in both
cases: what else differs), 1.5 times it (a stage's fit, all of them do not) and 6 times (neither fit).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import medians_on_ranks
from parallel_dl import nn
from parallel_dl.autograd import Tensor
from parallel_dl.cost import cut_stages
from parallel_dl.mpi import world

LAYERS = 4
SAMPLES = (1, 4, 16)
SIZES = (0.5, 1.5, 6.0)  # weights of all layers / the cache


def level_2_cache() -> int:
    """Bytes of one core's L2 cache: what sysconf says, or else Linux's /sys; SystemExit when neither does."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):
        found = 0
    path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    if found <= 0 and path.exists():
        found = 1024 * int(path.read_text().strip().removesuffix("K"))
    if found <= 0:
        raise SystemExit("weights_in_cache: the size of the L2 cache is not known here")
    return found


def network(width: int) -> nn.Sequential:
    """LAYERS equal layers (width, width)."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))


def framework(model: nn.Sequential, names: Sequence[str], parts: Sequence[np.ndarray]) -> Callable[[], None]:
    """The forward pass of these layers as a stage runs it, with a tape; a microbatch (samples, width) at a time."""
    layers = [model._modules[name] for name in names]
    inputs = [Tensor(part, requires_grad=True) for part in parts]  # so that the first layer has a tape like the others

    def call() -> None:
        for part in inputs:
            result: Any = part
            for layer in layers:
                result = layer(result)

    return call


def products(model: nn.Sequential, names: Sequence[str], parts: Sequence[np.ndarray]) -> Callable[[], None]:
    """The same with NumPy alone: nothing but the products."""
    weights = [model._modules[name].weight.data for name in names]

    def call() -> None:
        for part in parts:
            result = part
            for weight in weights:
                result = result @ weight.T

    return call


def main() -> None:
    """Prints what rank 0 has found."""
    comm = world()
    if comm.size != 2:
        raise SystemExit("weights_in_cache: needs 2 ranks: mpirun -n 2 python -m benchmarks.weights_in_cache")
    cache = level_2_cache()
    if comm.rank == 0:
        print(f"L2 cache of a core: {cache >> 10:,} KiB; {LAYERS} equal layers in two stages, forward")
        print("2 x stage / serial: below 1, keeping the weights in the cache helps")
        print("weights: of all layers  samples  stage, serial (us per microbatch)  ratio  products only")
    for size in SIZES:
        width = 16 * round((size * cache / (4 * LAYERS)) ** 0.5 / 16)
        model = network(width)
        model.initialize(0)
        stages = cut_stages(model, (width,), 2)
        for samples in SAMPLES:
            microbatches = max(2, 16 // samples)  # short calls: other load meets few of them
            random = np.random.default_rng(samples)
            parts = [random.standard_normal((samples, width), np.float32) for _ in range(microbatches)]
            calls = {}
            for kind in (framework, products):
                calls[f"{kind.__name__} stage"] = (False, kind(model, stages.layers(0), parts))
                calls[f"{kind.__name__} serial"] = (False, kind(model, stages.names, parts))
            table = medians_on_ranks(comm, calls, 120, rounds=5)
            if not table:
                continue
            best = min(table, key=lambda row: sum(row.values()))  # the round with the least of other load
            took = {name: seconds / microbatches * 1e6 for name, seconds in best.items()}
            ratios = [2 * took[f"{kind} stage"] / took[f"{kind} serial"] for kind in ("framework", "products")]
            bytes_of_all = 4 * model.parameter_count()
            weights = f"{bytes_of_all >> 10:7,} KiB, {bytes_of_all / cache:4.2f} x L2"
            both = f"{took['framework stage']:12.1f} {took['framework serial']:12.1f}"
            print(f"{weights} {samples:8d} {both} {ratios[0]:16.2f} {ratios[1]:10.2f}", flush=True)


if __name__ == "__main__":
    main()
