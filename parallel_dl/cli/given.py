"""Which options were given, even with their default values; options that another one would ignore are refused."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from parallel_dl.errors import InputError, shown

if TYPE_CHECKING:
    import typer


def is_given(context: typer.Context, name: str) -> bool:
    """Whether this parameter of the command is on its command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def require_only(context: typer.Context, taken: Container[str], whole: str) -> None:
    """Refuses (InputError) the first option or argument that is given but not in `taken`: `whole` would ignore it."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in taken and is_given(context, name):
            is_option = parameter.param_type_name == "option"
            flag = parameter.opts[0] if is_option else f"{name.upper()} {shown(context.params[name])}"
            raise InputError(f"{flag}: cannot be combined with {whole}")
