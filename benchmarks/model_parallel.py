"""Two model-parallel ranks against one, against data parallelism, and against PyTorch's tensor parallelism over gloo:

mpirun -n 2 python -m benchmarks.model_parallel
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from benchmarks.networks import LARGE, LENET, LR, MOMENTUM, STACK, Network, mlp, our_step, torch_training
from benchmarks.turns import medians_on_ranks
from benchmarks.two_ranks import parallel_step, start_gloo
from parallel_dl import nn, optim
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Communicator, world

# a square layer's threshold batch is its width: model parallelism is to win at the one, and to lose at the other
BELOW = mlp((1024, 1024, 1024, 1024, 10), 32, 100)
ABOVE = mlp((256, 256, 256, 256, 10), 2048, 40)


def split_step(comm: Communicator, network: Network, splits: Mapping[str, str] | None) -> Callable[[], float]:
    """One step of the ranks together, on the whole batch: each has its part of every layer."""
    x, y = network.data()
    model = network.ours()
    parallel = parallelize(model, comm, network.input_shape, splits)
    loss_of = parallel.loss(nn.cross_entropy)
    optimizer = optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def step() -> float:
        loss = loss_of(model(x), y, network.batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_tensor_parallel_step(comm: Communicator, network: Network) -> Callable[[], float]:
    """The same MLP in PyTorch, its Linear layers column- and row-wise in turn."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    x, y = map(torch.from_numpy, network.data())
    mesh = init_device_mesh("cpu", (comm.size,))
    linear = [str(number) for number, (kind, _, _) in enumerate(network.layers) if kind == "Linear"]
    in_pairs = linear[: len(linear) // 2 * 2]  # an odd last layer stays whole
    styles = {name: (ColwiseParallel, RowwiseParallel)[at % 2]() for at, name in enumerate(in_pairs)}
    return torch_training(parallelize_module(network.torch(), mesh, styles), x, y)


def measure(
    comm: Communicator, network: Network, repeats: int, splits: Mapping[str, str] | None = None, torch: bool = False
) -> None:
    """Prints the ratios on rank 0, the best of three rounds."""
    calls: dict[str, tuple[bool, Callable[[], object]]] = {
        "one rank": (False, our_step(network)),
        "split": (True, split_step(comm, network, splits)),
        "data parallel": (True, parallel_step(comm, network, "mpi")),
    }
    if torch:
        calls["torch"] = (True, torch_tensor_parallel_step(comm, network))
    table = medians_on_ranks(comm, calls, repeats, steps=max(1, network.repeats // 20))
    if not table:
        return
    print(f"{network.name}, batch {network.batch}" + (f", {splits}" if splits else ""))
    for name, label in (
        ("one rank", "two ranks, split, are faster than one by"),
        ("data parallel", "split is faster than data parallel (MPI's all-reduce) by"),
        ("torch", "faster than torch's tensor parallelism over gloo by"),
    ):
        if name in calls:
            print(f"  {label}: {max(row[name] / row['split'] for row in table):.2f}", flush=True)


def main() -> None:
    """Prints the ratios on rank 0."""
    comm = world()
    if comm.size != 2:
        raise SystemExit("model_parallel: needs 2 ranks: mpirun -n 2 python -m benchmarks.model_parallel")
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch:
        start_gloo(comm)
    measure(comm, LARGE, 15, torch=has_torch)
    measure(comm, BELOW, 15, torch=has_torch)
    measure(comm, ABOVE, 7, torch=has_torch)
    measure(comm, LENET, 15)
    measure(comm, STACK, 5)
    measure(comm, STACK, 5, {"features": "filters", "classifier": "output"})
    if has_torch:
        import torch

        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
