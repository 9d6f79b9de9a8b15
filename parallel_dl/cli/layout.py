"""The flags that say how a run uses the ranks, and --layout FILE, which says the same in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_dl import launch
from parallel_dl.cli.hybrid import Hybrid, Ranks, Scheme, VariableBatch, require_halves, require_hybrid
from parallel_dl.cli.limits import flag_of
from parallel_dl.cli.splits import Mp, Split, parse_splits, plan_for, require_mp
from parallel_dl.cli.stages import stages_for
from parallel_dl.errors import InputError, cut, named
from parallel_dl.layout import Layout, read_keys
from parallel_dl.schedule import SCHEDULES

if TYPE_CHECKING:
    from parallel_dl.nn import Module

Dp = Annotated[
    int | None, typer.Option("--dp", help="Data-parallel replicas. [default: 1, or what mpirun's ranks allow]")
]
Pp = Annotated[int | None, typer.Option("--pp", help="Ranks in a pipeline, each with some of the layers. [default: 1]")]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", help=f"Of the pipeline: {', '.join(SCHEDULES)}. [default: 1f1b]"),
]
Stage = Annotated[
    list[str] | None,
    typer.Option("--stage", metavar="LAYER", help="A layer that begins a stage; repeatable. [default: even work]"),
]
Chunks = Annotated[int | None, typer.Option("--chunks", help="Stages per rank, for interleaved. [default: 2]")]
Microbatches = Annotated[
    int | None,
    typer.Option("--microbatches", help="Pieces of a batch, their gradients accumulated. [default: 1, or --pp]"),
]
LayoutFile = Annotated[
    str | None, typer.Option("--layout", metavar="FILE", help="A TOML file that says what these flags say.")
]

Reproducible = Annotated[
    bool, typer.Option("--reproducible", help="The same bits for every --dp, --mp and --pp; takes longer.")
]

__all__ = [
    "Chunks",
    "Dp",
    "Hybrid",
    "LayoutFile",
    "Microbatches",
    "Mp",
    "Pp",
    "Ranks",
    "Reproducible",
    "Schedule",
    "Scheme",
    "Split",
    "Stage",
    "VariableBatch",
    "flags_of_ranks",
    "in_words_of",
    "layout_of",
    "require_fits",
]


def layout_of(
    layout_file: str | None = None,
    *,
    dp: int | None = None,
    mp: int | None = None,
    split: Sequence[str] | None = None,
    pp: int | None = None,
    schedule: str | None = None,
    stage: Sequence[str] | None = None,
    chunks: int | None = None,
    microbatches: int | None = None,
    hybrid: str | None = None,
    ranks: int | None = None,
    scheme: str | None = None,
    variable_batch: bool = False,
    reproducible: bool = False,
) -> Layout:
    """The layout of the flags, each with the value that typer gave it, and of the file, if there is one.

    Inside an mpirun there are as many replicas as its ranks allow, unless `dp` says it, and with a file all ranks call
    it together. Raises InputError for what is in the file and in a flag, for what cannot be, and for ranks that read
    different files: one line that names the flag, or the file and its key.
    """
    given: dict[str, Any] = {
        "dp": dp,
        "mp": mp,
        "split": split or None,
        "pp": pp,
        "schedule": schedule,
        "stage": stage or None,
        "chunks": chunks,
        "microbatches": microbatches,
        "hybrid": hybrid,
        "ranks": ranks,
        "scheme": scheme,
        "variable_batch": variable_batch or None,
        "reproducible": reproducible or None,
    }
    flags = {name: value for name, value in given.items() if value is not None}
    if layout_file is None or not launch.inside_mpirun():
        return _from(layout_file, flags)
    from parallel_dl.cli.agreement import agreed
    from parallel_dl.mpi import world

    layout = agreed(world(), lambda: _from(layout_file, flags))  # nodes may have other files of that name, or none
    layouts = world().all_gather_object(layout)

    def equal() -> Layout:
        for rank, other in enumerate(layouts):
            if other != layouts[0]:
                raise InputError(f"--layout {named(layout_file)}: rank {rank} finds another layout there than rank 0")
        return layout

    return agreed(world(), equal)


def _from(layout_file: str | None, flags: dict[str, Any]) -> Layout:
    in_file = {} if layout_file is None else _as_flags(layout_file, "hybrid" in flags)
    for name in flags:
        if name in in_file:
            raise InputError(
                f"{flag_of(name)}: is also in {named(layout_file or '')}, as {_key(name)}; give it only once"
            )
    with in_words_of(layout_file):
        return _layout(**{**in_file, **flags})


def _layout(
    dp: int | None = None,
    mp: int | None = None,
    split: Sequence[str] | None = None,
    pp: int | None = None,
    schedule: str | None = None,
    stage: Sequence[str] | None = None,
    chunks: int | None = None,
    microbatches: int | None = None,
    hybrid: str | None = None,
    ranks: int | None = None,
    scheme: str | None = None,
    variable_batch: bool = False,
    reproducible: bool = False,
) -> Layout:
    here = launch.mpirun_size() if launch.inside_mpirun() else 1
    require_hybrid(hybrid, ranks, {"dp": dp, "mp": mp, "pp": pp if pp != 1 else None}, scheme, variable_batch)
    model_ranks = 1 if hybrid else require_mp(mp, split)
    stages = 1 if pp is None else pp
    if hybrid:
        dp = ranks or here
    if dp is None:
        dp = max(1, here // (model_ranks * max(1, stages)))
    if stages == 1 and schedule is None:
        for flag, value in (("stages", stage and stage[0]), ("chunks", chunks)):
            if value is not None:
                raise InputError("belongs to a pipeline: `pp` N, or `schedule` NAME on one rank", flag, cut(str(value)))
    return Layout(
        dp=dp,
        mp=model_ranks,
        pp=stages,
        microbatches=max(1, stages) if microbatches is None else microbatches,
        split=parse_splits(split),
        schedule=schedule,
        stages=stage,
        chunks=chunks,
        hybrid=hybrid,
        scheme=scheme or "a",
        variable_batch=variable_batch,
        reproducible=reproducible,
    )


def require_fits(network: Module, input_shape: Sequence[int], layout: Layout) -> None:
    """Refuses (InputError), by the name of the flag, splits, stages or halves that this network cannot have.

    It is for samples (*input_shape). No MPI is needed.
    """
    if layout.splits_layers:
        plan_for(network, input_shape, layout.mp, layout.split)
    if layout.hybrid:
        require_halves(network, input_shape, layout)
    if layout.is_pipelined:
        name, microbatches = layout.schedule_name, layout.microbatches
        stages_for(network, input_shape, name, layout.pp, microbatches, layout.chunks, layout.stages)


def flags_of_ranks(layout: Layout) -> str:
    """The flags that say how many ranks there are, with their values."""
    if layout.hybrid:
        return f"--ranks {layout.dp}"
    numbers = {"dp": layout.dp, "mp": layout.mp, "pp": layout.pp}
    return " ".join(f"--{flag} {n}" for flag, n in numbers.items() if n > 1) or "--dp 1"


@contextmanager
def in_words_of(layout_file: str | None) -> Iterator[None]:
    """What is refused inside, for a flag that was given as a key of the file, speaks of the file and the key."""
    try:
        yield
    except InputError as error:
        if layout_file is None:
            raise
        keys = read_keys(layout_file)
        line = error.spoken(lambda field: _key(field) if _key(field) in keys else flag_of(field))
        about_file = error.field is not None and _key(error.field) in keys
        raise InputError(f"{named(layout_file)}: {line}" if about_file else line) from None


def _as_flags(layout_file: str, hybrid: bool = False) -> dict[str, Any]:
    """The keys of the file as flags with their values; `hybrid` says whether a flag asks for one."""
    keys = read_keys(layout_file)
    flags = {"stage" if key == "stages" else key: value for key, value in keys.items()}
    if "split" in flags:
        flags["split"] = [f"{layer}={how}" for layer, how in flags["split"].items()]
    if "dp" in flags and (hybrid or "hybrid" in flags):
        flags["ranks"] = flags.pop("dp")
    return flags


def _key(field: str) -> str:
    """The key of a file that says what the flag says."""
    return {"stage": "stages", "ranks": "dp"}.get(field, field)
