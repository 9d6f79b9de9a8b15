"""Turns a serial network into this rank's part of it, and converts between whole weights and shards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_dl import nn, splits
from parallel_dl.autograd import Tensor, is_grad_enabled
from parallel_dl.errors import InputError
from parallel_dl.mesh import Placement, Shape, Shard
from parallel_dl.model_parallel.axis import ModelAxis
from parallel_dl.model_parallel.carry_out import carry_out, cut, cut_buffer, same_again, separate
from parallel_dl.mpi import Communicator
from parallel_dl.splits.loss import Loss, is_summand, of_classes, of_samples, takes_slices
from parallel_dl.whole import DividedNetwork

Arrays = dict[str, np.ndarray]


class ModelParallel(DividedNetwork):
    """The result of `parallelize`: the network's `plan`, and conversions between whole weights and this rank's shards.

    `network` is this rank's part. The methods are collective over `comm`, the ranks of the model axis.
    """

    def __init__(self, network: nn.Module, plan: splits.Plan, comm: Communicator) -> None:
        super().__init__(network, plan.weights(), comm)
        self.plan, self.comm = plan, comm
        self.axis = ModelAxis(comm)

    def __repr__(self) -> str:
        ways = ", ".join(f"{name}={way}" for name, way in self.plan.splits.items()) or "nothing split"
        return f"ModelParallel(rank {self.comm.rank} of {self.comm.size}, {ways})"

    @property
    def partial(self) -> list[nn.Parameter]:
        """The weights whose gradients are summands on each rank; `GradientAllReduce` sums them over the ranks."""
        return [parameter for parameter in self.network.parameters() if parameter.is_partial]

    # -- the loss --------------------------------------------------------------------------------------------------
    @property
    def _classes(self) -> tuple[int, ...] | None:
        """The number of scores that each rank has, if they are split by class."""
        split = self.plan.output.shard(1)
        return None if split is None else split.sizes

    @property
    def _has_share(self) -> bool:
        """Whether each rank has the outputs of its share of the samples."""
        return splits.is_along_samples(self.plan.output)

    def loss(self, loss: Loss) -> Loss:
        """`loss` for the network's outputs on this rank: a slice of the scores, or a share of the samples.

        InputError for a loss that takes no slices, unless it was passed to `parallelize`.
        """
        if self._has_share:
            return of_samples(loss, self.axis.own_samples)
        if self._classes is None:
            return loss
        if not takes_slices(loss):
            raise InputError(
                f"the scores are split by class, which {getattr(loss, '__name__', loss)} cannot take: "
                "pass it to parallelize(..., loss=...), and they are gathered"
            )
        return split_loss(loss, self._classes, self.comm.labelled("loss"))

    def whole_loss(self, loss: Loss, value: np.ndarray) -> np.ndarray:
        """The loss of this replica's samples, on all its ranks, from each rank's value of `self.loss(loss)`."""
        if self._has_share or (self._classes is not None and is_summand(loss)):
            return self.comm.labelled("report").all_reduce(np.asarray(value))
        return value

    def whole_output(self, output: np.ndarray) -> np.ndarray:
        """The network's whole output (n, ...), from each rank's part of it."""
        (state,) = self.plan.output.states if len(self.plan.output.mesh) == 1 else (None,)
        if not isinstance(state, Shard):
            return output
        length = self.axis.samples if state.axis == 0 else 0
        sizes = state.sizes_of(length, self.comm.size)
        return self.comm.labelled("output").all_gather(output, state.axis, sizes)

    def activation_shape(self, name: str, samples: int) -> Shape:
        """This rank's shape for this many samples before the layer `name`, a child of the network but not the first."""
        children = list(self.network._modules)
        return self.plan.shape_after(children[children.index(name) - 1], self.comm.rank, samples)

    def expect(self, samples: int) -> None:
        """Says how many samples the next forward pass has, all ranks' together; the network's own input says it too."""
        self.axis.samples = samples

    def ensure_root(self, output: Any) -> Tensor:
        """The output, such that backward can start from it even on a rank whose weights do not contribute.

        Such a rank has none of the filters or towers, but the others wait for it in backward.
        """
        if not is_grad_enabled() or (isinstance(output, Tensor) and output.requires_grad):
            return output
        return Tensor(output.data if isinstance(output, Tensor) else output, requires_grad=True)

    def require(self, network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Raises InputError for samples of another shape than the network was divided for: tiles would differ."""
        if tuple(arguments[0].shape[1:]) != self.plan.input_shape:
            shape = ", ".join(map(str, self.plan.input_shape))
            raise network.input_error(arguments[0], f"but it is divided for samples of ({shape})")
        self.expect(len(arguments[0]))
        return arguments

    def replicated(self, layers: Collection[str] | None = None) -> Arrays:
        """Name -> values of what every rank has in full, and what must be the same on all of them.

        `layers` takes only those children of the network: weights that are in no stage of this rank are never drawn.
        """
        children = self.network._modules if layers is None else layers
        return {
            f"{child}.{name}": array
            for child in children
            for name, array in self.network._modules[child].state_dict().items()
            if self.shard(f"{child}.{name}") is None
        }

    def free(self) -> None:
        """Frees the communicators that were made (collective)."""
        self.axis.free()


def parallelize(
    network: nn.Module,
    comm: Communicator,
    input_shape: Sequence[int],
    splits_by_name: Mapping[str, str] | None = None,
    loss: Loss = nn.cross_entropy,
    partial_input: bool = False,
) -> ModelParallel:
    """Turns a serial network for samples (*input_shape), in place, into the part that this rank of `comm` computes.

    `splits_by_name` is that of `splits.plan`; None takes the default. Afterwards, all ranks of `comm` call the network
    together, with the same x (n, *input_shape), and get the whole output; if the last layer is split by its output and
    `loss` takes slices of it (`losses.takes_slices`), each rank gets its slice, for `ModelParallel.loss`. Names do not
    change. Weights that have not been drawn yet are drawn as shards: no rank ever has more. `partial_input` is that of
    `splits.plan`: for an x whose gradient the caller sums.

    It replaces the parameters: make optimizers and `GradientAllReduce` from `network.parameters()` afterwards. Raises
    InputError as `splits.plan` does, for a network that is already split or whose weights are in an optimizer, and if
    the ranks start from different seeds, weights or splits.
    """
    _require_untouched(network)
    separate(network)
    plan = splits.plan(network, input_shape, comm.size, splits_by_name, takes_slices(loss), partial_input)
    _require_same_start(network, plan, comm)
    result = ModelParallel(network, plan, comm)
    cuts: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # id -> the whole one, so that it is no other's, our shard
    buffers: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the same
    first_places = {id(step.layer): step.layer._parent for step in plan.steps}
    places = Counter(id(step.layer) for step in plan.steps)
    for step in plan.steps:
        layer = step.layer
        if places[id(layer)] > 1:
            layer = same_again(layer)  # in each of its places it makes other moves
            parent, name = _place(network, step.name)
            parent.replace(name, layer)
            layer.__dict__["_parent"] = first_places[id(step.layer)]  # of several places it has the name of the first
        for name, placement in step.weights.items():
            _cut_weight(step, layer, name, placement, comm.rank, cuts, buffers)
        carry_out(step, layer, result.axis, step.name)
    network.register_forward_pre_hook(result.require)
    network.register_forward_hook(lambda network, arguments, output: result.ensure_root(output))
    return result


def split_loss(loss: Loss, sizes: Sequence[int], comm: Communicator) -> Loss:
    """`loss`, one of `TAKE_SLICES`, for scores (n, own) of which each rank of `comm` has `sizes[rank]` classes."""
    return of_classes(loss, tuple(sizes), comm.rank, comm.all_reduce)


def require_serial(network: nn.Module) -> None:
    """Raises InputError for a network that is already split."""
    hooks = [hook for _, module in network.named_modules() for hook in module._before_forward]
    if any(isinstance(getattr(hook, "__self__", None), ModelParallel) for hook in hooks):
        raise InputError("this network is split already: give a serial one")


def _require_untouched(network: nn.Module) -> None:
    """Raises InputError for a network that is already split, or whose weights an optimizer or an all-reduce holds."""
    require_serial(network)
    for name, parameter in network.named_parameters():
        if parameter.flat is not None or parameter.flat_gradients is not None:
            raise InputError(
                f"parallelize replaces the weights, but {name} is already in an optimizer or a GradientAllReduce: "
                "call parallelize first, then make these from network.parameters()"
            )


def _require_same_start(network: nn.Module, plan: splits.Plan, comm: Communicator) -> None:
    """Raises InputError on all ranks unless their plan, seed, dtype and drawn weights are the same."""
    filled = hashlib.sha256()
    for name, parameter in network.named_parameters():
        if parameter.is_filled:
            filled.update(f"{name} {parameter.data.dtype}".encode())
            filled.update(np.ascontiguousarray(parameter.data).data)
    facts = {
        "splits": f"{plan.splits} of {plan.input_shape}",
        "seed": network.seed,
        "dtype": str(network.dtype),
        "weights": filled.hexdigest(),
    }
    first, *others = comm.all_gather_object(facts)
    for rank, of_rank in enumerate(others, start=1):
        for what, value in first.items():
            if of_rank[what] != value:
                raise InputError(
                    f"ranks that share a network must start alike, but {what}: rank {rank} differs from rank 0"
                )


def _place(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    *outer, last = name.split(".")
    parent = network
    for child in outer:
        parent = parent._modules[child]
    return parent, last


def _cut_weight(
    step: splits.Step,
    layer: nn.Module,
    name: str,
    placement: Placement,
    rank: int,
    cuts: dict[int, tuple[nn.Parameter, nn.Parameter]],
    buffers: dict[int, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Replaces the layer's whole weight or buffer `name` by this rank's shard."""
    *inner, last = name.split(".")
    for child in inner:  # in a layer of the user's own
        layer = layer._modules[child]
    if last in layer._buffers:
        cut_buffer(layer, last, placement, rank, buffers)
        return
    whole = layer._parameters[last]
    if whole.piece is not None:  # in an earlier place of the same layer
        return
    if id(whole) not in cuts:
        cuts[id(whole)] = whole, cut(whole, placement, rank)
    own = cuts[id(whole)][1]
    serial = step.layer if not inner else layer
    for one in (layer, serial):  # the plan knows the serial layer: it is not to keep whole weights
        if own is not whole:
            one.replace(last, own)
