"""Two pipeline stages: idle time and throughput against theory and the simulator, and PyTorch's over gloo; two ranks:

mpirun -n 2 python -m benchmarks.pipeline
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.turns import medians_on_ranks
from benchmarks.two_ranks import start_gloo
from parallel_dl import nn, optim
from parallel_dl.datasets import Arrivals, Share
from parallel_dl.mpi import Communicator, world
from parallel_dl.partition import share
from parallel_dl.pipeline_parallel import PipelineParallel
from parallel_dl.pipeline_parallel.runner import StageRunner
from parallel_dl.schedule import Times, Wire, make, simulate, with_messages

INPUT, WIDTH, LAYERS, PER_MICROBATCH = 8, 1024, 16, 64
SECOND = str(2 + 2 * (LAYERS // 2))  # where the second stage begins
COUNTS = (1, 2, 4, 8, 16)
RATES = (0.5, 0.9, 1.5)  # of a stream of samples, as shares of what the slowest stage can do


def network() -> nn.Sequential:
    """Equal stages: as many equal layers on either rank.

    In front of them a small one, so that the first of them needs the gradient of its input, too.
    """
    layers: list[nn.Module] = [nn.Linear(INPUT, WIDTH), nn.ReLU()]
    for _ in range(LAYERS):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def half_squares(outputs: Any, targets: Any, total: float) -> Any:
    """A loss that costs next to nothing: the last stage has no more to do than the first."""
    return nn.mse(outputs, targets, total)


class Clock:
    """Measures the actions of a runner: seconds by kind."""

    def __init__(self, runner: StageRunner) -> None:
        self.seconds: dict[str, list[float]] = {"forward": [], "backward": []}
        for kind in self.seconds:
            setattr(runner, kind, self._timed(kind, getattr(runner, kind)))

    def _timed(self, kind: str, method: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def timed(stage: int, microbatch: int) -> None:
            start = time.perf_counter()
            method(stage, microbatch)
            self.seconds[kind].append(time.perf_counter() - start)

        return timed


def data(microbatches: int) -> list[Share]:
    """Microbatches of PER_MICROBATCH samples."""
    random = np.random.default_rng(0)
    size = microbatches * PER_MICROBATCH
    x, y = (random.standard_normal((size, width), np.float32) for width in (INPUT, WIDTH))
    cuts = [share(size, microbatches, number) for number in range(microbatches)]
    return [Share(x[cut], y[cut], cut.start, size) for cut in cuts]


def measure_idle(comm: Communicator, microbatches: int, repeats: int = 9) -> dict[str, float] | None:
    """On rank 0: idle share of the step in theory and measured; its seconds, and those that the simulator predicts."""
    pipeline = PipelineParallel(network(), comm, (INPUT,), "1f1b", half_squares, [SECOND])
    runner = pipeline.runner
    parts = data(microbatches)
    optimizer = optim.SGD(pipeline.parameters, 1e-6)
    clock = Clock(runner)
    steps, rows = [], []
    for repeat in range(repeats + 3):
        optimizer.zero_grad()
        for kind in clock.seconds:
            clock.seconds[kind].clear()
        comm.barrier()
        start = time.perf_counter()
        pipeline.run(parts, [0] * microbatches)
        comm.barrier()
        seconds = time.perf_counter() - start
        if repeat < 3:  # caches, memory, the order of axes
            continue
        steps.append(seconds)
        busy = sum(map(sum, clock.seconds.values()))
        rows.append((busy, statistics.median(clock.seconds["forward"]), statistics.median(clock.seconds["backward"])))
    step = statistics.median(steps)
    busy, forward, back = (statistics.median(column) for column in zip(*rows))
    everyone = comm.all_gather_object((busy, forward, back))
    if comm.rank:
        return None
    times = Times([f for _, f, _ in everyone], [b for _, _, b in everyone], 0.0)
    predicted = simulate(with_messages(make("1f1b", 2, microbatches)), times, Wire()).makespan
    return {
        "theory": 1 / (microbatches + 1),
        "measured": 1 - sum(b for b, _, _ in everyone) / (2 * step),
        "step": step,
        "predicted": predicted,
    }


def measure_stream(comm: Communicator, share_of_most: float, microbatches: int = 32) -> dict[str, float] | None:
    """On rank 0: a stream of samples at that share of 1/slowest stage; throughputs by the simulator and measured.

    In microbatches per second.
    """
    pipeline = PipelineParallel(network(), comm, (INPUT,), "1f1b", half_squares, [SECOND])
    parts = data(microbatches)
    clock = Clock(pipeline.runner)
    stream = None
    for repeat in range(2):
        if repeat:
            own = [statistics.median(seconds) for seconds in clock.seconds.values()]
            forwards, backwards = zip(*comm.all_gather_object(own))
            rate = share_of_most / max(map(sum, zip(forwards, backwards)))
            arrivals = Arrivals(rate * PER_MICROBATCH)
            pipeline.runner.before_entry = lambda part, stream=arrivals: stream.take(PER_MICROBATCH)
        comm.barrier()
        pipeline.run(parts, [0] * microbatches)
        if repeat:
            stream = arrivals.measured()
    if comm.rank:
        return None
    plan = with_messages(make("1f1b", 2, microbatches))
    simulation = simulate(plan, Times(forwards, backwards, 0.0), Wire(), rate)
    assert stream is not None
    assert stream.throughput is not None
    assert stream.queue_growth is not None
    return {
        "rate": rate,
        "simulated": simulation.steady_throughput or 0.0,
        "measured": stream.throughput / PER_MICROBATCH,
        "simulated growth": simulation.queue_growth or 0.0,
        "measured growth": stream.queue_growth / PER_MICROBATCH,
    }


def our_step(comm: Communicator, microbatches: int) -> Callable[[], object]:
    """One step of ours, with its update."""
    pipeline = PipelineParallel(network(), comm, (INPUT,), "1f1b", half_squares, [SECOND])
    optimizer = optim.SGD(pipeline.parameters, 1e-6)
    parts = data(microbatches)

    def step() -> None:
        optimizer.zero_grad()
        pipeline.run(parts, [0] * microbatches)
        optimizer.step()

    return step


def torch_step(comm: Communicator, microbatches: int) -> Callable[[], object]:
    """The same in PyTorch: Schedule1F1B over gloo."""
    import torch
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    layers: list[Any] = [] if comm.rank else [torch.nn.Linear(INPUT, WIDTH), torch.nn.ReLU()]
    for _ in range(LAYERS // 2):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers)
    stage = PipelineStage(module, comm.rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, microbatches, loss_fn=torch.nn.functional.mse_loss)
    optimizer = torch.optim.SGD(module.parameters(), 1e-6)
    parts = data(microbatches)
    x, y = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*((part.x, part.y) for part in parts)))

    def step() -> None:
        optimizer.zero_grad()
        if comm.rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y)
        optimizer.step()

    return step


def main() -> None:
    """Prints what rank 0 has found."""
    comm = world()
    if comm.size != 2:
        raise SystemExit("pipeline: needs 2 ranks: mpirun -n 2 python -m benchmarks.pipeline")
    if comm.rank == 0:
        print(f"two stages of {LAYERS // 2} layers of {WIDTH}, 1f1b, {PER_MICROBATCH} samples per microbatch")
        print("  m   idle: theory  measured   step (ms)  simulated / measured")
    for microbatches in COUNTS:
        rows = [measure_idle(comm, microbatches) for _ in range(3)]
        if rows[0] is not None:
            row = min((row for row in rows if row is not None), key=lambda row: row["step"])
            step, predicted = row["step"], row["predicted"]
            idle = f"{row['theory']:13.1%} {row['measured']:9.1%}"
            print(f"{microbatches:3d} {idle} {1e3 * step:11.2f} {predicted / step:13.2f}", flush=True)
    if comm.rank == 0:
        print("a stream of samples, in microbatches per second; the rate as a share of 1/slowest stage")
        print("  share    rate   throughput: simulated  measured   queue grows by: simulated  measured")
    for share_of_most in RATES:
        row = measure_stream(comm, share_of_most)
        if row is not None:
            taken = f"{row['simulated']:23.1f} {row['measured']:9.1f}"
            growth = f"{row['simulated growth']:26.1f} {row['measured growth']:9.1f}"
            print(f"{share_of_most:7.1f} {row['rate']:7.1f} {taken} {growth}", flush=True)
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    start_gloo(comm)
    for microbatches in (4, 16):
        calls = {"ours": (True, our_step(comm, microbatches)), "torch": (True, torch_step(comm, microbatches))}
        table = medians_on_ranks(comm, calls, 15)
        if table:
            ratio = max(row["torch"] / row["ours"] for row in table)
            print(f"  {microbatches} microbatches: faster than torch's 1F1B by {ratio:.2f}", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
