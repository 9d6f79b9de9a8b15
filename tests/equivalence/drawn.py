"""Random layouts of random networks: Hypothesis draws and shrinks on rank 0, and all ranks run each example in step."""

import dataclasses
import traceback
from typing import Any

import numpy as np

from parallel_dl import nn, optim
from parallel_dl.equivalence import synthetic_experiment
from parallel_dl.equivalence.runs.replayed import program_of
from parallel_dl.equivalence.specimens.layouts import is_possible
from parallel_dl.equivalence.verify import reference_of, reference_of_program, verify_one
from parallel_dl.errors import InputError
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh
from parallel_dl.partition import LEAVES
from parallel_dl.schedule import SCHEDULES
from parallel_dl.splits.rule import ways_of

CLASSES = 3
NOISE = 1e-12  # above it rounding has grown so much that little can be said: nearly equal samples in a batch norm
ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
OPTIMIZERS = {
    "sgd": lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, 1e-2),
    "lars": lambda parameters: optim.LARS(parameters, 1.0, weight_decay=1e-3),
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An example, in words that build it again: give what is printed to `check`."""

    shape: tuple[int, ...]
    layers: tuple[tuple[Any, ...], ...]
    layout: dict[str, Any]
    batch_size: int = 5
    optimizer: str = "sgd"
    seed: int = 0

    def network(self):
        """Serial, its weights not drawn yet; InputError for layers that do not fit together."""
        shape, layers = self.shape, []
        for spec in self.layers:
            layers += layer_of(spec, shape)
            shape = nn.output_shape(nn.Sequential(*layers), self.shape)
        if len(shape) > 1:
            layers.append(nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(int(np.prod(shape)), CLASSES))


def layer_of(spec, shape):
    """The layers that a specification means, for samples of this shape: usually one."""
    kind, *rest = spec
    match kind:
        case "conv":
            after, kernel, stride, padding, dilation, groups, bias = rest
            return [nn.Conv2d(shape[0], after, kernel, stride, padding, dilation, groups, bias=bias)]
        case "linear":
            return [nn.Linear(shape[-1], rest[0])]
        case "twice":  # one layer in two places
            again = nn.Linear(shape[-1], shape[-1]) if len(shape) == 1 else nn.Conv2d(shape[0], shape[0], 3, padding=1)
            between = ACTIVATIONS[rest[0]]()
            return [nn.Sequential(again, between, again)] if rest[1] else [again, between, again]
        case "pool":
            return [(nn.MaxPool2d if rest[0] == "max" else nn.AvgPool2d)(*rest[1:])]
        case "global":
            return [nn.GlobalAvgPool2d()]
        case "flatten":
            return [nn.Flatten()]
        case "batch":
            return [(nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(shape[0], affine=rest[0])]
        case "layer norm":
            return [nn.LayerNorm(shape[-1])]
        case "response":
            return [nn.LocalResponseNorm(rest[0], 0.5)]
        case "drop":
            return [nn.Dropout(rest[0])]
        case "branches":
            join, *parts = rest
            return [
                nn.Branches(
                    *(nn.Sequential(*[one for s in part for one in layer_of(s, shape)]) for part in parts), join=join
                )
            ]
    return [ACTIVATIONS[kind]()]


# -- the same on all ranks -----------------------------------------------------------------------------------------
def check(comm, drawn):
    """What is wrong with an example, if anything, the same on every rank; the second word is why it was skipped."""
    try:
        network, layout = drawn.network(), Layout(**drawn.layout)
        possible = is_possible(layout, network, drawn.shape)
    except InputError:
        possible = False
    if not possible:
        return None, "refused"
    experiment = synthetic_experiment(
        drawn.network, drawn.shape, CLASSES, drawn.batch_size, 2, drawn.seed, make_optimizer=OPTIMIZERS[drawn.optimizer]
    )
    reference = why = None
    if comm.rank == 0:
        try:
            program = program_of(network, layout)
            reference = (
                reference_of(experiment, layout.microbatches)
                if program is None
                else reference_of_program(experiment, layout)
            )
            why = "ill-conditioned" if not reference.noise <= NOISE or cancels(reference.run) else None
        except InputError as error:  # a batch norm of one sample
            why = str(error)
    why = comm.broadcast_object(why)
    if why is not None:
        return None, why
    mesh = Mesh(comm, pipe=layout.pp, data=layout.dp, model=layout.mp)
    said = refused = None
    try:
        cell = verify_one("drawn", experiment, layout, mesh, reference)
        if cell is not None and not cell.equal:
            said = (
                cell.divergence["text"] if cell.divergence else f"{cell.worst['quantity']}: {cell.worst['error']:.1e}"
            )
    except InputError as error:
        refused = str(error)
    except Exception:
        said = traceback.format_exc()
    mesh.free()
    told = comm.all_gather_object((said, refused))
    if all(refused is not None for _, refused in told):
        return None, told[0][1]
    wrong = next((said or f"refused by some ranks: {refused}" for said, refused in told if said or refused), None)
    return wrong, None


def cancels(run):
    """Whether the gradient of some weight is zero in theory for each sample by itself.

    (As that of a bias before a layer norm.) What is left is rounding, of which the sums over samples say nothing.
    """
    for step in run.magnitudes:
        largest = [array.max(initial=0) for array in step["gradients"].values()]
        if any(0 < value < NOISE * max(largest) for value in largest):
            return True
    return False


def explore(comm, examples, seed):
    """Draws so many examples on rank 0 and runs each on all; how many were compared. AssertionError: the smallest one.

    All ranks call it together.
    """
    if comm.rank:
        while (drawn := comm.broadcast_object(None)) is not None:
            check(comm, drawn)
        return comm.broadcast_object(None)

    import hypothesis

    compared = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategy(comm.size))
    def equals_serial(drawn):
        nonlocal compared
        comm.broadcast_object(drawn)
        wrong, why = check(comm, drawn)
        compared += wrong is None and why is None
        assert wrong is None, (
            f"check(comm, {drawn}) on {comm.size} ranks, of explore(comm, {examples}, {seed}): {wrong}"
        )

    try:
        equals_serial()
    finally:
        comm.broadcast_object(None)
        comm.broadcast_object(compared)
    return compared


def kinds_of_layouts(ranks):
    """As keyword arguments of `Layout`; several times what few networks can have."""
    divisors = [number for number in range(1, ranks + 1) if ranks % number == 0]
    products = [(dp, mp, ranks // dp // mp) for dp in divisors for mp in divisors if ranks % (dp * mp) == 0]
    plain = [{"dp": dp, "mp": mp, "pp": pp} for dp, mp, pp in products]
    hybrids = [{"dp": ranks, "hybrid": "owt", "scheme": scheme} for scheme in "abc"]
    variable = [{**hybrid, "variable_batch": True} for hybrid in hybrids[1:]]
    reproducible = [{**kind, "reproducible": True} for kind in plain] if LEAVES % ranks == 0 else []
    pipelines = [kind for kind in plain if kind["pp"] > 1]
    return [*plain, *pipelines, *pipelines, *plain, *hybrids, *hybrids, *variable, *variable, *reproducible]


# -- what is drawn -------------------------------------------------------------------------------------------------
def strategy(ranks):
    """Examples for so many ranks; small ones first when they shrink."""
    from hypothesis import strategies as st

    kinds = kinds_of_layouts(ranks)

    def fitting(draw, shape, image):
        """A specification for samples of this shape."""
        kinds = ["act", "act", "drop", "layer norm"]
        if len(shape) == 1:
            kinds += ["linear", "linear", "twice", "batch", "branches"]
        elif image:
            kinds += ["conv", "conv", "conv", "pool", "batch", "response", "branches", "twice", "global"]
        kind = draw(st.sampled_from(kinds))
        if kind == "act":
            return (draw(st.sampled_from(sorted(ACTIVATIONS))),)
        if kind == "drop":
            return kind, draw(st.sampled_from((0.2, 0.5)))
        if kind == "linear":
            return kind, draw(st.integers(1, 7))
        if kind == "twice":
            return kind, draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.booleans())
        if kind == "batch":
            return kind, draw(st.booleans())
        if kind == "response":
            return kind, draw(st.integers(1, 5))
        if kind == "pool":
            kernel = draw(st.integers(1, 3))
            return (
                kind,
                draw(st.sampled_from(("avg", "max"))),
                kernel,
                draw(st.integers(1, 3)),
                draw(st.integers(0, kernel // 2)),
            )
        if kind == "conv":
            groups = draw(st.sampled_from([n for n in (1, 2, 4) if shape[0] % n == 0]))
            kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            padding = draw(st.integers(0, min(2, (kernel - 1) * dilation)))
            after = groups * draw(st.integers(1, 4))
            return kind, after, kernel, draw(st.integers(1, 2)), padding, dilation, groups, draw(st.booleans())
        if kind == "branches":
            join = draw(st.sampled_from(("sum", "concatenate")))
            parts = []
            for _ in range(draw(st.integers(2, 3))):
                after = shape[0] if join == "sum" else draw(st.integers(1, 3))
                part = [("linear", after)] if len(shape) == 1 else [("conv", after, 3, 1, 1, 1, 1, True)]
                part += [(draw(st.sampled_from(sorted(ACTIVATIONS))),)] * draw(st.booleans())
                parts.append(tuple(part))
            if join == "sum" and draw(st.booleans()):
                parts[0] = ()
            return kind, join, *parts
        return (kind,)

    @st.composite
    def examples(draw):
        image = draw(st.booleans())
        shape = (draw(st.integers(1, 6)),)
        if image:
            shape = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
        layers, now = [], shape
        for _ in range(draw(st.integers(0, 8))):
            if len(now) == 3 and draw(st.integers(0, 4)) == 4:
                spec = ("flatten",)
            else:
                spec = fitting(draw, now, len(now) == 3)
            try:
                after = nn.output_shape(nn.Sequential(*layer_of(spec, now)), now)
            except InputError:
                continue  # larger than the image
            layers.append(spec)
            now = after
        drawn = Drawn(shape, tuple(layers), {})
        layout = draw(layouts(drawn))
        optimizer = draw(st.sampled_from(sorted(OPTIMIZERS, reverse=True)))
        if layout.get("reproducible") and optimizer == "lars":
            optimizer = "sgd"
        return dataclasses.replace(
            drawn, layout=layout, batch_size=draw(st.integers(1, 9)), optimizer=optimizer, seed=draw(st.integers(0, 3))
        )

    @st.composite
    def layouts(draw, drawn):
        """Of those that this network can have."""
        network = drawn.network()
        able = [kind for kind in kinds if is_possible(Layout(**kind), network, drawn.shape)]
        found = dict(draw(st.sampled_from(able)))
        if "hybrid" in found:
            return found
        found["microbatches"] = draw(st.integers(1, 4))
        if found.get("pp", 1) > 1 and not found.get("reproducible"):
            found["schedule"] = draw(st.sampled_from(sorted(SCHEDULES)))
        if found.get("mp", 1) > 1 and draw(st.integers(0, 3)):
            split = {}
            for passed in nn.layer_shapes(network, drawn.shape):
                ways = list(ways_of(passed.layer))
                if ways and draw(st.booleans()):
                    split[passed.name] = draw(st.sampled_from(ways))
            found["split"] = split
        return found

    return examples()
