"""The layout given by the flags, or by a file with --layout FILE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parallel_dl import launch
from parallel_dl.cli.flags import LayoutFlags
from parallel_dl.cli.limits import flag_of, require_count
from parallel_dl.cli.splits import parse_splits, plan_for, require_mp
from parallel_dl.cli.stages import stages_for
from parallel_dl.errors import InputError, cut, named, unknown_name
from parallel_dl.launch.limits import MOST_RANKS
from parallel_dl.layout import HYBRIDS, Layout, read_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parallel_dl.nn import Module


def layout_of(flags: LayoutFlags) -> Layout:
    """The layout of the flags, and of the file, if there is one.

    Inside an mpirun, there are as many replicas as its ranks allow, unless --dp is given; with a file, all ranks call
    it together. Raises InputError for a setting given both in the file and by a flag, for invalid settings, and for
    ranks that read different files: one line that names the flag, or the file and its key.
    """
    file = flags.layout_file
    if file is None or not launch.inside_mpirun():
        return _from(flags)
    from parallel_dl.cli.agreement import agreed
    from parallel_dl.mpi import world

    layout = agreed(world(), lambda: _from(flags))  # nodes may have other files of that name, or none
    layouts = world().all_gather_object(layout)

    def equal() -> Layout:
        for rank, other in enumerate(layouts):
            if other != layouts[0]:
                raise InputError(f"--layout {named(file)}: rank {rank} reads a different layout than rank 0")
        return layout

    return agreed(world(), equal)


def _from(flags: LayoutFlags) -> Layout:
    file = flags.layout_file
    given = {
        name: value
        for name, value in vars(flags).items()
        if name != "layout_file" and value is not None and value is not False and value != []
    }
    in_file = {} if file is None else _as_flags(file, "hybrid" in given)
    for name in given:
        if name in in_file:
            raise InputError(f"{flag_of(name)}: is also set in {named(file or '')}, as {_key(name)}; set it only once")
    with in_words_of(file):
        return _layout(LayoutFlags(**{**in_file, **given}))


def _layout(flags: LayoutFlags) -> Layout:
    here = launch.mpirun_size() if launch.inside_mpirun() else 1
    require_hybrid(flags.hybrid, flags.ranks, flags.scheme, flags.variable_batch)
    stages = 1 if flags.pp is None else flags.pp
    if flags.hybrid:
        refuse_beside(flags.hybrid, {"dp": flags.dp, "mp": flags.mp, "pp": flags.pp if stages != 1 else None})
        replicas, model_ranks = flags.ranks or here, 1
    else:
        model_ranks = require_mp(flags.mp, flags.split)
        fitting = max(1, here // (model_ranks * max(1, stages)))
        replicas = fitting if flags.dp is None else flags.dp
    if stages == 1 and flags.schedule is None:
        for field, value in (("stages", flags.stage and flags.stage[0]), ("chunks", flags.chunks)):
            if value is not None:
                said = "needs a pipeline: `pp` N, or `schedule` NAME on one rank"
                raise InputError(said, field, cut(str(value)))
    return Layout(
        dp=replicas,
        mp=model_ranks,
        pp=stages,
        microbatches=max(1, stages) if flags.microbatches is None else flags.microbatches,
        split=parse_splits(flags.split),
        schedule=flags.schedule,
        stages=flags.stage,
        chunks=flags.chunks,
        hybrid=flags.hybrid,
        scheme=flags.scheme or "a",
        variable_batch=flags.variable_batch,
        reproducible=flags.reproducible,
    )


def require_hybrid(
    hybrid: str | None, ranks: int | None, scheme: str | None = None, variable_batch: bool = False
) -> None:
    """Refuses flags that need --hybrid without it; with it, an unknown hybrid and wrong ranks."""
    if hybrid is None:
        for field, value in (("ranks", ranks), ("scheme", scheme), ("variable_batch", variable_batch or None)):
            if value is not None:
                given = None if value is True else cut(str(value))
                raise InputError(f"needs `hybrid` {HYBRIDS[0]}", field, given)
        return
    if hybrid not in HYBRIDS:
        raise unknown_name("`hybrid`", hybrid, HYBRIDS)
    require_count("ranks", ranks, most=MOST_RANKS)


def refuse_beside(hybrid: str, others: Mapping[str, int | None]) -> None:
    """Refuses other numbers of ranks than that of --ranks, with --hybrid."""
    for field, number in others.items():
        if number is not None:
            raise InputError(
                f"cannot be combined with `hybrid` {hybrid}; use --ranks for the number of ranks", field, number
            )


def require_fits(network: Module, input_shape: Sequence[int], layout: Layout) -> None:
    """Refuses (InputError) splits, stages, a hybrid or leaves that this network cannot have.

    It is for samples (*input_shape); with `reproducible` it is cut into leaves, as training does. No MPI is needed.
    """
    if layout.reproducible:
        from parallel_dl.reproducible import cut_into_leaves

        cut_into_leaves(network, input_shape)
    if layout.splits_layers:
        plan_for(network, input_shape, layout.mp, layout.split)
    if layout.hybrid:
        from parallel_dl.splits.cut_at_flatten import cut_at_flatten

        cut_at_flatten(network, input_shape).plan(layout.dp, layout.split, True)
    if layout.is_pipelined:
        name, microbatches = layout.schedule_name, layout.microbatches
        stages_for(network, input_shape, name, layout.pp, microbatches, layout.chunks, layout.stages)


def flags_of_ranks(layout: Layout, name: Callable[[str], str] = "`{}`".format) -> str:
    """What says how many ranks there are, with the values; by default fields as in an `InputError`."""
    if layout.hybrid:
        return f"{name('ranks')} {layout.dp}"
    numbers = {"dp": layout.dp, "mp": layout.mp, "pp": layout.pp}
    return " ".join(f"{name(field)} {n}" for field, n in numbers.items() if n > 1) or f"{name('dp')} 1"


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
