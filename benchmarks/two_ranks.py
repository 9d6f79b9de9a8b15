"""Two data-parallel ranks against one, and against PyTorch DDP over gloo; run as two ranks:

mpirun -n 2 python -m benchmarks.two_ranks
"""

from __future__ import annotations

import dataclasses
import importlib.util
import socket
from collections.abc import Callable

from benchmarks.networks import LARGE, LENET, LR, MOMENTUM, STACK, Network, our_step, torch_training
from benchmarks.turns import medians_on_ranks
from parallel_dl import nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.mpi import Communicator, world
from parallel_dl.partition import share


def _own_share(comm: Communicator, network: Network) -> list:
    """This rank's samples and labels of the network's batch."""
    return [array[share(network.batch, comm.size, comm.rank)] for array in network.data()]


def parallel_step(comm: Communicator, network: Network, method: str) -> Callable[[], float]:
    """One step of the ranks together: this rank's share of the batch."""
    x, y = _own_share(comm, network)
    model = network.ours()
    gradients = GradientAllReduce(model.parameters(), comm, method)
    optimizer = optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def step() -> float:
        loss = nn.cross_entropy(model(x), y, total=network.batch)
        optimizer.zero_grad()
        loss.backward()
        gradients.all_reduce()
        optimizer.step()
        return loss.item()

    return step


def start_gloo(comm: Communicator) -> None:
    """PyTorch's process group of these ranks, on the loopback interface."""
    import torch

    torch.set_num_threads(1)
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = comm.broadcast_object(free.getsockname()[1])
    free.close()
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=comm.rank, world_size=comm.size
    )


def ddp_step(comm: Communicator, network: Network, channels_last: bool) -> Callable[[], float]:
    """The same in PyTorch's DistributedDataParallel over gloo."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, y = map(torch.from_numpy, _own_share(comm, network))
    model = torch.nn.parallel.DistributedDataParallel(network.torch().to(memory_format=layout))
    return torch_training(model, x.contiguous(memory_format=layout), y)


def measure(comm: Communicator, network: Network, repeats: int = 15) -> dict[str, float] | None:
    """Ratios on rank 0 (None elsewhere): each call of some steps takes its turn; one rank alone, or both."""
    doubled = dataclasses.replace(network, batch=2 * network.batch)
    calls: dict[str, tuple[bool, Callable[[], float]]] = {
        "one rank": (False, our_step(network)),
        "two, window": (True, parallel_step(comm, network, "auto")),
        "two, mpi": (True, parallel_step(comm, network, "mpi")),
        "two, doubled batch": (True, parallel_step(comm, doubled, "auto")),
    }
    if importlib.util.find_spec("torch") is not None:
        for channels_last in (False, True) if network.has_images else (False,):
            calls[f"ddp {channels_last}"] = (True, ddp_step(comm, network, channels_last))
    found: list[dict[str, float]] = []
    for m in medians_on_ranks(comm, calls, repeats, steps=max(1, network.repeats // 20)):
        row = {
            "two ranks are faster by (window)": m["one rank"] / m["two, window"],
            "two ranks are faster by (mpi)": m["one rank"] / m["two, mpi"],
            "efficiency at the doubled batch": m["one rank"] / m["two, doubled batch"],
        }
        ddp = [seconds for name, seconds in m.items() if name.startswith("ddp")]
        if ddp:
            row["faster than torch DDP over gloo by"] = min(ddp) / m["two, window"]
        found.append(row)
    return {name: max(row[name] for row in found) for name in found[0]} if found else None


def main() -> None:
    """Prints the ratios on rank 0."""
    comm = world()
    if comm.size != 2:
        raise SystemExit(f"two_ranks: needs 2 ranks, has {comm.size}: mpirun -n 2 python -m benchmarks.two_ranks")
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch:
        start_gloo(comm)
    for network, repeats in ((LARGE, 15), (LENET, 15), (STACK, 5)):
        ratios = measure(comm, network, repeats)
        if ratios is not None:
            print(f"{network.name}, batch {network.batch}")
            for name, value in ratios.items():
                print(f"  {name}: {value:.2f}", flush=True)
    if has_torch:
        import torch

        torch.distributed.destroy_process_group()
    elif comm.rank == 0:
        print("no comparison with torch: it is not installed (pip install 'parallel_dl[bench]')")


if __name__ == "__main__":
    main()
