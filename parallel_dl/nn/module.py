"""Module: a network as a tree of named layers."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from parallel_dl.errors import InputError, number_of
from parallel_dl.nn.calls import frames
from parallel_dl.nn.parameter import Parameter
from parallel_dl.nn.settings import checked_dtype, default_dtype, default_seed
from parallel_dl.nn.streams import Places, Position

_next_registration = itertools.count(1).__next__


def _is_named_by(named: tuple[weakref.ref[Module], str] | None, module: Module, name: str) -> bool:
    return named is not None and named[0]() is module and named[1] == name


def _assigned(buffer: np.ndarray, value: Any) -> np.ndarray:
    """The buffer after `value` is assigned to it: the same memory if the value fits, since others may share it."""
    array = np.asarray(value)
    if array.shape != buffer.shape or array.dtype != buffer.dtype:
        return array
    buffer[...] = array
    return buffer


ForwardPreHook = Callable[["Module", tuple[Any, ...]], tuple[Any, ...]]
ForwardHook = Callable[["Module", tuple[Any, ...], Any], Any]


class Module:
    """A layer or a network. Assigning a Parameter or a Module to an attribute registers it under that name.

    Assigning to a name in use replaces the old value and keeps its position in the order. A module may have several
    names; its weights are then drawn under the first. An array assigned to a buffer is copied into it if shape and
    dtype are the same.
    """

    registrations: ClassVar[int] = 0
    """changes whenever a parameter or a module becomes part of another module in this process, in any thread"""
    training = True
    _parameters: dict[str, Parameter]
    _buffers: dict[str, np.ndarray]
    _initial_buffers: dict[str, np.ndarray]
    _modules: dict[str, Module]
    _parent: tuple[weakref.ref[Module], str] | None  # our parent and our name in it; "" where we are a part of it
    _seed: int | None
    _dtype: np.dtype | None
    _position: Position | None
    _rewritten: int  # how often all values of this network, or of a part, were set
    _before_forward: list[ForwardPreHook]
    _after_forward: list[ForwardHook]
    _computed_by: Callable[..., Any] | None  # (module, *arguments) -> result, instead of forward

    def __init__(self) -> None:
        self.__dict__["_parameters"] = {}
        self.__dict__["_buffers"] = {}
        self.__dict__["_initial_buffers"] = {}
        self.__dict__["_modules"] = {}
        self.__dict__["_parent"] = None
        self.__dict__["_seed"] = None
        self.__dict__["_dtype"] = None
        self.__dict__["_position"] = None
        self.__dict__["_rewritten"] = 0
        self.__dict__["_before_forward"] = []
        self.__dict__["_after_forward"] = []
        self.__dict__["_computed_by"] = None

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"call super().__init__() before assigning {type(self).__name__}.{name}")
        before = self._modules.get(name)
        if not isinstance(value, Parameter):
            self._parameters.pop(name, None)
        if not isinstance(value, Module):
            self._modules.pop(name, None)
        if isinstance(value, Parameter | Module):
            Module.registrations = _next_registration()  # never a number twice: no thread overwrites another's
        if name in self._buffers:
            value = self._buffers[name] = _assigned(self._buffers[name], value)
        if isinstance(value, Parameter):
            self._parameters[name] = value
            if value._owner is None:
                value._owner = (weakref.ref(self), name)
        elif isinstance(value, Module):
            if "_modules" not in value.__dict__:
                raise AttributeError(f"call super().__init__() in {type(value).__name__}.__init__")
            self._modules[name] = value
            if value._parent is None or value._parent[0]() is None:
                value.__dict__["_parent"] = (weakref.ref(self), name)
        object.__setattr__(self, name, value)
        if before is not None and before is not value:
            self._has_left(before, name)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        for registered in (self._parameters, self._buffers, self._initial_buffers):
            registered.pop(name, None)
        before = self._modules.pop(name, None)
        if before is not None:
            self._has_left(before, name)

    def _has_left(self, module: Module, name: str) -> None:
        """A module that is no longer our `name` is named after another place in the network, if it has one."""
        if module._parent is None or module._parent[0]() is not self or module._parent[1] != name:
            return
        _, root = self.path("")
        places = (
            (weakref.ref(parent), other)
            for _, parent in root.named_modules()
            for other, child in parent._modules.items()
            if child is module
        )
        module.__dict__["_parent"] = next(places, None)

    def replace(self, name: str, value: Module | Parameter) -> None:
        """Replaces our module or parameter called `name` by `value`, as assignment does.

        Unlike with assignment, a module that already has a name in a network takes the name of this place.
        """
        if isinstance(value, Module):
            value.__dict__["_parent"] = None
        setattr(self, name, value)

    def register_buffer(self, name: str, array: Any) -> None:
        """Adds the attribute `name`: an array that is state but not a parameter (no gradient, no update).

        It is in the state_dict, and `initialize` resets it to the values given here. KeyError for a name in use.
        """
        if "." in name or hasattr(self, name):
            raise KeyError(f"{type(self).__name__}: {name!r} cannot be the name of a buffer")
        self._buffers[name] = np.array(array)
        self._initial_buffers[name] = np.array(array)
        object.__setattr__(self, name, self._buffers[name])

    # weak references do not survive a copy: the copy's children and parameters are told which module names them
    def __getstate__(self) -> dict[str, Any]:
        named = [name for name, child in self._modules.items() if _is_named_by(child._parent, self, name)]
        named += [name for name, one in self._parameters.items() if _is_named_by(one._owner, self, name)]
        return {**self.__dict__, "_parent": None, "_names_of_own": named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        named = self.__dict__.pop("_names_of_own")
        for name, child in self._modules.items():
            if name in named or child._parent is None:
                child.__dict__["_parent"] = (weakref.ref(self), name)
        for name, parameter in self._parameters.items():
            if name in named or parameter._owner is None:
                parameter._owner = (weakref.ref(self), name)

    # -- names -----------------------------------------------------------------------------------------------------
    def path(self, name: str) -> tuple[str, Module]:
        """The name of our attribute `name` in the whole network (like "fc1.weight"), and the whole network."""
        parts, module = [name], self
        while module._parent is not None and (parent := module._parent[0]()) is not None:
            if module._parent[1]:
                parts.append(module._parent[1])
            module = parent
        return ".".join(reversed(parts)), module

    def place(self, name: str) -> tuple[str, Module]:
        """As `path`, but for the place in which this module is being called, if it has several in the network."""
        parts, module = [name], self
        for caller, called in reversed(frames.open):
            if caller is not module:
                names = caller._modules if called is None else (called,)
                found = next((one for one in names if caller._modules.get(one) is module), None)
                if found is not None:
                    parts.append(found)
                    module = caller
        return module.path(".".join(reversed(parts)))

    def is_part_of(self, network: Module) -> None:
        """Names everything in this module as in `network`, which has the same modules under these names."""
        self.__dict__["_parent"] = (weakref.ref(network), "")

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(name, module) of this module (`prefix`, "") and everything below it, in order of registration."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter), in order of registration; a parameter used twice is listed once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield (f"{prefix}.{name}" if prefix else name), parameter

    def parameters(self) -> list[Parameter]:
        """All parameters, in order of registration."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of every buffer, in order of registration; one used twice is listed once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, array in module._buffers.items():
                if id(array) not in seen:
                    seen.add(id(array))
                    yield (f"{prefix}.{name}" if prefix else name), array

    def buffers(self) -> list[np.ndarray]:
        """All buffers, in order of registration."""
        return [array for _, array in self.named_buffers()]

    # -- values ----------------------------------------------------------------------------------------------------
    @property
    def seed(self) -> int:
        """The seed for weights and masks: that of the whole network, or else that of `manual_seed`."""
        seed = self.path("")[1]._seed if self._seed is None else self._seed
        return default_seed.get() if seed is None else seed

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the weights: that of the whole network, or else that of `set_default_dtype`."""
        dtype = self.path("")[1]._dtype if self._dtype is None else self._dtype
        return default_dtype.get() if dtype is None else dtype

    def initialize(self, seed: int | None = None, dtype: Any = None, fill: bool = True) -> Module:
        """Refills every parameter from (seed, its name), and resets buffers to the values they were registered with.

        Floating-point values get `dtype`. Without this call, or with `fill=False`, parameters are filled on first use.
        Returns self.
        """
        self._rewrite()
        if seed is not None:
            self.__dict__["_seed"] = int(seed)
        if dtype is not None:
            self.__dict__["_dtype"] = checked_dtype(dtype)
        for name, parameter in self.named_parameters() if fill else ():
            values = parameter.draw(self.seed, name, self.dtype)
            if parameter.is_filled and parameter.data.dtype == self.dtype:
                parameter.data[...] = values  # in place: it stays where an optimizer has it
            else:
                parameter.data = values
                # what an optimizer or an all-reduce had set up was for the other type: they will notice
                parameter.grad = parameter.grad_buffer = parameter.flat_gradients = None
        renewed: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by id: the array before, and after
        for _, module in self.named_modules():
            for name, initial in module._initial_buffers.items():
                before = module._buffers[name]
                values = initial.astype(self.dtype if initial.dtype.kind == "f" else initial.dtype)
                setattr(module, name, renewed.get(id(before), (before, values))[1])  # one in two places stays one
                renewed[id(before)] = before, module._buffers[name]
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> copy of the values, for every parameter and then every buffer."""
        state = {name: parameter.data.copy() for name, parameter in self.named_parameters()}
        return state | {name: array.copy() for name, array in self.named_buffers()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets every parameter and buffer from `state`, which has one array per name.

        Names and shapes must match exactly; otherwise KeyError or ValueError says which do not.
        """
        own: dict[str, Parameter | np.ndarray] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unexpected:
            raise KeyError(f"state_dict: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
        for name, values in own.items():
            if isinstance(state[name], np.ndarray | np.generic) and state[name].dtype.kind not in "biuf":
                raise ValueError(f"state_dict: {name} is {state[name].dtype}, expected real numbers")
            if tuple(state[name].shape) != values.shape:
                found, piece = tuple(state[name].shape), ""
                if isinstance(values, Parameter) and values.piece is not None:
                    piece = f", a piece of {values.whole_shape} (see ModelParallel.load_state_dict)"
                raise ValueError(f"state_dict: {name} has shape {found}, expected {values.shape}{piece}")
        self._rewrite()
        for name, values in own.items():
            # () is all of an array, also of one that is still in a file
            (values.data if isinstance(values, Parameter) else values)[...] = state[name][()]

    def _rewrite(self) -> None:
        self.path("")[1].__dict__["_rewritten"] += 1

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    # -- modes -----------------------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> Module:
        """Sets training mode (dropout on) for this module and all below it; returns self."""
        for _, module in self.named_modules():
            object.__setattr__(module, "training", mode)
        return self

    def eval(self) -> Module:
        """Sets evaluation mode (dropout off); returns self."""
        return self.train(False)

    @property
    def position(self) -> Position:
        """The position of the whole network in training, shared by everything in it. See `Position`."""
        _, root = self.path("")
        position = root._position
        if position is None:
            position = root.__dict__["_position"] = Position()
        return position

    def set_position(self, step: int | None, first_sample: Places = 0) -> Module:
        """Sets the update number (`step`) and where in the global batch the next forward pass begins; returns self.

        `first_sample` is the index of its first sample, or an array (samples,) with the index of each. See `Position`.
        """
        position = self.position
        position.step, position.first_sample = step, first_sample
        position.calls.clear()
        return self

    # -- computing -------------------------------------------------------------------------------------------------
    def forward(self, x: Any) -> Any:
        """Computes the output for x; every layer defines it. Call `module(x)`, which also runs the hooks."""
        raise TypeError(f"{type(self).__name__} defines no forward(x)")

    def __call__(self, *arguments: Any) -> Any:
        if self._position is not None and not frames.open:  # the whole network
            self._position.calls.clear()
        within = bool(self._modules)
        if within:
            frames.open.append((self, None))
        try:
            for before in self._before_forward:
                arguments = before(self, arguments)
            computed_by = self._computed_by
            result = self.forward(*arguments) if computed_by is None else computed_by(self, *arguments)
            for after in self._after_forward:
                result = after(self, arguments, result)
            return result
        finally:
            if within:
                frames.open.pop()

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls the submodule `name` with these arguments.

        Unlike a direct call, this tells a module used in several places which of them this is.
        """
        frames.open.append((self, name))
        try:
            return self._modules[name](*arguments)
        finally:
            frames.open.pop()

    def compute_by(self, function: Callable[..., Any]) -> None:
        """Makes `function(self, *arguments)` compute the result, between the hooks, instead of `forward`.

        For a rank's part of a layer: the layer itself stays unchanged, and its forward remains the maths of the whole
        layer.
        """
        self.__dict__["_computed_by"] = function

    def register_forward_pre_hook(self, hook: ForwardPreHook) -> None:
        """Calls `hook(self, arguments)` before each forward; the tuple it returns replaces the arguments."""
        self._before_forward.append(hook)

    def register_forward_hook(self, hook: ForwardHook) -> None:
        """Calls `hook(self, arguments, result)` after each forward; what it returns replaces the result."""
        self._after_forward.append(hook)

    def input_error(self, x: Any, needs: str) -> InputError:
        """The error for an input that does not fit; it names this layer, the shape it got and what it `needs`."""
        name = self.path("")[0].rstrip(".") or type(self).__name__
        return InputError(f"layer {name}: got an input of shape {tuple(x.shape)}, {needs}")

    # -- for people ------------------------------------------------------------------------------------------------
    def describe(self) -> str:
        """The text in the parentheses of this module's repr, like "64 -> 128"."""
        return ""

    def parameter_count(self) -> int:
        """The number of values in all parameters."""
        return sum(parameter.size for parameter in self.parameters())

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}({self.describe()})"]
        if self._modules:
            lines[0] += f"  {number_of(self.parameter_count(), 'parameter')}"
        elif self._parameters:
            shapes = ", ".join(f"{name} {parameter.shape}" for name, parameter in self._parameters.items())
            lines[0] += f"  {shapes}: {number_of(self.parameter_count(), 'parameter')}"
        for name, child in self._modules.items():
            first, *rest = repr(child).splitlines()
            lines += [f"  {name}: {first}", *(f"  {line}" for line in rest)]
        return "\n".join(lines)
