"""A file is replaced at once, keeps its permissions, and nothing remains of a writer that was killed."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from parallel_dl.errors import InputError
from parallel_dl.files import replacing, require_writable

WRITE = """import sys
from parallel_dl.files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b'new')
"""


def write(path, content=b"new"):
    with replacing(path) as file:
        file.write(content)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o027, 0o000])
def test_a_new_file_has_what_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o666 & ~umask


@pytest.mark.parametrize("permissions", [0o600, 0o644, 0o664, 0o400, 0o755])
def test_a_file_that_is_replaced_hands_on_its_permissions(tmp_path, permissions):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(permissions)
    write(path)
    assert (path.read_bytes(), mode(path)) == (b"new", permissions)
    (tmp_path / "link").symlink_to("a")
    write(tmp_path / "link", b"newer")
    assert (tmp_path / "link").is_symlink()
    assert (path.read_bytes(), mode(path)) == (b"newer", permissions)


def test_it_is_never_more_open_than_it_will_be(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with replacing(path) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    path.chmod(0o640)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (12345, 23456, 0o640)


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def parts():
        yield b"half"
        raise KeyError

    with pytest.raises(KeyError), replacing(path) as file:
        file.writelines(parts())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def killed_writer(path):
    """The pid of a process that was killed while it was writing."""
    code = WRITE.replace("file.write(b'new')", "file.write(b'half'); file.flush(); print(flush=True); input()")
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path, environment):
    living = killed_writer(tmp_path / "living")
    (of_living,) = os.listdir(tmp_path)
    dead = killed_writer(tmp_path / "a")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    (tmp_path / ".parallel_dl-other").write_text("of somebody else")
    (tmp_path / ".parallel_dl-0123456789abcdef.partial").symlink_to("a")
    assert len(os.listdir(tmp_path)) == 4
    require_writable(tmp_path / "b")
    left = {".parallel_dl-other", ".parallel_dl-0123456789abcdef.partial"}
    assert set(os.listdir(tmp_path)) == {of_living, *left}
    living.communicate(b"\n")
    assert (tmp_path / "living").read_bytes() == b"half"
    dead = killed_writer(tmp_path / "a")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    write(tmp_path / "c")
    assert set(os.listdir(tmp_path)) == {"living", "c", *left}


def test_kills_at_any_time_leave_a_whole_file(tmp_path, environment):
    """Each writer is killed at another place; the old or the new content is there, and in the end only that."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    for call in ("os.open", "fcntl.flock", "os.fchmod", "os.fsync", "os.replace"):
        module = call.split(".")[0]
        code = f"import os, {module}\nreal = {call}\ndef kill(*a):\n"
        code += "    real(*a)\n" * (call == "os.open") + "    os.kill(os.getpid(), 9)\n"
        code += WRITE.replace("with ", f"{call} = kill\nwith ")
        run = subprocess.run([sys.executable, "-c", code, path], check=False, capture_output=True)
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert path.read_bytes() == b"old"
    write(path)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/a", "there is no folder"),
        (".", "is a folder"),
        ("/dev/null", "is not a regular file"),
        ("/proc/a", "/proc"),
        ("a\0b", "null byte"),
        ("x" * 300, "name too long"),
        ("circle", "circle: "),
    ],
)
def test_where_nothing_can_be_written(tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    for call in (require_writable, write):
        with pytest.raises(InputError, match=said):
            call(path)
    assert os.listdir(tmp_path) == ["circle"]
    assert Path("/dev/null").is_char_device()


def test_a_limit_of_sizes_is_a_line_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match="a: cannot be written"):
            write(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failure_at_the_end_is_a_line(tmp_path, monkeypatch, call, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError, match=f"a: cannot be written .{os.strerror(number)}"):
        write(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_without_locks_it_is_written_all_the_same(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", fail)
    write(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
