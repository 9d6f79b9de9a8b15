"""`parallel-dl`: reads the command, and turns bad input into one line and exit status 2."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from typing import Annotated, Any

import typer
import typer.core

import parallel_dl
from parallel_dl import interrupts
from parallel_dl.cli.compare import compare
from parallel_dl.cli.demo import demo
from parallel_dl.cli.diff import diff
from parallel_dl.cli.fetch import fetch
from parallel_dl.cli.flags import NamingCommand
from parallel_dl.cli.info import info
from parallel_dl.cli.limits import flag_of
from parallel_dl.cli.plan import plan
from parallel_dl.cli.run import run
from parallel_dl.cli.schedule import schedule
from parallel_dl.cli.summary import summary
from parallel_dl.cli.train import train
from parallel_dl.cli.verify import verify
from parallel_dl.errors import MOST_OF_VALUE, InputError, bounded, named, shown
from parallel_dl.launch import inside_mpirun, mpirun_rank, rank, tracebacks
from parallel_dl.launch.streams import Printed, lost_output, occupy_closed

_EXTRA = re.compile(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", re.DOTALL)
_MPIRUN_SECONDS = 1.0  # for rank 0 to have its say, where MPI cannot tell when it has


class _Interrupted(Exception):
    """SIGINT while a command ran: typer would turn KeyboardInterrupt into a status and say nothing."""


class _Commands(typer.core.TyperGroup):
    """The commands; an interruption is reported in one line, and their help has whole sentences."""

    def format_commands(self, context: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(command.help)) for name, command in commands if command])

    def invoke(self, context: Any) -> Any:
        try:
            with interrupts.raised():
                return super().invoke(context)
        except KeyboardInterrupt:
            raise _Interrupted from None


app = typer.Typer(
    name="parallel-dl",
    cls=_Commands,
    help="Parallel deep learning on NumPy and MPI.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=NamingCommand)(train)
app.command(cls=NamingCommand)(summary)
app.command(cls=NamingCommand)(plan)
app.command(cls=NamingCommand)(schedule)
app.command(cls=NamingCommand)(verify)
app.command()(compare)
app.command()(demo)
app.command()(diff)
app.command()(info)
app.command()(fetch)
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(run)


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _version(show: bool) -> None:
    if show:
        print(parallel_dl.__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for a failure, 2 for bad input or lost output."""
    occupy_closed()
    given, given_errors = sys.stdout, sys.stderr
    encoding = getattr(given, "encoding", None) or "utf-8"
    output: Any = io.TextIOWrapper(rank.Result(), encoding, write_through=True) if rank.connected() else given
    sys.stderr = Printed(given_errors)
    sys.stdout = printed = Printed(output, sys.stderr)
    try:
        status, message = _run(sys.argv[1:] if arguments is None else arguments)
        with contextlib.suppress(BrokenPipeError):
            printed.flush()
        lines = [] if message is None else [message]
        if isinstance(printed.error, BrokenPipeError):
            status = status or 1
        elif printed.error is not None:
            status = status or 2
            lines.append(lost_output(printed.error))
            _leave_mpi()
        _say([f"parallel-dl: {bounded(line)}" for line in lines], status)
        return status
    finally:
        with contextlib.suppress(BrokenPipeError):
            printed.flush()
        sys.stdout, sys.stderr = given, given_errors


def _leave_mpi() -> None:
    """Lets this rank end with a status of its own without ending the others: everything has been computed."""
    if "parallel_dl.mpi" in sys.modules:
        from parallel_dl.mpi.abort import leave

        leave()


def _say(lines: list[str], status: int) -> None:
    """Prints the last lines on stderr; under our launcher, the launcher does so, once for all ranks."""
    text = "\n".join(lines)
    if rank.connected():
        rank.complete(status, text or None)
    elif lines and inside_mpirun():
        _say_on_one_rank(text)
    elif lines:
        print(text, file=sys.stderr, flush=True)


def _run(arguments: list[str]) -> tuple[int, str | None]:
    """The exit status, and a line about it if there is one."""
    if not arguments:
        app(args=["--help"], prog_name="parallel-dl", standalone_mode=False)
        return 2, None
    try:
        # typer without its own ending: what it refuses comes back as an exception with one line
        return app(args=arguments, obj=arguments, prog_name="parallel-dl", standalone_mode=False) or 0, None
    except InputError as error:
        return 2, error.spoken(flag_of)
    except (KeyboardInterrupt, _Interrupted):
        if rank.connected():  # the launcher is told who was interrupted
            raise KeyboardInterrupt from None
        return 130, "stopped by SIGINT"
    except BrokenPipeError:  # the reader of our output has gone
        return 1, None
    except MemoryError:
        if inside_mpirun():  # other ranks wait for this one: it has to fail
            raise
        return 2, "not enough memory; use a smaller --batch-size or more ranks"
    except Exception as error:
        if not hasattr(error, "format_message"):
            tracebacks.shorten(error)
            raise
        # no command given: typer has printed its help, and there is no message
        return getattr(error, "exit_code", 2), _short(_refusal(error, arguments), arguments) or None


def _short(message: str, arguments: list[str]) -> str:
    """One line, in which no argument is repeated at length."""
    text = " ".join(message.split())
    for argument in (" ".join(argument.split()) for argument in arguments):
        if len(argument) > MOST_OF_VALUE:
            text = text.replace(argument, named(argument))
    return bounded(text)


def _refusal(error: Any, arguments: list[str]) -> str:
    """What typer says when it refuses a value, with the value, which typer leaves out."""
    said = error.format_message()
    if (extra := _EXTRA.fullmatch(said)) is not None:
        return _of_extra(extra[1], arguments)
    parameter = getattr(error, "param", None)
    flags = [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]
    kind = "a whole number" if "integer" in said else "a number" if re.search("number|float", said) else ""
    if not kind:
        return said
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in flags and (equals or place + 1 < len(arguments)):
            value = value if equals else arguments[place + 1]
            if not _is(kind, value):
                return f"{flag} {shown(value)}: must be {kind}"
    return said


def _of_extra(values: str, arguments: list[str]) -> str:
    """What to say of arguments that the command does not take: often the value of a flag that takes none."""
    value = next(
        (argument for argument in arguments if values == argument or values.startswith(f"{argument} ")), values
    )
    before = arguments[arguments.index(value) - 1] if value in arguments[1:] else ""
    hint = f": {before} takes no value" if before.startswith("-") and "=" not in before else ""
    return f"unexpected argument {shown(value)}{hint}"


def _is(kind: str, text: str) -> bool:
    try:
        int(text) if kind == "a whole number" else float(text)
    except ValueError:
        return False
    return True


def _say_on_one_rank(line: str) -> None:
    """In a user's own mpirun: rank 0 says what every rank refuses, before any ends and mpirun ends the others."""
    before_mpi = "parallel_dl.mpi" not in sys.modules  # only the arguments were looked at: the same on every rank
    if mpirun_rank() == 0 or not before_mpi:
        print(line, file=sys.stderr, flush=True)
    if before_mpi:
        try:
            from parallel_dl.mpi import finish
        except InputError:  # there is no MPI to meet in
            time.sleep(_MPIRUN_SECONDS)
        else:
            finish()
