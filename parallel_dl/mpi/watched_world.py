"""The watchdog under a user's own mpirun, on one host or several: rank 0 listens, and the others tell it how they are.

Under our launcher it is the launcher that listens. The address and a key go to the other ranks by MPI; after that the
watching threads talk over TCP, since MPI may be what hangs.
"""

from __future__ import annotations

import atexit
import contextlib
import secrets
import socket
import sys
import threading
import time
from multiprocessing.connection import Client, Connection, wait
from typing import Any

from parallel_dl.launch import watching
from parallel_dl.launch.rank import connected
from parallel_dl.mpi import abort
from parallel_dl.mpi.startup import MPI
from parallel_dl.watchdog import Watchdog

_CONNECT_SECONDS = 5.0  # for a rank to reach rank 0, by all of its addresses
_LOOK_SECONDS = 0.1
_SIOCGIFADDR = 0x8915  # of Linux's ioctl


def wrap() -> None:
    """Writes down the calls of mpi4py's communicators, unless somebody else does it or nobody wants it."""
    if not connected() and MPI.COMM_WORLD.size > 1 and watching.is_on():
        watching.watch_mpi(_end)


class _Own:
    """What this process has of it."""

    thread: watching.Watching | None = None
    server: _Server | None = None


def start() -> None:
    """All ranks together: starts the watching threads. They end with the program."""
    if connected() or MPI.COMM_WORLD.size == 1 or not watching.is_on() or _Own.thread is not None:
        return
    world = MPI.Intracomm(MPI.COMM_WORLD)
    hosts = world.allgather(socket.gethostname())
    server = _Server(world.size, hosts) if world.rank == 0 else None
    addresses, port, key = world.bcast(None if server is None else (server.addresses, server.port, server.key), 0)
    link: Any = None
    try:
        link = _connection(addresses, port, key)
    except OSError as error:
        line = f"parallel-dl: rank {world.rank}: no watchdog: rank 0 cannot be reached ({error}); hangs are not named"
        print(line, file=sys.stderr, flush=True)
        return
    link.send(("hello", world.rank))
    _Own.thread, _Own.server = watching.Watching(world.rank, _sender(link)), server
    _Own.thread.start()
    threading.Thread(target=_listen, args=(link, _Own.thread), name="launcher watch", daemon=True).start()
    atexit.register(_end)


def _sender(link: Connection) -> Any:
    lock = threading.Lock()

    def send(message: tuple) -> None:
        with lock, contextlib.suppress(OSError):
            link.send(message)

    return send


def _listen(link: Connection, thread: watching.Watching) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            thread.answer(link.recv()[1])


def _end() -> None:
    """The program has ended. Rank 0 listens as long as others go on, as it would wait for them in MPI_Finalize."""
    if _Own.thread is not None:
        _Own.thread.end()
    if _Own.server is not None:
        _Own.server.join()


def _connection(addresses: list[str], port: int, key: bytes) -> Connection:
    error: OSError | None = None
    for address in addresses:
        try:
            with socket.create_connection((address, port), _CONNECT_SECONDS / len(addresses)):
                pass
            return Client((address, port), authkey=key)
        except OSError as failed:
            error = failed
    raise error or OSError("it has no address")


class _Server(threading.Thread):
    """On rank 0: hears all ranks, and ends the job when it is in a deadlock."""

    def __init__(self, ranks: int, hosts: list[str]) -> None:
        super().__init__(name="rank watch", daemon=True)
        self.ranks, self.key = ranks, secrets.token_bytes(16)
        self.addresses = ["127.0.0.1"] if len(set(hosts)) == 1 else _addresses(hosts)
        self._listener = socket.create_server(("127.0.0.1" if len(set(hosts)) == 1 else "", 0), backlog=ranks)
        self.port = self._listener.getsockname()[1]
        self._links: dict[Any, int] = {}
        self.start()

    def run(self) -> None:
        dog = Watchdog(self._ask)
        deadline = time.monotonic() + 2 * _CONNECT_SECONDS
        while len(dog.ended) < self.ranks:
            waited_for: list[Any] = [self._listener, *self._links]
            for ready in wait(waited_for, _LOOK_SECONDS):
                if ready is self._listener:
                    self._accept()
                else:
                    self._hear(dog, ready)
            if not self._links and time.monotonic() > deadline:
                return
            for line in dog.notices:
                print(f"parallel-dl: {line}", file=sys.stderr, flush=True)
            dog.notices.clear()
            if (deadlock := dog.look()) is not None:
                said = [f"parallel-dl: {deadlock.line}; ended all ranks", *deadlock.picture]
                print("\n".join(said), file=sys.stderr, flush=True)
                abort.abort(1)

    def _accept(self) -> None:
        """A rank, if it knows the key; who only looks whether somebody is here goes at once."""
        accepted, _ = self._listener.accept()
        link: Any = Connection(accepted.detach())
        try:
            from multiprocessing.connection import answer_challenge, deliver_challenge

            deliver_challenge(link, self.key)
            answer_challenge(link, self.key)
            self._links[link] = link.recv()[1]
        except Exception:  # a stranger
            link.close()

    def _hear(self, dog: Watchdog, link: Any) -> None:
        try:
            kind, *content = link.recv()
        except (EOFError, OSError):
            del self._links[link]
            return
        dog.hear(self._links[link], kind, tuple(content))

    def _ask(self, message: Any) -> None:
        for link in self._links:
            with contextlib.suppress(OSError):
                link.send(message)


def _of_interfaces() -> list[str]:
    """The addresses of the interfaces, on Linux: in some clusters hosts do not know each other by name."""
    found = []
    with contextlib.suppress(ImportError, OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        import fcntl

        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                told = fcntl.ioctl(probe, _SIOCGIFADDR, name.encode().ljust(256, b"\0"))
                found.append(socket.inet_ntoa(told[20:24]))
    return found


def _addresses(hosts: list[str]) -> list[str]:
    """This host's addresses, as the others may reach it: those by which it would reach them come first."""
    found = []
    for host in dict.fromkeys(hosts):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    found += _of_interfaces()
    return [address for address in dict.fromkeys(map(str, found)) if not address.startswith("127.")]
