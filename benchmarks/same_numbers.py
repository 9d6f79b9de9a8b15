"""Whether a change keeps the numbers: runs of every network and kind of layout, recorded before and compared after.

    python -m benchmarks.same_numbers record FOLDER
    python -m benchmarks.same_numbers compare FOLDER

Both take the same machine and the same libraries: their kernels decide the last bits. Losses and weights that are not
the same bit by bit are printed with how far apart they are, relative to the largest weight of each array.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

SMALL = "--steps 4 --batch-size 13 --seed 3"
LARGE = "--steps 1 --batch-size 2 --lr 0.001 --dataset images.npz"

RUNS = [
    "mlp",
    "mlp --dtype float64 --optimizer adam --microbatches 3",
    "mlp --dp 3",
    "mlp --dp 2 --allreduce mpi --optimizer lars",
    "mlp --mp 2 --split fc1=output --split fc2=input --split fc3=output",
    "mlp --mp 3 --split fc1=input --split fc2=output:whole --dtype float64",
    "mlp --dp 2 --mp 2 --clip-norm 0.5 --optimizer adamw --dtype float64",
    "mlp_deep --pp 2",
    "mlp_deep --pp 4 --schedule gpipe --microbatches 5 --dtype float64",
    "mlp_deep --pp 2 --schedule interleaved --microbatches 4",
    "mlp_deep --pp 2 --schedule zb-h1 --microbatches 4 --dtype float64",
    "mlp_deep --pp 2 --schedule pipedream --microbatches 4",
    "mlp_deep --pp 2 --dp 2 --mp 2 --dtype float64",
    "lenet5_small",
    "lenet5_small --dp 2",
    "lenet5_small --mp 2",
    "lenet5_small --mp 2 --split conv1=rows --split conv2=rows --dtype float64",
    "lenet5_small --mp 4 --split conv1=2x2 --split pool1=2x2 --split conv2=channels",
    "lenet5_small --pp 2 --mp 2 --dtype float64",
    "lenet5_small --hybrid owt --ranks 2",
    "lenet5_small --hybrid owt --ranks 3 --scheme b --dtype float64",
    "lenet5_small --hybrid owt --ranks 4 --scheme c",
    "lenet5_small --hybrid owt --ranks 2 --scheme c --variable-batch --dtype float64",
    "alexnet_small",
    "alexnet_small --dp 2 --dtype float64",
    "alexnet_small --mp 2",
    "alexnet_small --mp 2 --split conv1=filters --split conv2=towers --split conv4=filters",
    "alexnet_small --mp 3 --split conv2=rows --split conv3=columns --dtype float64",
    "alexnet_small --hybrid owt --ranks 2 --split fc6=output --split fc7=input",
    "alexnet_small --pp 3 --microbatches 4",
    "vgg_small --dtype float64",
    "vgg_small --dp 2 --mp 2",
    "vgg_small --mp 2 --split conv2=channels --split conv3=filters --dtype float64",
    "mlp --reproducible --batch-size 64",
    "mlp --reproducible --batch-size 64 --dp 4 --dtype float64",
    "lenet5_small --reproducible --batch-size 64 --dp 2 --mp 2",
    "alexnet_small --reproducible --batch-size 64 --mp 2",
    "vgg_small --reproducible --batch-size 64 --pp 2",
    "mlp_deep --reproducible --batch-size 64 --pp 2 --dp 2 --dtype float64",
    "lenet5 --dp 2 --dataset digits28.npz",
    "lenet5 --mp 2 --dataset digits28.npz --dtype float64",
    "alexnet",
    "alexnet --mp 2",
    "alexnet_one_tower --dp 2",
    "vgg16 --mp 2",
]


def _data(folder: Path) -> None:
    """Random images for the full-size networks."""
    draw = np.random.default_rng(0)
    for name, shape in {"images": (3, 224, 224), "digits28": (1, 28, 28)}.items():
        parts = {}
        for part, samples in {"train": 60, "test": 12}.items() if name != "images" else {"train": 4, "test": 1}.items():
            parts[f"x_{part}"] = draw.standard_normal((samples, *shape)).astype(np.float32)
            parts[f"y_{part}"] = draw.integers(0, 10, samples)
        np.savez(folder / f"{name}.npz", **parts)


def _run(command: str, folder: Path, weights: Path) -> dict:
    name, *flags = command.split()
    large = name in ("alexnet", "alexnet_one_tower", "vgg16")
    arguments = [name, *(LARGE if large else SMALL).split(), *flags, "--json"]
    arguments += [] if large else ["--output", str(weights)]
    done = subprocess.run(
        [sys.executable, "-m", "parallel_dl", "train", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    result = json.loads(done.stdout)
    return {key: result[key] for key in ("losses", "test_accuracy", "weights_sha256")}


def _farthest(before: Path, after: Path) -> float:
    """The largest difference of two files' weights, relative to the largest value of each array."""
    if not before.exists() or not after.exists():
        return float("nan")
    old, new = load_file(before), load_file(after)
    if old.keys() != new.keys():
        return float("inf")
    return max(float(np.abs(old[name] - new[name]).max() / max(np.abs(old[name]).max(), 1e-30)) for name in old)


def main() -> int:
    """Records, or compares; 1 if a run is not bitwise as recorded."""
    mode, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    folder.mkdir(parents=True, exist_ok=True)
    different = 0
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        _data(data)
        for number, command in enumerate(RUNS):
            if only not in command:
                continue
            saved = folder / f"{number:02}.safetensors"
            weights = saved if mode == "record" else data / "weights.safetensors"
            weights.unlink(missing_ok=True)
            result = _run(command, data, weights)
            path = folder / f"{number:02}.json"
            if mode == "record":
                path.write_text(json.dumps(result))
                print(f"{number:02} {command}: {result.get('error') or result['weights_sha256'][:8]}", flush=True)
                continue
            before = json.loads(path.read_text())
            if result == before:
                continue
            different += 1
            far = "" if "error" in result else f"weights {_farthest(saved, weights):.1e} apart; "
            print(f"{number:02} {command}: {far}before {before}, now {result}", flush=True)
    if mode != "record":
        print(f"{different} of {len(RUNS)} runs are not bitwise as before")
    return different > 0


if __name__ == "__main__":
    sys.exit(main())
