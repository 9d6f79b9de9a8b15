"""The flags of the commands, each once: dataclasses whose fields a command takes as its parameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from parallel_dl.cli.time_limit import TIME_LIMIT

BATCH_SIZE = 64  # unless given

Checked = Annotated[
    bool, typer.Option("--checked", help="Check before each collective that all ranks call the same one.")
]
Seed = Annotated[int, typer.Option(help="Seed for initialization, sample order and dropout.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
NetworkName = Annotated[str, typer.Argument(help="{networks}, or FILE.py:NAME.")]


@dataclass
class SplitFlags:
    """How many ranks share one copy of the network, and how they divide its layers."""

    mp: Annotated[
        int | None, typer.Option("--mp", "--tp", help="Model-parallel ranks, which split each layer. [default: 1]")
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=HOW",
            help="Split a layer across the --mp ranks, as in fc1=output; repeatable. [default: chosen]",
        ),
    ] = None


@dataclass
class PipelineFlags:
    """Which layers are on which rank, and in which order the ranks compute."""

    pp: Annotated[
        int | None, typer.Option("--pp", help="Pipeline ranks, each with some of the layers. [default: 1]")
    ] = None
    schedule: Annotated[
        str | None, typer.Option(help="Pipeline schedule: {schedules}, or FILE.py:NAME. [default: 1f1b]")
    ] = None
    stage: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Start a stage at this layer; repeatable. [default: balance the work]"),
    ] = None
    chunks: Annotated[int | None, typer.Option(help="Stages per rank, for the interleaved schedule. [default: 2]")] = (
        None
    )
    microbatches: Annotated[
        int | None,
        typer.Option(help="Microbatches per batch; their gradients accumulate. [default: 1, or --pp]"),
    ] = None


@dataclass
class HybridFlags:
    """Convolutions data parallel and fully connected layers model parallel, over the same ranks."""

    hybrid: Annotated[
        str | None,
        typer.Option(help="owt (One weird trick): data-parallel convolutions, split fully connected layers."),
    ] = None
    ranks: Annotated[
        int | None, typer.Option(help="Number of ranks, with --hybrid. [default: 1, or mpirun's ranks]")
    ] = None


@dataclass
class ReplicaFlags:
    """A layout in a file, and how many replicas there are."""

    layout_file: Annotated[
        str | None, typer.Option("--layout", metavar="FILE", help="Read the layout from this TOML file.")
    ] = None
    dp: Annotated[
        int | None, typer.Option(help="Data-parallel replicas. [default: 1; inside mpirun, what its ranks allow]")
    ] = None


@dataclass
class LayoutFlags(HybridFlags, PipelineFlags, SplitFlags, ReplicaFlags):
    """How a run uses the ranks; `cli.layout.layout_of` makes a `Layout` of them."""

    scheme: Annotated[str | None, typer.Option(help="How --hybrid exchanges activations: a, b or c. [default: a]")] = (
        None
    )
    variable_batch: Annotated[
        bool,
        typer.Option("--variable-batch", help="With --hybrid, update the fully connected layers after each sub-batch."),
    ] = False
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="Compute the same bits for any --dp, --mp and --pp; slower.")
    ] = False


@dataclass
class TrainingFlags:
    """What to train, on which data and how, and what to report."""

    dataset: Annotated[str, typer.Option(help="{datasets}, a path, or FILE.py:NAME.")] = "digits"
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None
    batch_size: Annotated[int, typer.Option(help="Samples in the global batch.")] = BATCH_SIZE
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 20
    steps: Annotated[int | None, typer.Option(help="Number of updates; overrides --epochs.")] = None
    loss: Annotated[str, typer.Option(help="{losses}, or FILE.py:NAME.")] = "cross-entropy"
    optimizer: Annotated[str, typer.Option(help="{optimizers}, or FILE.py:NAME.")] = "sgd"
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: for sgd the network's, {rates}]")] = None
    momentum: Annotated[float | None, typer.Option(help="Momentum ({momentum}). [default: 0.9]")] = None
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Use Nesterov momentum ({nesterov}).")] = False
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay ({weight_decay}). [default: {decays}]")] = (
        None
    )
    clip_norm: Annotated[
        float | None, typer.Option(help="Clip the global gradient norm to this value. [default: no clipping]")
    ] = None
    lr_policy: Annotated[
        str | None,
        typer.Option(help="constant, step (divide by 10 after each third) or cosine. [default: the network's]"),
    ] = None
    warmup: Annotated[int, typer.Option(help="Number of linear warm-up updates.")] = 0
    seed: Seed = 0
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32"
    allreduce: Annotated[str, typer.Option(help="How to sum gradients: auto, window (shared memory) or mpi.")] = "auto"
    checked: Checked = False
    ledger: Annotated[bool, typer.Option("--ledger", help="Count and print messages and bytes.")] = False
    input_rate: Annotated[
        float | None, typer.Option(help="Simulated arrival rate in samples per second. [default: unlimited]")
    ] = None
    weights: Annotated[str | None, typer.Option(help="Start from the weights in this safetensors file.")] = None
    output: Annotated[str | None, typer.Option(help="Write the weights to this safetensors file.")] = None


@dataclass
class VerifyLayoutFlags(LayoutFlags):
    """A layout, or all layouts of this many ranks."""

    microbatches: Annotated[
        int | None, typer.Option(help="Microbatches per batch. [default: --pp; 4 with --ranks]")
    ] = None
    ranks: Annotated[int | None, typer.Option(help="Verify every layout and schedule on this many ranks.")] = None


@dataclass
class VerifyFlags:
    """What to compare, on which data, and which bugs to plant."""

    everything: Annotated[
        bool, typer.Option("--all", help="Verify all small networks under every kind of layout on 1 to 8 ranks.")
    ] = False
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Plant known bugs; report whether each is caught and named.")
    ] = False
    mutant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Plant only this bug; --mutants lists the names.")
    ] = None
    exact: Annotated[bool, typer.Option("--exact", help="Use whole numbers and compare bit by bit.")] = False
    steps: Annotated[int | None, typer.Option(help="Updates to compare. [default: 5; 1 with --exact]")] = None
    batch_size: Annotated[
        int | None, typer.Option(help="Samples in the global batch. [default: 13; 16 with --exact]")
    ] = None
    loss: Annotated[
        str | None, typer.Option(help="{losses}, or FILE.py:NAME. [default: cross-entropy; mse for targets]")
    ] = None
    optimizer: Annotated[str | None, typer.Option(help="{optimizers}, or FILE.py:NAME. [default: sgd]")] = None
    clip_norm: Annotated[
        float | None, typer.Option(help="Clip the global gradient norm to this value. [default: no clipping]")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed for weights, samples, dropout, and delays under --stress.")] = 0
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64"
    checked: Checked = False
    stress: Annotated[bool, typer.Option("--stress", help="Delay ranks and poison buffers to expose races.")] = False
    time_limit: Annotated[
        float, typer.Option(help="Seconds per layout; then report where each rank waits, and stop.")
    ] = TIME_LIMIT
    dataset: Annotated[str | None, typer.Option(help="A data set, as for train. [default: random samples]")] = None
    data_dir: Annotated[str | None, typer.Option(help="Folder with the data set's files.")] = None


_PerStage = "TIME[,TIME ...]"


@dataclass
class TimingFlags:
    """The times of simulated actions and messages."""

    forward: Annotated[
        str, typer.Option(metavar=_PerStage, help="Time of a forward pass: one number, or one per stage.")
    ] = "1"
    backward_input: Annotated[
        str, typer.Option(metavar=_PerStage, help="Time to compute the gradient of a stage's input.")
    ] = "1"
    backward_weight: Annotated[
        str, typer.Option(metavar=_PerStage, help="Time to compute the gradient of a stage's weights.")
    ] = "1"
    latency: Annotated[float, typer.Option(help="Time per message.")] = 0.0
    message_bytes: Annotated[float, typer.Option("--bytes", help="Bytes per message.")] = 0.0
    bytes_per_second: Annotated[
        float | None, typer.Option(help="Bandwidth in bytes per unit of time. [default: unlimited]")
    ] = None
    eager_limit: Annotated[
        float | None, typer.Option(help="Message size in bytes above which it takes three latencies. [default: none]")
    ] = None
    input_rate: Annotated[
        float | None, typer.Option(help="Arrival rate in microbatches per unit of time. [default: all at the start]")
    ] = None


def taking_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the fields of its dataclass parameters as parameters of its own, as typer wants them."""
    parameters: list[inspect.Parameter] = []
    kinds: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in dataclasses.fields(parameter.annotation)
        ]

    def call(**given: Any) -> Any:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in kinds.items()
        }
        return command(**made, **given)

    functools.update_wrapper(call, command, assigned=("__module__", "__name__", "__doc__"))
    del call.__wrapped__  # type: ignore[attr-defined]  # typer would look at its parameters
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


class NamingCommand(TyperCommand):
    """A command whose help lists names, like "{networks}", which are imported only when help is requested."""

    def format_help(self, *arguments: Any) -> None:
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            if "{" in text:
                parameter.help = text.format_map(_names())  # type: ignore[attr-defined]
        super().format_help(*arguments)


@functools.cache
def _names() -> dict[str, str]:
    """What the help of flags lists: names, and what each update rule takes."""
    from parallel_dl.cli.losses import LOSSES
    from parallel_dl.datasets.sources import NAMES
    from parallel_dl.equivalence.specimens.networks import SPECIMENS
    from parallel_dl.networks import NETWORKS
    from parallel_dl.optim import by_name
    from parallel_dl.schedule import SCHEDULES

    rules = by_name.RULES
    rates = {name: by_name.default_rate(name) for name in rules if name != "sgd"}
    decays = {name: by_name.default_of(rule, "weight_decay") for name, rule in rules.items()}
    names: dict[str, Any] = {
        "networks": NETWORKS,
        "specimens": SPECIMENS,
        "schedules": SCHEDULES,
        "datasets": NAMES,
        "losses": LOSSES,
        "optimizers": rules,
        **{flag: [name for name, rule in rules.items() if by_name.takes(rule, flag)] for flag in by_name.FLAGS},
        "rates": [f"{name} {rate:g}" for name, rate in rates.items()],
        "decays": ["0", *(f"{name} {decay:g}" for name, decay in decays.items() if decay)],
    }
    return {key: ", ".join(listed) for key, listed in names.items()}
