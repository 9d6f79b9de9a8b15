"""Limits and folders in which MPI crashes: refused in one line before a rank is started, or worked around."""

import os
import resource
import subprocess
import tempfile
from types import SimpleNamespace

import pytest
from conftest import HANG
from launched import MPI

from parallel_dl.errors import InputError
from parallel_dl.launch import limits
from parallel_dl.launch.environment import is_hydra, settings
from parallel_dl.launch.folder import Folder

MEET = MPI + "comm.Barrier()\nsys.stdout.write('met\\n')"


@pytest.fixture
def limited(monkeypatch):
    """limited(NOFILE=(soft, hard)): the limits that are seen, and those that are set (soft)."""

    def limit(**given):
        known = {getattr(resource, f"RLIMIT_{name}"): value for name, value in given.items()}
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        monkeypatch.setattr(resource, "getrlimit", lambda which: known.get(which, unlimited))
        monkeypatch.setattr(resource, "setrlimit", lambda which, pair: known.update({which: pair}))
        return known

    return limit


@pytest.mark.parametrize(
    ("given", "ranks", "said"),
    [
        ({"NOFILE": (12, 12)}, 2, "ulimit -n 12: 2 ranks need at least 48 open files"),
        ({"NOFILE": (40, 40)}, 6, "ulimit -n 40: 6 ranks need at least 80 open files"),
        ({"NOFILE": (30, 39)}, 1, "ulimit -n 39: MPI needs at least 40 open files"),
        ({"AS": (250 << 20,) * 2}, 2, "ulimit -v 256000: a rank needs at least 512000 KiB of address space"),
        ({"FSIZE": (8 << 10,) * 2}, 2, "ulimit -f: 8 KiB; MPI shares memory in files, which need 16384 KiB"),
    ],
)
def test_limits_are_refused(limited, given, ranks, said):
    limited(**given)
    with pytest.raises(InputError, match=said):
        limits.require_room(ranks)


def test_limits_that_are_enough(limited, monkeypatch):
    monkeypatch.setattr(limits, "is_hydra", lambda: False)
    limited(NOFILE=(48, 48), AS=(600 << 20,) * 2, FSIZE=(16 << 20,) * 2)
    limits.require_room(2)
    limited(FSIZE=(8 << 10,) * 2)
    limits.require_mpi(1)  # alone, Open MPI shares no memory


def test_a_soft_limit_of_open_files_is_raised(limited):
    known = limited(NOFILE=(12, 100))
    limits.require_room(2)
    assert known[resource.RLIMIT_NOFILE] == (48, 100)


@pytest.mark.parametrize(("ranks", "cores", "valid"), [(129, 2, 128), (65, 1, 64), (1000, 8, 512)])
def test_more_ranks_than_cores_can_start_are_refused(monkeypatch, ranks, cores, valid):
    monkeypatch.setattr(limits, "cores", lambda: cores)
    with pytest.raises(InputError, match=f"{ranks} ranks on {cores} cores: at most .* {valid} here"):
        limits.require_room(ranks)


def test_many_ranks_are_announced(monkeypatch):
    monkeypatch.setattr(limits, "cores", lambda: 2)
    assert limits.slow_start(15) is None
    assert limits.slow_start(16).startswith("16 ranks on 2 cores: they take a while to start")


@pytest.mark.grid
def test_the_announcement_comes_before_the_ranks(run, monkeypatch, tmp_path):
    ranks = 8 * limits.cores()
    if ranks > 16:
        pytest.skip(f"would start {ranks} ranks on this machine")
    ended = run("sys.stdout.write('here\\n')", ranks=ranks)
    assert (ended.status, ended.out) == (0, "here\n" * ranks)
    assert ended.err.startswith(f"parallel-dl: {ranks} ranks on {limits.cores()} cores: ")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("free", "writable", "said"),
    [(64 << 10, True, "/dev/shm has 64 KiB free, but MPICH needs 128 KiB for 2 ranks"), (1 << 30, False, "cannot be")],
)
def test_what_mpich_needs_of_shared_memory(monkeypatch, free, writable, said):
    if not os.path.isdir(limits.SHARED_MEMORY):
        pytest.skip("this system has no /dev/shm")
    monkeypatch.setattr(limits, "shared_memory_free", lambda: free)
    monkeypatch.setattr(limits.os, "access", lambda *_: writable)
    monkeypatch.setattr(limits, "is_hydra", lambda: True)
    with pytest.raises(InputError, match=said):
        limits.require_room(2)
    monkeypatch.setattr(limits, "is_hydra", lambda: False)
    limits.require_room(2)


@pytest.mark.parametrize("options", ["size=64k", "size=192k", "ro"])
def test_shared_memory_as_it_is(python, environment, tmp_path, can_unshare, options):
    if not can_unshare:
        pytest.skip("needs root on Linux for a /dev/shm of its own")
    (tmp_path / "program.py").write_text(MEET.replace("sys.", "__import__('sys')."))
    command = f"mount -t tmpfs -o {options} tmpfs /dev/shm && exec {python} -m parallel_dl run program.py"
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False
    )
    if is_hydra() and options != "size=192k":
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
        assert ended.stderr.startswith("parallel-dl: /dev/shm ")
    else:
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "met\n" * 2, "")


# -- folders -------------------------------------------------------------------------------------------------------
def test_a_long_tmpdir(run, temporary):
    """The socket is elsewhere, and nothing is left in either place."""
    folder = temporary / ("x" * 130)
    folder.mkdir()
    ended = run(MPI + "comm.Barrier()\nsys.stdout.write(os.environ['PARALLEL_DL_JOB'] + '\\n')", tmpdir=folder)
    assert (ended.status, ended.err) == (0, "")
    (used,) = set(ended.out.split())
    assert used.startswith("/tmp/pdl-")
    assert not os.path.exists(used)


def test_a_tmpdir_that_cannot_be_used(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"TMPDIR: .*/none/pdl-\w+ cannot be used: No such file"):
        Folder(backlog=2)


@pytest.mark.parametrize(
    ("free", "files", "little", "ranks", "said"),
    [
        (64 << 10, 100, False, 2, "TMPDIR: /t has 64 KiB free, but Open MPI needs 144 KiB there for 2 ranks"),
        (1 << 20, 100, True, 1, "TMPDIR: /t has 1024 KiB free, but Open MPI needs 32904 KiB there for one rank"),
        (1 << 20, 23, False, 2, "TMPDIR: /t takes 23 more files, but Open MPI needs 24 there for 2 ranks"),
    ],
)
def test_little_room_for_temporary_files_is_refused(monkeypatch, free, files, little, ranks, said):
    room = SimpleNamespace(f_bavail=free >> 10, f_frsize=1 << 10, f_files=1000, f_favail=files)
    monkeypatch.setattr(limits, "place", lambda: "/t")
    monkeypatch.setattr(limits.os, "statvfs", lambda _: room)
    monkeypatch.setattr(limits, "little_shared_memory", lambda: {"a": "setting"} if little else {})
    with pytest.raises(InputError, match=said):
        limits.require_temporary(ranks)


def test_enough_room_for_temporary_files(monkeypatch):
    room = SimpleNamespace(f_bavail=144, f_frsize=1 << 10, f_files=0, f_favail=0)  # Btrfs counts no files
    monkeypatch.setattr(limits.os, "statvfs", lambda _: room)
    monkeypatch.setattr(limits, "little_shared_memory", dict)
    limits.require_temporary(2)


@pytest.mark.parametrize("options", ["size=64k", "size=144k", "size=1m,nr_inodes=8"])
def test_a_tmpdir_as_it_is(python, environment, tmp_path, can_unshare, options):
    if not can_unshare:
        pytest.skip("needs root on Linux to mount a small folder")
    (tmp_path / "program.py").write_text(MEET.replace("sys.", "__import__('sys')."))
    environment.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    command = (
        f"mount -t tmpfs -o {options} tmpfs t && {python} -m parallel_dl run program.py; status=$?; ls t; exit $status"
    )
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False
    )
    if is_hydra() or options == "size=144k":
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "met\n" * 2, "")
    else:
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
        assert ended.stderr.startswith(f"parallel-dl: TMPDIR: {tmp_path}/t ")


def test_no_home(run, environment):
    environment.delenv("HOME")
    ended = run(MEET)
    assert (ended.status, ended.out, ended.err) == (0, "met\n" * 2, "")


def test_the_users_home_is_left_as_it_is(tmp_path):
    assert "HOME" not in settings(2, str(tmp_path), {"HOME": "/somewhere"})
    assert settings(2, str(tmp_path), {})["HOME"]
