"""Peak memory of training, ours beside PyTorch's: python -m benchmarks.memory

Each side trains in a process of its own. What it held after its imports and a few steps of a tiny network (which load
what is loaded late) is taken off its peak. Linux only.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from benchmarks.networks import LENET, STACK, Network, layer, our_step, torch_step

NETWORKS = {"lenet": LENET, "stack": STACK}
SIDES = ("ours", "torch", "torch, channels last")
TINY = Network(
    "tiny", 1, (1, 8, 8), (layer("Conv2d", 1, 1, 3), layer("MaxPool2d", 2), layer("Flatten"), layer("Linear", 9, 10)), 1
)


def _kib(name: str) -> int:
    """VmRSS (held now) or VmHWM (the most ever held) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _peak_of(network: str, side: str, steps: int = 5) -> None:
    """In a process of its own: prints the KiB that training added at its peak."""
    for chosen in (TINY, NETWORKS[network]):
        Path("/proc/self/clear_refs").write_text("5")  # the most ever held is counted anew
        before = _kib("VmRSS")
        step = our_step(chosen) if side == "ours" else torch_step(chosen, side != "torch")
        for _ in range(steps):
            step()
    print(_kib("VmHWM") - before)


def main() -> None:
    """Prints a line per network."""
    if len(sys.argv) > 1:
        _peak_of(*sys.argv[1:])
        return
    sides = SIDES if importlib.util.find_spec("torch") is not None else SIDES[:1]
    for name, network in NETWORKS.items():
        found = []
        for side in sides:
            command = [sys.executable, "-m", "benchmarks.memory", name, side]
            kib = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            found.append(f"{side} {kib / 1024:.0f} MiB")
        print(f"{network.name}, batch {network.batch}: peak of training {', '.join(found)}")


if __name__ == "__main__":
    main()
