"""What a run leaves after its updates: outputs in evaluation mode, counts of updates, weights to load.

The network is evaluated on the samples it was trained with. Then other weights are loaded and read back, digests are
compared with those of the gathered weights, and the trained weights are loaded again, from a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from parallel_dl import checkpoint
from parallel_dl.equivalence.rounding.magnitudes import Arrays
from parallel_dl.errors import bounded
from parallel_dl.trainer import Trainer

EVALUATED = OUTPUTS, LOSS, ACCURACY = "the output in evaluation mode", "the test loss", "the test accuracy"
SAMPLES = 67  # at most so many are evaluated
MOST_BYTES = 1 << 26  # of weights that each rank writes to a file of its own, and reads from it
_STEP = {"float64": 1e-6, "float32": 1e-3}  # by which weights are moved, of their magnitudes


@dataclasses.dataclass
class Outcome:
    """The same on every rank."""

    evaluation: Arrays
    """what can be computed of `EVALUATED`: outputs (n, ...), and loss and accuracy (1,) of `Trainer.test`"""
    note: str | None
    """why there are no outputs"""
    updates: dict[str, tuple[int, ...]]
    """of the trainer, the optimizer, and of each parameter by name: how many, once where all ranks agree"""
    faults: list[str]
    """wrong digests, weights other than those loaded, outputs that differ by rank, gradients lost by Trainer.free()"""
    magnitudes: Arrays | None = None
    """serial runs: what errors of `evaluation` are judged against"""


def outcome_of(
    trainer: Trainer,
    x: np.ndarray,
    y: np.ndarray,
    magnitudes: Arrays | None = None,
    evaluate: bool = True,
    batch_size: int = 1024,
) -> Outcome:
    """Of a trainer after its updates; all ranks together. `magnitudes` are those of the weights, in a serial run."""
    x, y = x[:SAMPLES], y[:SAMPLES]
    found = Outcome({}, None, _updates(trainer), [])
    if evaluate:
        found.evaluation, found.note = _evaluated(trainer, x, y, batch_size, found.faults)
    if magnitudes is not None and found.evaluation:
        found.magnitudes = _magnitudes(trainer, x, y, found.evaluation, magnitudes)
    found.faults += _loading(trainer)
    return found


def unlike(serial: Outcome | None, parallel: Outcome | None) -> str | None:
    """What has no magnitude and differs, in words; None if nothing does, or there is nothing to compare."""
    if serial is None or parallel is None:
        return None
    for fault in parallel.faults:
        return f"{fault} also in the serial run," if fault in serial.faults else fault
    if parallel.note is not None and serial.note is None:
        return f"evaluation mode, which ends with {parallel.note},"
    for what in sorted(serial.updates.keys() | parallel.updates.keys()):
        ours, theirs = (of.updates.get(what, ()) for of in (serial, parallel))
        if ours != theirs:
            counts = [" and ".join(map(str, count)) or "nothing" for count in (theirs, ours)]
            return f"the number of updates of {what}, {counts[0]} in place of {counts[1]},"
    return None


def _updates(trainer: Trainer) -> dict[str, tuple[int, ...]]:
    optimizer = trainer.optimizer
    names = {id(parameter): name for name, parameter in zip(trainer.names, trainer.parameters)}
    own = {"the trainer": trainer.updates, "the optimizer": optimizer.updates}
    counted = zip(optimizer.parameters, optimizer.updates_of())
    own |= {names[id(one)]: count for one, count in counted if one.size}  # an empty piece is not updated
    every = trainer.mesh.world.all_gather_object(own)
    return {what: tuple(sorted({of[what] for of in every if what in of})) for of_rank in every for what in of_rank}


def _evaluated(
    trainer: Trainer, x: np.ndarray, y: np.ndarray, batch_size: int, faults: list[str]
) -> tuple[Arrays, str | None]:
    """The outputs for all samples, in their order, and what `Trainer.test` says of them; or a note why not."""
    own: dict[int, np.ndarray] = {}
    note = None
    try:
        own = trainer.own_outputs(x, batch_size)
    except Exception as error:
        if trainer.pipeline is not None or trainer.parallel is not None:  # other ranks may wait for this one
            raise
        note = bounded(f"{type(error).__name__}: {error}")
    outputs: dict[int, np.ndarray] = {}
    notes = []
    for rank, (of_rank, its_note) in enumerate(trainer.mesh.world.all_gather_object((own, note))):
        notes += [its_note] if its_note is not None else []
        for first, array in of_rank.items():
            if not np.array_equal(outputs.setdefault(first, array), array, equal_nan=True):
                faults.append(f"the output in evaluation mode, which differs on rank {rank} from earlier ranks,")
    if notes:
        return {}, notes[0]
    found = {OUTPUTS: np.concatenate([outputs[first] for first in sorted(outputs)])}
    tested = trainer.test(x, y, batch_size)
    return found | {
        name: np.array([value])
        for name, value in ((LOSS, tested.loss), (ACCURACY, tested.accuracy))
        if value is not None
    }, None


def _magnitudes(trainer: Trainer, x: np.ndarray, y: np.ndarray, found: Arrays, of_weights: Arrays) -> Arrays:
    """By how much values change, at least themselves, when weights and buffers change by their magnitudes.

    Accuracy is left out where the margin of a prediction is so small that rounding may change the class.
    """
    state = trainer.state_dict()
    random = np.random.default_rng(0)
    step = _STEP.get(str(found[OUTPUTS].dtype), 1e-3)
    buffers = {name for name, _ in trainer.network.named_buffers()}
    moved = {}
    for name, array in state.items():
        if array.dtype.kind == "f" and name in of_weights:
            by = random.uniform(0.5, 1.0, array.shape)
            by = by if name in buffers else by * random.choice([-1.0, 1.0], array.shape)  # a variance stays positive
            by = np.where(np.isfinite(array) & np.isfinite(of_weights[name]), step * of_weights[name] * by, 0.0)
            moved[name] = (array + by).astype(array.dtype)
    trainer.load_state_dict(state | moved)
    with np.errstate(all="ignore"):
        other, _ = _evaluated(trainer, x, y, 1024, [])
        trainer.load_state_dict(state)
        magnitudes = {}
        for name, values in found.items():
            change = np.abs(other[name] - values).astype(float) / step if name in other else np.zeros(values.shape)
            magnitudes[name] = np.abs(values).astype(float) + np.where(np.isfinite(change), change, 0.0)
    outputs = found[OUTPUTS]
    if LOSS in magnitudes and outputs.size:  # which may be a small difference of large outputs
        magnitudes[LOSS] = magnitudes[LOSS] + np.abs(outputs[np.isfinite(outputs)]).max(initial=0.0)
    if ACCURACY in magnitudes:
        first, second = np.sort(outputs, axis=-1).reshape(-1, outputs.shape[-1])[:, [-1, max(-2, -outputs.shape[-1])]].T
        if not (first - second > step * magnitudes[OUTPUTS].max()).all():
            del magnitudes[ACCURACY]
    return magnitudes


def _loading(trainer: Trainer) -> list[str]:
    """Loads other weights, and reads them back: what is not right, in words."""
    faults = []
    if trainer.weights_sha256() != _digest(trainer.state_dict()):
        faults.append("weights_sha256, which is not the digest of the weights,")
    before = trainer.state_dict()
    random = np.random.default_rng(1)
    other = {
        name: random.uniform(0.5, 1.5, array.shape).astype(array.dtype) if array.dtype.kind == "f" else np.flip(array)
        for name, array in before.items()
    }
    trainer.load_state_dict(other)
    back = trainer.state_dict()
    saved = trainer.gather_state()
    if saved is not None and not are_same(saved, back):
        faults.append("gather_state, which does not give the weights,")
    for name in sorted(other):
        if name not in back or not np.array_equal(back[name], other[name]):
            faults.append(f"{name}, which is not what load_state_dict was given,")
    if trainer.weights_sha256() != _digest(other):
        faults.append("weights_sha256 after load_state_dict, which is not the digest of the weights,")
    if not are_same(_read_from_file(trainer, before), before):
        faults.append("the weights of a file, which are not those that were saved,")
    return faults


def _read_from_file(trainer: Trainer, state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """What the trainer has after loading the state from a file, of which each rank reads only its own part.

    The given state if it is large, or has types of numbers that are not loaded from files.
    """
    if sum(array.nbytes for array in state.values()) > MOST_BYTES or any(
        a.dtype.char not in "efd" for a in state.values()
    ):
        return state
    with tempfile.TemporaryDirectory(prefix="pdl-outcome-") as folder:
        path = Path(folder) / "weights.safetensors"
        checkpoint.save(path, state)
        trainer.load_state_dict(checkpoint.read(path))
    return trainer.state_dict()


def are_same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    """Whether they have the same names, and equal arrays, with NaN in the same places."""
    return ours.keys() == theirs.keys() and all(
        np.array_equal(array, theirs[name], equal_nan=array.dtype.kind == "f") for name, array in ours.items()
    )


def _digest(state: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(state.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
