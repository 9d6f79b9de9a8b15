"""A job's folder, with its socket and what MPI and the ranks write; removed even after the launcher was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from parallel_dl.errors import InputError
from parallel_dl.launch.environment import finding_us
from parallel_dl.launch.processes import clear_shared_memory, shared_memory_files

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_SOCKET = "socket"
_LONGEST = 100  # bytes of a socket's path: macOS takes 103, Linux 107

# A shell waits for its input to end, which happens however the launcher ends; then it ends mpirun, removes the folder
# and clears /dev/shm: a rank that ends while MPI starts has not mapped its files yet, and cannot know them. If all goes
# well, the shell is killed before. The wait for mpirun is limited: a zombie counts as a process.
_GUARD = """folder=$1; python=$2; shift 2
read mpirun; read end
if [ -n "$mpirun" ]; then
    kill "$mpirun" 2>/dev/null
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 "$mpirun" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$mpirun" 2>/dev/null
    "$python" -P -c "$CLEAR" "$@"
fi
rm -rf "$folder"
"""
_CLEAR = "import sys; from parallel_dl.launch import processes; processes.clear_shared_memory(sys.argv[1:])"


class Folder:
    """The folder, at `path`, and the socket in it on which the ranks connect."""

    def __init__(self, backlog: int) -> None:
        """InputError when none can be made."""
        self.path = os.path.join(place(), _name())
        self.shared_before = shared_memory_files()
        guard = ["/bin/sh", "-c", _GUARD, "sh", self.path, sys.executable, *self.shared_before]
        try:
            self._guard = subprocess.Popen(
                guard,
                env={**finding_us(), "CLEAR": _CLEAR},
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"no process can be started: {error.strerror}") from error
        try:
            os.mkdir(self.path, 0o700)
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(os.path.join(self.path, _SOCKET))
            self.listener.listen(backlog)
        except OSError as error:
            self._end()
            raise InputError(f"TMPDIR: {self.path} cannot be used: {error.strerror or error}") from error

    def guard(self, mpirun: int) -> None:
        """Ends that process, too, if this one is killed."""
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.write(b"%d\n" % mpirun)

    def remove(self) -> None:
        """Closes the socket; removes the folder, and what MPI has left in /dev/shm."""
        self.listener.close()
        self._end()
        clear_shared_memory(self.shared_before)

    def _end(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._guard.kill()
        self._guard.wait()
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()


def place() -> str:
    """The folder for temporary files, or /tmp if the path of a socket in it would be too long."""
    try:
        path = tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"TMPDIR: {error.strerror or error}") from error
    too_long = len(os.fsencode(os.path.join(path, _name(), _SOCKET))) > _LONGEST
    return "/tmp" if too_long else path


def _name() -> str:
    return f"pdl-{os.urandom(6).hex()}"


def connection_to(folder: str) -> Connection:
    """A rank's connection to its launcher; OSError if the launcher has gone."""
    from multiprocessing.connection import Connection

    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(os.path.join(folder, _SOCKET))
    except OSError:
        link.close()
        raise
    return Connection(link.detach())
