"""Processes by their id, and what they have in /dev/shm."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from parallel_dl.launch.environment import MPI_FILES, SHARED_MEMORY, mapped_shared_memory


def listed(folder: str) -> list[str]:
    """What is in a folder; nothing when it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, group, session, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text[text.rindex(")") + 2 :].split()
    except (OSError, ValueError):
        return []


def started(pid: int) -> str:
    """When a process started, as the system writes it; empty if the process does not exist (any more)."""
    if os.path.isdir("/proc/self"):
        fields = _stat(pid)
        return fields[19] if fields and fields[0] != "Z" else ""
    run = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def session(leader: int) -> list[int]:
    """The processes of the session that this process began, itself first."""
    if os.path.isdir("/proc/self"):
        pids = [int(name) for name in listed("/proc") if name.isdigit()]
        members = [pid for pid in pids if (fields := _stat(pid)) and fields[3] == str(leader) and fields[0] != "Z"]
    else:
        run = subprocess.run(["ps", "-axo", "pid=,sess="], capture_output=True, text=True, check=False)
        rows = [line.split() for line in run.stdout.splitlines()]
        members = [int(pid) for pid, session in rows if session == str(leader)]
    return sorted(members, key=lambda pid: pid != leader)


def shared_memory_files() -> set[str]:
    """The names in /dev/shm."""
    return set(listed(SHARED_MEMORY))


def clear_shared_memory(before: Iterable[str]) -> None:
    """Removes what MPI left in /dev/shm: files of this user that were not there `before` and that no process uses."""
    left = [name for name in shared_memory_files().difference(before) if name.startswith(MPI_FILES)]
    if not left:
        return
    used = set().union(*(mapped_shared_memory(pid) for pid in listed("/proc") if pid.isdigit()))
    for name in left:
        path = os.path.join(SHARED_MEMORY, name)
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.geteuid() and path not in used:
                os.unlink(path)
