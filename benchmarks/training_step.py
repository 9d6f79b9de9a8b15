"""A training step on one core: ours, hand-written NumPy, PyTorch eager. python -m benchmarks.training_step"""

from __future__ import annotations

import importlib.util

from benchmarks.networks import LARGE, SMALL, numpy_step, our_step, torch_step
from benchmarks.turns import best_ratio, medians


def measure() -> list[dict]:
    """A row per network; times in seconds."""
    rows = []
    for (widths, batch), repeats in ((LARGE, 100), (SMALL, 600)):
        calls = {"ours": our_step(widths, batch), "numpy": numpy_step(widths, batch)}
        if importlib.util.find_spec("torch") is not None:
            calls["torch"] = torch_step(widths, batch)
        table = medians(calls, repeats)
        row: dict = {"network": "-".join(map(str, widths)), "batch": batch, **table[-1]}
        for other in list(calls)[1:]:
            row[f"ours / {other}"] = best_ratio(table, "ours", other)
        rows.append(row)
    return rows


def main() -> None:
    """Prints a line per network."""
    for row in measure():
        times = ", ".join(f"{name} {row[name] * 1e6:.0f} us" for name in ("ours", "numpy", "torch") if name in row)
        ratios = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if "/" in name)
        print(f"MLP {row['network']}, batch {row['batch']}: {ratios} ({times})")
    if importlib.util.find_spec("torch") is None:
        print("no comparison with torch: it is not installed (pip install 'parallel_dl[bench]')")


if __name__ == "__main__":
    main()
