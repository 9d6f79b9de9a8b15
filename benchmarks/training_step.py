"""A training step on one core: ours, hand-written NumPy (MLPs), PyTorch eager. python -m benchmarks.training_step

PyTorch runs convolutional networks in both of its memory formats; the ratio is against the faster one.
"""

from __future__ import annotations

import importlib.util

from benchmarks.networks import LARGE, LENET, SMALL, STACK, numpy_step, our_step, torch_step
from benchmarks.turns import medians


def measure() -> list[dict]:
    """A row per network; times in seconds (of the last round), ratios (the best round's)."""
    rows = []
    for network in (LARGE, SMALL, LENET, STACK):
        calls = {"ours": our_step(network)}
        if not network.has_images:
            calls["numpy"] = numpy_step(network)
        if importlib.util.find_spec("torch") is not None:
            calls["torch"] = torch_step(network)
            if network.has_images:
                calls["torch, channels last"] = torch_step(network, channels_last=True)
        table = medians(calls, network.repeats)
        row: dict = {"network": network.name, "batch": network.batch, "seconds": table[-1]}
        for other in ("numpy", "torch"):
            theirs = [name for name in calls if name.startswith(other)]
            if theirs:
                row[f"ours / {other}"] = min(times["ours"] / min(times[name] for name in theirs) for times in table)
        rows.append(row)
    return rows


def main() -> None:
    """Prints a line per network."""
    for row in measure():
        times = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in row["seconds"].items())
        ratios = ", ".join(f"{name} {value:.2f}" for name, value in row.items() if "/" in name)
        print(f"{row['network']}, batch {row['batch']}: {ratios} ({times})")
    if importlib.util.find_spec("torch") is None:
        print("no comparison with torch: it is not installed (pip install 'parallel_dl[bench]')")


if __name__ == "__main__":
    main()
