"""A failed rank's traceback as its user needs it: from their own file on, without the frames that started it."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from parallel_dl.errors import bounded

_LAUNCH = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_LAUNCH)
_COMMAND_LINE = [os.path.join(_PACKAGE, *path) for path in (("__main__.py",), ("cli", "main.py"), ("cli", "flags.py"))]
_STANDARD = os.path.dirname(os.path.abspath(traceback.__file__))
_RUNPY = ("runpy.py", "<frozen runpy>")
_TYPER = re.compile(r"-packages/(typer|click)/")
_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in ')
CHECKED_VARIABLE = "PARALLEL_DL_CHECKED"
FULL_VARIABLE = "PARALLEL_DL_FULL_TRACEBACK"

MISMATCHES = ("CollectiveMismatch", "MessageMismatch")  # of parallel_dl.mpi.observers

# what a message that was too long comes from; the rank that got it may be as innocent as the one that sent it
CALLS_DIFFER = (
    "the ranks' calls do not match; with PARALLEL_DL_CHECKED=1 communicators of parallel_dl compare them first"
)


def is_ours(file: str) -> bool:
    """Whether it is a file of this package."""
    return os.path.abspath(file).startswith(_PACKAGE + os.sep)


def _starts_ranks(file: str) -> bool:
    return file.endswith(_RUNPY) or os.path.abspath(file).startswith(_LAUNCH + os.sep)


def _starts_command(file: str) -> bool:
    """Whether it leads to a command of ours: the module that reads commands, and typer."""
    return os.path.abspath(file) in _COMMAND_LINE or _TYPER.search(file) is not None


def _leads_to_program(file: str) -> bool:
    return _starts_ranks(file) or _starts_command(file)


def _after(leads: Callable[[str], bool], frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and leads(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def own(frames: TracebackType | None) -> TracebackType | None:
    """The frames from the user's program on; where it is a command of ours, from that one's on."""
    first = frames
    while first is not None:
        code, name = first.tb_frame.f_code, first.tb_frame.f_globals.get("__name__")
        if name == "__main__" and not is_ours(code.co_filename):
            return first
        first = first.tb_next
    frames = _after(_starts_ranks, frames)
    return _after(_leads_to_program, frames) or frames  # the error may be that of reading the command


def end_at_the_call(error: BaseException) -> None:
    """Ends the traceback of a mismatch of calls at the frame that called; the frames below show how it was noticed."""
    frames, last = error.__traceback__, None
    while type(error).__name__ in MISMATCHES and frames is not None:
        last = frames if not is_ours(frames.tb_frame.f_code.co_filename) else last
        frames = frames.tb_next
    if last is not None:
        last.tb_next = None


def shorten(error: BaseException) -> None:
    """Cuts the traceback, and those of the errors that led to it, to what concerns the user."""
    if FULL_VARIABLE in os.environ:
        return
    end_at_the_call(error)
    chained: BaseException | None = error
    seen: set[int] = set()
    while chained is not None and id(chained) not in seen:
        seen.add(id(chained))
        chained.__traceback__ = own(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__


def text_of(error: BaseException) -> str:
    """The traceback, and those of the errors that led to it."""
    shorten(error)
    return "".join(traceback.format_exception(error))


def summary_of(error: BaseException) -> str:
    """What a rank did, for one line: the error, where in the user's program it was raised, and notes that it has."""
    if _is_truncation(error):
        call = f" in {call}" if (call := _call_of(error.__traceback__)) else ""
        return f"received more than it asked for{call}{_place(error)}: {CALLS_DIFFER}"
    written = traceback.TracebackException(type(error), error, None)
    written.__notes__ = None  # they would come after the error, in its place
    head = next((line for line in [*written.format_exception_only()][-1].splitlines() if line.strip()), "").strip()
    head = head.removesuffix(", error stack:").rstrip(": ") or type(error).__name__  # MPICH's
    causes = [error]  # what was raised from another error is where that one was
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    place = next(filter(None, map(_place, causes)), "")
    notes = [note for one in causes for note in getattr(one, "__notes__", ()) if isinstance(note, str)]
    return ", ".join([f"raised {head}{place}", *(bounded(note) for note in notes if "\n" not in note.strip())])


def _is_truncation(error: BaseException) -> bool:
    mpi: Any = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(error, mpi.Exception) and error.Get_error_class() == mpi.ERR_TRUNCATE


# where the calls to other ranks are, and what they pass through on their way
_CALLS = ("communicator", "copies", "group", "messages", "pending", "reductions", "shards", "window")
_COMMUNICATION = tuple(os.path.join(_PACKAGE, "mpi", f"{name}.py") for name in _CALLS)
_ON_THE_WAY = tuple(os.path.join(_PACKAGE, "mpi", *path) for path in (("calls.py",), ("observers", "checked.py")))
_ON_THE_WAY += (os.path.join(_PACKAGE, "watchdog", "wrapping.py"),)


def _call_of(frames: TracebackType | None) -> str:
    """The communicator's method that was called, with its arguments, or else mpi4py's."""
    name = ""
    while frames is not None:
        code = frames.tb_frame.f_code
        if os.path.abspath(code.co_filename) in _COMMUNICATION:
            names = code.co_varnames[: code.co_argcount]
            return f"{code.co_name}({', '.join(_argument(n, frames.tb_frame.f_locals) for n in names if n != 'self')})"
        if code.co_filename.endswith(".pyx"):
            name = code.co_name.rpartition(".")[2]
        frames = frames.tb_next
    return name


def frames_of(thread: int | None) -> list[Any]:
    """The frames of a thread, innermost first; none of one that has ended."""
    frames: list[Any] = []
    frame: Any = sys._current_frames().get(thread or 0)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def call_of_thread(thread: int) -> str:
    """What a thread is doing: in which call to other ranks it waits, and from which line, or else where it is."""
    frames = frames_of(thread)
    first, last = _calls_among(frames)
    if first is None:
        files = [os.path.abspath(frame.f_code.co_filename) for frame in frames]
        place = next((place for place, file in enumerate(files) if not is_library(file)), 0)
        return f"is in {frames[place].f_code.co_name} ({_where(frames[place])})" if frames else "has ended"
    called = call_in(frames) or f"{frames[last - 1].f_code.co_name}()"
    return f"waits in {called}, called from {_where(frames[last])}"


def _calls_among(frames: Sequence[Any]) -> tuple[int | None, int]:
    """Of frames, innermost first: the first one that is part of a call to other ranks, and the one that called it."""
    files = [os.path.abspath(frame.f_code.co_filename) for frame in frames]
    on_the_way = [file in _COMMUNICATION or file in _ON_THE_WAY or _is_wrapper(file) for file in files]
    first = next((place for place, passed in enumerate(on_the_way) if passed), None)
    if first is None:
        return None, 0
    return first, next((place for place in range(first, len(files)) if not on_the_way[place]), len(files) - 1)


def call_in(frames: Sequence[Any]) -> str:
    """The call of a communicator of ours among these frames, innermost first, with its arguments; empty without one."""
    first, last = _calls_among(frames)
    if first is None:
        return ""
    passed = frames[first:last]
    within = [frame for frame in passed if os.path.abspath(frame.f_code.co_filename) in _COMMUNICATION]
    observed = [frame.f_locals["call"] for frame in passed if frame.f_code.co_name == "_observed"]
    if within:
        code, values = within[-1].f_code, within[-1].f_locals
        called, names = code.co_name, code.co_varnames[: code.co_argcount]
        comm = values.get("self")
    elif observed:  # the ranks are being compared
        called, values, comm = observed[-1].name, observed[-1].arguments, observed[-1].comm
        names = tuple(values)
    else:
        return ""
    given = ", ".join(_argument(name, values) for name in names if name not in ("self", "comm"))
    name, source = getattr(comm, "name", None), getattr(comm, "_source", None)
    on = f" on {name!r}" if isinstance(name, str) else f" for rank {source}" if isinstance(source, int) else ""
    return f"{called}({given}){on}"


def lines_of(frames: Sequence[Any]) -> list[str]:
    """`FILE:LINE in FUNCTION` of the program's own frames, innermost first; of ours, where there is no other."""
    code = [frame for frame in frames if not is_library(os.path.abspath(frame.f_code.co_filename))]
    ours = [frame for frame in code if os.path.abspath(frame.f_code.co_filename) not in _ON_THE_WAY]
    own = [frame for frame in code if not is_ours(frame.f_code.co_filename)] or ours
    while len(own) > 1 and _leads_to_program(own[-1].f_code.co_filename):
        own.pop()
    return [_where(frame) + _function(frame.f_code.co_name) for frame in own]


def lines_of_stack(text: str) -> list[str]:
    """The same, from what faulthandler has written of a process: its main thread is the last one."""
    found = re.findall(r'File "([^"]*)", line (\d+) in (.*)', text.strip().rpartition("\n\n")[2])
    code = [entry for entry in found if not is_library(entry[0])]
    own = [entry for entry in code if not is_ours(entry[0])] or code
    return [f"{os.path.basename(file)}:{line}{_function(name)}" for file, line, name in own]


def place_of_call() -> str:
    """FILE:LINE in FUNCTION of the program that has called, of this thread."""
    lines = lines_of(frames_of(threading.get_ident()))
    return lines[0] if lines else ""


def _function(name: str) -> str:
    return "" if name == "<module>" else f" in {name}"


def _is_wrapper(file: str) -> bool:
    """Whether it is what `mpi.calls` writes around a declared function."""
    return os.path.basename(file).startswith("<call of ")


def _where(frame: Any) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _argument(name: str, values: Mapping[str, Any]) -> str:
    value: Any = values.get(name)
    if isinstance(getattr(value, "shape", None), tuple):  # an array
        return f"{name}={value.dtype} {value.shape}"
    return f"{name}={value.__name__ if isinstance(value, type) else repr(value)[:80]}"


def _place(error: BaseException) -> str:
    """` (FILE:LINE)`: the user's innermost line that led to the error; nothing, where all lines are ours."""
    frames, place = error.__traceback__, ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({os.path.basename(error.filename)}:{error.lineno})"
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if not is_ours(file) and not is_library(file):
            place = f" ({os.path.basename(file)}:{frames.tb_lineno})"
        frames = frames.tb_next
    return place


def is_library(file: str) -> bool:
    """Whether it is a file of Python, or of an installed package."""
    return (
        os.path.basename(file).startswith("<")
        or file.endswith((".pyx", ".pxi"))
        or f"{os.sep}site-packages{os.sep}" in file
        or file.startswith(_STANDARD + os.sep)
    )


def of_crash(text: str) -> list[str]:
    """What faulthandler has written of a crash: the crashed thread's lines, innermost first, without ours around it."""
    parts = text.strip().split("\n\n")
    lines = parts[0].splitlines()[:1]  # Fatal Python error: Segmentation fault
    for part in parts:
        if "Current thread" in part:
            frames = part[part.index("Current thread") :].splitlines()[1:]
            while frames and FULL_VARIABLE not in os.environ:
                frame = _FRAME.match(frames[-1])
                if frame is None or not _leads_to_program(frame["file"]):
                    break
                frames.pop()
            lines += frames
    return lines
