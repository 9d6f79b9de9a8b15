"""What the same bits in every layout cost: a training step with leaves against an ordinary one; run as two ranks:

mpirun -n 2 python -m benchmarks.reproducible
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.turns import medians_on_ranks
from parallel_dl import datasets, networks, optim
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, Mesh, one_blas_thread, world
from parallel_dl.trainer import Trainer

CASES = (("mlp", 64), ("mlp", 512), ("lenet5_small", 64), ("lenet5_small", 512), ("alexnet_small", 512))
LAYOUTS = {"one rank": Layout(), "two ranks, --dp 2": Layout(dp=2), "two ranks, --mp 2": Layout(mp=2)}


def training_step(name: str, batch_size: int, layout: Layout, mesh: Mesh) -> Callable[[], list[float]]:
    """One update of the network `name` on a batch of the digits."""
    digits = datasets.load("digits")
    network = networks.create(name, digits.input_shape, digits.classes).initialize(0)
    trainer = Trainer(network, lambda p: optim.SGD(p, 0.01, momentum=0.9), layout, mesh, input_shape=digits.input_shape)
    batch = next(trainer.loader(digits.x_train, digits.y_train, batch_size, 0).epoch(0))
    return lambda: trainer.step(batch)


def measure(comm: Communicator, name: str, batch_size: int, repeats: int = 7) -> None:
    """Prints the ratios on rank 0: the median of three rounds."""
    calls: dict[str, tuple[bool, Callable[[], object]]] = {}
    for label, layout in LAYOUTS.items():
        alone = layout.ranks == 1
        mesh = Mesh.serial() if alone else Mesh(comm, data=layout.dp, model=layout.mp)
        for reproducible in (False, True):
            given = Layout(dp=layout.dp, mp=layout.mp, reproducible=reproducible)
            calls[f"{label} {reproducible}"] = (not alone, training_step(name, batch_size, given, mesh))
    table = medians_on_ranks(comm, calls, repeats, steps=5)
    if not table:
        return
    print(f"{name}, batch {batch_size}: time with --reproducible / without")
    for label in LAYOUTS:
        ratio = statistics.median(row[f"{label} True"] / row[f"{label} False"] for row in table)
        seconds = statistics.median(row[f"{label} True"] for row in table)
        print(f"  {label}: {ratio:.1f} ({1000 * seconds:.2f} ms)", flush=True)
    faster = statistics.median(row["one rank True"] / row["two ranks, --dp 2 True"] for row in table)
    print(f"  two ranks, --dp 2, are faster than one by: {faster:.2f}", flush=True)


def main() -> None:
    """Every case in turn."""
    comm = world()
    if comm.size != 2:
        raise SystemExit("reproducible: needs 2 ranks: mpirun -n 2 python -m benchmarks.reproducible")
    one_blas_thread()
    for name, batch_size in CASES:
        measure(comm, name, batch_size)


if __name__ == "__main__":
    main()
