"""What the proof says of the package that is imported: on 4 ranks, `instruments.py FILE SECONDS INSTRUMENT ...`.

`adjoint` goes through the movements on 3 ranks, `exact` compares layouts of 4 ranks with the serial run on whole
numbers, `values` those of 2, 3 and 4 on random ones. `stress` compares these once more, with ranks that are late and
buffers that are poisoned: it is asked when the others saw nothing. The cells are few, and chosen so that every parallel
package is exercised. What is found is written to FILE line by line, so that it is there when a rank crashes;
after SECONDS every rank shows where it stands, and ends.
"""

import faulthandler
import json
import sys
from pathlib import Path

import numpy as np

from parallel_dl import nn
from parallel_dl.autograd import abandon
from parallel_dl.equivalence import Experiment, exact_experiment, synthetic_experiment, verify
from parallel_dl.layout import Layout
from parallel_dl.mpi import Communicator, world
from parallel_dl.mpi.stress import stressed

RANKS = 4


def fully(activation=nn.Tanh):
    """Uneven widths; a dropout, whose masks belong to samples."""
    return nn.Sequential(
        fc1=nn.Linear(11, 10),
        act1=activation(),
        drop=nn.Dropout(0.3 if activation is nn.Tanh else 0.5),
        fc2=nn.Linear(10, 7),
        act2=activation(),
        fc3=nn.Linear(7, 9),
        act3=activation(),
        fc4=nn.Linear(9, 6),
    )


def images(activation=nn.Tanh):
    """Convolutions with strides, groups and normalisation; branches of both kinds."""
    exact = activation is nn.ReLU
    return nn.Sequential(
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.Identity() if exact else nn.BatchNorm2d(4),
        act1=activation(),
        lrn=nn.Identity() if exact else nn.LocalResponseNorm(3),
        both=nn.Branches(nn.Conv2d(4, 4, 1), nn.Identity(), join="sum"),
        conv2=nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2),
        side=nn.Branches(nn.Conv2d(6, 3, 1), nn.Conv2d(6, 2, 1), join="concatenate"),
        act2=activation(),
        drop=nn.Dropout(0.5),
        pool=nn.MaxPool2d(2) if exact else nn.AvgPool2d(2, 1),
        flatten=nn.Flatten(),
        fc1=nn.Linear(5 * 2 * 1 if exact else 5 * 3 * 2, 8),
        act3=activation(),
        drop3=nn.Dropout(0.5),
        fc2=nn.Linear(8, 6),
    )


def tower_pairs(activation=nn.Tanh):
    """Two towers, and norms that are split."""
    tower = lambda: nn.Sequential(nn.Linear(12, 5), activation())  # noqa: E731
    norm = nn.Identity() if activation is nn.ReLU else nn.LayerNorm(10)
    return nn.Sequential(
        fc=nn.Linear(11, 12),
        branches=nn.Branches(tower(), tower(), join="concatenate"),
        norm=norm,
        last=nn.Linear(10, 6),
    )


NETWORKS = {"fully": (fully, (11,)), "images": (images, (2, 7, 6)), "towers": (tower_pairs, (11,))}
_M = 3  # microbatches, which do not divide a batch of 10
# ranks -> cells; those of two and three ranks run on the first ranks of the job
CELLS = {
    2: [
        ("fully", Layout(dp=2, microbatches=_M)),
        ("fully", Layout(pp=2, microbatches=_M, schedule="zb-h1")),
        ("images", Layout(mp=2, microbatches=_M, split={"conv1": "channels", "conv2": "filters", "fc1": "input"})),
        ("fully", Layout(mp=2, microbatches=_M, split={"fc1": "input", "fc4": "output"})),  # whose scores stay split
        ("towers", Layout(mp=2, split={"branches": "towers"})),
        ("images", Layout(dp=2, hybrid="owt", scheme="b")),
        ("towers", Layout(dp=2, reproducible=True)),  # sums in a tree
    ],
    3: [
        ("images", Layout(dp=3, microbatches=_M)),
        ("fully", Layout(mp=3, microbatches=_M)),
        ("fully", Layout(pp=3, microbatches=_M, schedule="1f1b")),
        ("images", Layout(mp=3, split={"features": "rows"})),
        ("images", Layout(dp=3, hybrid="owt", scheme="c")),
    ],
    4: [
        ("fully", Layout(dp=2, mp=2, microbatches=_M, split={"fc1": "output", "fc2": "input", "fc3": "output:whole"})),
        ("fully", Layout(mp=2, pp=2, microbatches=_M, schedule="gpipe")),
        ("images", Layout(dp=2, pp=2, microbatches=4, schedule="interleaved")),
        ("images", Layout(mp=4, microbatches=2, split={"conv1": "columns", "conv2": "filters"})),
        ("images", Layout(dp=4, hybrid="owt", scheme="a")),
    ],
}


def experiments_of(instrument: str) -> dict[str, Experiment]:
    """What is computed with each network."""
    if instrument == "exact":
        return {
            name: exact_experiment(lambda build=build: build(nn.ReLU), shape, 8)
            for name, (build, shape) in NETWORKS.items()
        }
    return {
        name: synthetic_experiment(build, shape, 6, 10, steps=2, clip_norm=0.5 if name == "fully" else None)
        for name, (build, shape) in NETWORKS.items()
    }


def compared(comm: Communicator, instrument: str) -> str:
    """The first cell that differs, or nothing."""
    experiments = experiments_of(instrument)
    for ranks in (4,) if instrument == "exact" else sorted(CELLS):
        part = comm.split(0 if comm.rank < ranks else None)
        wrong = ""
        if part is not None:
            for (name, layout), cell in zip(
                CELLS[ranks], verify(part, experiments, CELLS[ranks], instrument == "exact")
            ):
                if cell is not None and not cell.equal and not wrong:
                    wrong = f"different: {name}, {layout}: {cell.worst['quantity']} {cell.worst['error']:.1e}"
            part.free()
        if wrong := comm.broadcast_object(wrong):
            return wrong
    return ""


def adjoint(comm: Communicator) -> str:
    """Values and adjoints of all movements, on 3 ranks: the first that is wrong, or nothing."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "mpi"))
    from movement_cases import LENGTHS
    from test_adjoints import test_value_and_adjoint

    part = comm.split(0 if comm.rank < 3 else None)
    wrong = ""
    if part is not None:
        try:
            for lengths in LENGTHS[:2]:
                for axis in (0, 1):
                    test_value_and_adjoint(part, lengths, axis)
        except AssertionError as error:
            wrong = f"different: {' '.join(str(error).split())[:100]}"
            abandon()  # of a forward pass whose backward did not come
        part.free()
    return next((told for told in comm.all_gather_object(wrong) if told), "")


def main(path: str, seconds: float, *instruments: str) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True)
    comm = world()
    assert comm.size == RANKS
    np.seterr(all="ignore")
    seen = False
    for instrument in instruments:
        if instrument == "stress":
            if seen:
                break
            with stressed(comm, 1) as ranks:
                found = compared(ranks, instrument)
        else:
            found = adjoint(comm) if instrument == "adjoint" else compared(comm, instrument)
        seen = comm.broadcast_object(seen or bool(found))
        if comm.rank == 0:
            with open(path, "a") as file:
                file.write(json.dumps([instrument, found or "equal"]) + "\n")
    comm.barrier()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
