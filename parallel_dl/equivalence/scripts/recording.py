"""Inside a rank: `python -m parallel_dl.equivalence.scripts.recording SCRIPT [ARGUMENT ...]` runs a script as Python
would, or calls NAME of FILE:NAME, and writes down what its optimizers do.

The script is not changed: `Optimizer.step`, `Tensor.backward` and `Module.__call__` are exchanged for functions that
call them.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from parallel_dl import watchdog
from parallel_dl.autograd import Tensor, is_grad_enabled
from parallel_dl.equivalence.scripts import watched
from parallel_dl.equivalence.scripts.files import BEFORE, FOLDER_VARIABLE, GRADIENT, LOCAL, WEIGHT, Part, Update, begin
from parallel_dl.launch.environment import mpirun_rank
from parallel_dl.nn import Module, Parameter
from parallel_dl.optim import Optimizer

STEPS_VARIABLE = "PARALLEL_DL_RECORD_STEPS"
"""after how many updates the program is ended"""
NUDGE_VARIABLE = "PARALLEL_DL_RECORD_NUDGE"
"""1: weights are changed in their last bits after the first update, to see how such changes grow"""


class Enough(BaseException):
    """As many updates as were asked for."""


class Recorder:
    """What this rank has done since the last update."""

    def __init__(self, folder: str, steps: int | None, nudges: bool) -> None:
        self.folder, self.steps, self.nudges = folder, steps, nudges
        self.names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._depth = 0
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.samples: list[int] = []
        self.evaluated: list[int] = []
        self.local: dict[int, np.ndarray] = {}
        self._result: Any = None  # of the last call of a network
        self.calls_at_backward: int | None = None
        self.calls_before_backward: int | None = None
        self.calls_at_update = _collectives()

    # -- what happens ----------------------------------------------------------------------------------------------
    def called(self, arguments: tuple[Any, ...]) -> None:
        """A network was called, and not by another one: with samples, or with what came out of its layers before."""
        x = arguments[0] if arguments else None
        if x is self._result or (isinstance(x, Tensor) and x.requires_grad):
            return
        rows = x.data if isinstance(x, Tensor) else x
        if isinstance(rows, np.ndarray) and rows.ndim:
            found = [zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in rows]
            (self.samples if is_grad_enabled() else self.evaluated).extend(found)

    def begins_backward(self) -> None:
        """A backward pass begins."""
        if self.calls_before_backward is None:
            self.calls_before_backward = _collectives() - self.calls_at_update

    def ended_backward(self, loss: Tensor) -> None:
        """A backward pass is over."""
        if loss.data.size == 1:
            self.losses.append(float(loss.data.reshape(-1)[0]))
        self.calls_at_backward = _collectives()
        self.local = {
            key: np.array(parameter.grad) for key, parameter in _PARAMETERS.items() if parameter.grad is not None
        }

    def update(self, optimizer: Optimizer, step: Callable[[], None]) -> None:
        """An update, by `step`."""
        watched.record.has_optimizer = True
        update = Update({}, losses=self.losses, samples=self.samples, evaluated=self.evaluated)
        now = _collectives()
        update.calls = [
            0 if self.calls_at_backward is None else now - self.calls_at_backward,
            self.calls_before_backward or 0,
        ]
        for parameter in optimizer.parameters:
            name = self.name_of(parameter)
            update.parts[name] = _part(parameter)
            update.arrays[f"{BEFORE}/{name}"] = np.array(parameter.data)
            if parameter.grad is None:
                update.frozen.append(name)
            else:
                update.arrays[f"{GRADIENT}/{name}"] = np.array(parameter.grad)
            local = self.local.get(id(parameter), None if self.losses else parameter.grad)
            if local is not None:
                update.arrays[f"{LOCAL}/{name}"] = np.array(local)
        step()
        if self.nudges and not watched.record.written:
            _nudge(optimizer)
        for parameter in optimizer.parameters:
            update.arrays[f"{WEIGHT}/{self.name_of(parameter)}"] = np.array(parameter.data)
        written = watched.end_update(self.folder, update)
        self._clear()
        if self.steps is not None and written >= self.steps:
            raise Enough

    def name_of(self, parameter: Parameter) -> str:
        """Its name in its network; of several with one name, the later ones are numbered."""
        key = id(parameter)
        if key not in self.names:
            first = name = parameter.name or "parameter"
            count = 1
            while name in self._taken:
                count += 1
                name = f"{first} ({count})"
            self._taken.add(name)
            self.names[key] = name
            _PARAMETERS[key] = parameter
        return self.names[key]

    # -- how it is noticed -----------------------------------------------------------------------------------------
    def install(self) -> None:
        """From now on it notices."""
        backward, step, call, init = Tensor.backward, Optimizer.step, Module.__call__, Optimizer.__init__

        @functools.wraps(init)
        def observed_init(optimizer: Optimizer, *arguments: Any, **named: Any) -> None:
            init(optimizer, *arguments, **named)
            for parameter in optimizer.parameters:
                self.name_of(parameter)

        @functools.wraps(backward)
        def observed_backward(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            self.begins_backward()
            result = backward(tensor, *arguments, **named)
            self.ended_backward(tensor)
            return result

        @functools.wraps(step)
        def observed_step(optimizer: Optimizer, *arguments: Any, **named: Any) -> None:
            self.update(optimizer, functools.partial(step, optimizer, *arguments, **named))

        @functools.wraps(call)
        def observed_call(module: Module, *arguments: Any) -> Any:
            if self._depth:
                return call(module, *arguments)
            self.called(arguments)
            self._depth += 1
            try:
                self._result = call(module, *arguments)
            finally:
                self._depth -= 1
            return self._result

        for kind, name, observed in (
            (Tensor, "backward", observed_backward),
            (Optimizer, "step", observed_step),
            (Optimizer, "__init__", observed_init),
            (Module, "__call__", observed_call),
        ):
            setattr(kind, name, observed)


_PARAMETERS: dict[int, Parameter] = {}  # kept: an id must not be given to another


def _collectives() -> int:
    """How many collectives this rank has made on communicators of several ranks."""
    groups = list(watchdog.this_rank.groups.values())
    return sum(group.collectives for group in groups if group.size > 1 and not group.is_of_comparisons)


def _part(parameter: Parameter) -> Part:
    piece = () if parameter.piece is None else tuple((part.start, part.stop) for part in parameter.piece)
    return Part(parameter.whole_shape, piece)


def _nudge(optimizer: Optimizer) -> None:
    """Changes each weight by half of its last bit, up or down."""
    rng = np.random.default_rng(0)
    for parameter in optimizer.parameters:
        data = parameter.data
        data *= (1 + np.finfo(data.dtype).eps * rng.choice([-1, 1], data.shape)).astype(data.dtype)


def main() -> None:
    """Runs the script."""
    script, *arguments = sys.argv[1:]
    steps = os.environ.get(STEPS_VARIABLE)
    folder = os.environ[FOLDER_VARIABLE]
    begin(folder, mpirun_rank())
    Recorder(folder, None if steps is None else int(steps), os.environ.get(NUDGE_VARIABLE) == "1").install()
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    try:
        _run(script)
    except Enough:
        pass
    finally:
        watched.end()


def _run(program: str) -> None:
    """Runs FILE as Python would, or calls NAME of FILE:NAME."""
    file, _, name = program.rpartition(":")
    if os.path.isfile(program) or not file:
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_path(file, run_name=os.path.basename(file).removesuffix(".py"))[name]()


if __name__ == "__main__":
    main()
