"""Two data-parallel ranks against one, and against PyTorch DDP over gloo; run as two ranks:

mpirun -n 2 python -m benchmarks.two_ranks
"""

from __future__ import annotations

import importlib.util
import socket
import statistics
import time
from collections.abc import Callable

from benchmarks.networks import LARGE, LR, MOMENTUM, data, network, our_step, torch_network, torch_training
from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.mpi import Communicator, world
from parallel_dl.partition import share


def parallel_step(comm: Communicator, batch: int, method: str) -> Callable[[], float]:
    """One step of the ranks together: this rank's share of the batch."""
    widths, _ = LARGE
    x, y = (array[share(batch, comm.size, comm.rank)] for array in data(widths, batch))
    model = network(widths)
    gradients = GradientAllReduce(model.parameters(), comm, method)
    optimizer = optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def step() -> float:
        loss = nn.cross_entropy(model(x), y, total=batch)
        optimizer.zero_grad()
        loss.backward()
        gradients.all_reduce()
        optimizer.step()
        return loss.item()

    return step


def ddp_step(comm: Communicator, batch: int) -> Callable[[], float]:
    """The same in PyTorch's DistributedDataParallel over gloo, on the loopback interface."""
    import torch

    torch.set_num_threads(1)
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = comm.broadcast_object(free.getsockname()[1])
    free.close()
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=comm.rank, world_size=comm.size
    )
    widths, _ = LARGE
    x, y = (torch.from_numpy(array[share(batch, comm.size, comm.rank)]) for array in data(widths, batch))
    return torch_training(torch.nn.parallel.DistributedDataParallel(torch_network(widths)), x, y)


def _idle_barrier(comm: Communicator) -> None:
    """A barrier whose waiting ranks sleep: the rank that still computes has the machine to itself."""
    request = comm.mpi.Ibarrier()
    while not request.Test():
        time.sleep(0.0005)


def measure(comm: Communicator, repeats: int = 15, inner: int = 5, rounds: int = 3) -> dict[str, float] | None:
    """Ratios on rank 0 (None elsewhere): each call of `inner` steps takes its turn; one rank alone, or both."""
    widths, batch = LARGE
    calls: dict[str, tuple[bool, Callable[[], float]]] = {
        "one rank": (False, our_step(widths, batch)),
        "two, window": (True, parallel_step(comm, batch, "auto")),
        "two, mpi": (True, parallel_step(comm, batch, "mpi")),
        "two, doubled batch": (True, parallel_step(comm, 2 * batch, "auto")),
    }
    if importlib.util.find_spec("torch") is not None:
        calls["ddp"] = (True, ddp_step(comm, batch))
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, (together, step) in calls.items():
                _idle_barrier(comm)
                if together or comm.rank == 0:
                    step()  # warm caches
                    start = time.perf_counter()
                    for _ in range(inner):
                        step()
                    times[name].append((time.perf_counter() - start) / inner)
        m = {name: statistics.median(values) for name, values in times.items() if values}
        if comm.rank:
            continue
        row = {
            "two ranks are faster by (window)": m["one rank"] / m["two, window"],
            "two ranks are faster by (mpi)": m["one rank"] / m["two, mpi"],
            "efficiency at the doubled batch": m["one rank"] / m["two, doubled batch"],
        }
        if "ddp" in m:
            row["faster than torch DDP over gloo by"] = m["ddp"] / m["two, window"]
        found.append(row)
    return {name: max(row[name] for row in found) for name in found[0]} if found else None


def main() -> None:
    """Prints the ratios on rank 0."""
    comm = world()
    if comm.size != 2:
        raise SystemExit(f"two_ranks: needs 2 ranks, has {comm.size}: mpirun -n 2 python -m benchmarks.two_ranks")
    ratios = measure(comm)
    for name, value in (ratios or {}).items():
        print(f"{name}: {value:.2f}")
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.distributed.destroy_process_group()
    elif comm.rank == 0:
        print("no comparison with torch: it is not installed (pip install 'parallel_dl[bench]')")


if __name__ == "__main__":
    main()
