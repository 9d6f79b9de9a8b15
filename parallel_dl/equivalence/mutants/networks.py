"""What bugs are planted in: small networks that have something of everything, and layouts of two ranks."""

from __future__ import annotations

from collections.abc import Callable

from parallel_dl import nn
from parallel_dl.equivalence.runs.record import Experiment
from parallel_dl.equivalence.verify import synthetic_experiment
from parallel_dl.layout import Layout


def _fully() -> nn.Module:
    return nn.Sequential(
        fc1=nn.Linear(12, 10),
        act1=nn.Tanh(),
        drop=nn.Dropout(0.3),
        fc2=nn.Linear(10, 8),
        act2=nn.Tanh(),
        fc3=nn.Linear(8, 9),
        act3=nn.Tanh(),
        fc4=nn.Linear(9, 6),
    )


def _images() -> nn.Module:
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        act1=nn.Tanh(),
        conv2=nn.Conv2d(4, 6, 3, padding=1),
        act2=nn.Tanh(),
        pool=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(54, 6),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fully": (_fully, (12,)),
    "clipped": (_fully, (12,)),
    "images": (_images, (2, 6, 6)),
}
DP = Layout(dp=2, microbatches=2)
OUTPUT = Layout(mp=2, split={"fc1": "output:whole", "fc2": "output:whole", "fc3": "output:whole", "fc4": "output"})
PAIRS = Layout(mp=2, split={"fc2": "output", "fc3": "input"})
FILTERS = Layout(mp=2, split={"conv1": "filters", "conv2": "filters"})
ROWS = Layout(mp=2, split={"features": "rows"})
SAMPLES = Layout(mp=2, split={"fc1": "samples"})
SAMPLES_THEN_OUTPUT = Layout(mp=2, split={"fc1": "samples", "fc3": "output"})
INPUT_THEN_SAMPLES = Layout(mp=2, split={"fc1": "input", "act1": "samples"})
PIPE = Layout(pp=2, microbatches=3, schedule="1f1b")
HYBRID = Layout(dp=2, hybrid="owt", scheme="c")
ZERO_BUBBLE = Layout(pp=2, microbatches=3, schedule="zb-h1")


def experiments() -> dict[str, Experiment]:
    """What the mutants are planted in: two steps of two small networks that have something of everything."""
    return {
        name: synthetic_experiment(build, shape, 6, 10, steps=2, clip_norm=0.1 if name == "clipped" else None)
        for name, (build, shape) in NETWORKS.items()
    }
