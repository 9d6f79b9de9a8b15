"""`parallel-dl fetch` as a user meets it, from a server on this machine."""

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import HANG
from file_server import FileServer, closed_port

from parallel_dl.cli import main
from parallel_dl.datasets import fashion_mnist, places

ROOT = Path(__file__).parents[2]
FIRST, (SIZE, _) = next(iter(fashion_mnist.FILES.items()))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache of its own, and no proxy between this machine and itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(places.VARIABLE, raising=False)


@pytest.fixture
def server():
    """Has the first file in its true size, of zeros."""
    with FileServer({FIRST: bytes(SIZE)}) as server:
        yield server


def refused(capfd, *arguments):
    status = main(list(arguments))
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("parallel-dl: ")
    assert err.count("\n") == 1
    return err


def start(*arguments, **options):
    command = [sys.executable, "-m", "parallel_dl", "fetch", "fashion-mnist", *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, **options)


def wait_until(condition, seconds=HANG):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def small(monkeypatch, server):
    """Makes small files the official ones, for this process."""
    files = {name: name.encode() * 100 for name in fashion_mnist.FILES}
    sums = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", sums)
    monkeypatch.setattr(fashion_mnist, "URL", server.address)
    server.files = files
    return files


@pytest.mark.parametrize("into", [False, True])
def test_fetch_reports_where_the_files_are(server, monkeypatch, capfd, tmp_path, into):
    files = small(monkeypatch, server)
    folder = tmp_path / "here" if into else tmp_path / "cache" / "parallel_dl" / "fashion-mnist"
    arguments = ["fetch", "fashion-mnist", *(["--into", str(folder)] if into else [])]
    assert main(arguments) == 0
    assert capfd.readouterr() == (f"fashion-mnist is in {folder}: 4 files fetched, 0 already there\n", "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    (folder / FIRST).unlink()
    assert main(arguments) == 0
    assert capfd.readouterr() == (f"fashion-mnist is in {folder}: 1 file fetched, 3 already there\n", "")


def test_wrong_names_and_folders(server, capfd, tmp_path):
    assert "unknown data set to fetch 'nothing': expected fashion-mnist" in refused(capfd, "fetch", "nothing")
    assert "did you mean 'fashion-mnist'?" in refused(capfd, "fetch", "fashion_mnist")
    assert "Missing argument" in refused(capfd, "fetch")
    assert "--from 'ftp://a': valid begins with" in refused(capfd, "fetch", "fashion-mnist", "--from", "ftp://a")
    (tmp_path / "file").write_text("")
    for folder in ("/proc/nothing", str(tmp_path / "file")):
        said = refused(capfd, "fetch", "fashion-mnist", "--from", server.address, "--into", folder)
        assert folder in said
        assert "cannot be written" in said
    assert "--into ''" in refused(capfd, "fetch", "fashion-mnist", "--from", server.address, "--into", "")
    assert server.asked == []


def test_no_network_names_the_address_and_the_other_ways(capfd):
    with closed_port() as address:
        said = refused(capfd, "fetch", "fashion-mnist", "--from", address)
    for words in (f"{address}/{FIRST}", "Connection refused", "--from", "dataset-fashion-mnist", "--data-dir"):
        assert words in said


def test_the_official_checksums_are_checked(server, capfd, tmp_path):
    said = refused(capfd, "fetch", "fashion-mnist", "--from", server.address)
    assert f"{server.address}/{FIRST}: wrong checksum" in said
    assert list((tmp_path / "cache" / "parallel_dl" / "fashion-mnist").iterdir()) == []


def test_ctrl_c_keeps_what_has_come(server, tmp_path):
    server.cut, server.gate = 1_000_000, threading.Event()
    part = tmp_path / f"{FIRST}.part"
    process = start("--from", server.address, "--into", tmp_path, stdout=-1, stderr=-1, text=True)
    try:
        wait_until(lambda: part.exists() and part.stat().st_size == 1_000_000)
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=HANG) == ("", "parallel-dl: stopped by SIGINT\n")
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        server.gate.set()
    assert process.returncode == 130
    assert part.read_bytes() == bytes(1_000_000)


def test_a_bar_on_a_terminal_only(server, tmp_path):
    server.cut, server.gate = 10_000_000, threading.Event()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = start("--from", server.address, "--into", tmp_path, stdout=-1, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        deadline = time.monotonic() + HANG
        while b"10.0/26.4 MB" not in seen:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], seen
            seen += os.read(ours, 10_000)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        server.gate.set()
        os.close(ours)
    assert FIRST.encode() in seen


def test_a_second_fetch_says_that_it_waits(server, tmp_path):
    server.cut, server.gate = 1_000_000, threading.Event()
    part = tmp_path / f"{FIRST}.part"
    arguments = ("--from", server.address, "--into", tmp_path)
    processes = [start(*arguments, stdout=-1, stderr=-1, text=True)]
    try:
        wait_until(lambda: part.exists() and part.stat().st_size == 1_000_000)
        processes.append(start(*arguments, stdout=-1, stderr=-1, text=True))
        said = processes[1].stderr.readline()
        assert len(server.asked) == 1
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=HANG)
        server.gate.set()
    assert said == f"parallel-dl: another fetch is downloading {FIRST}: waiting for it\n"


def test_training_without_the_data_names_all_four_ways(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "DEBIAN", tmp_path)
    said = refused(capfd, "train", "mlp", "--dataset", "fashion-mnist")
    for way in ("--data-dir", "PARALLEL_DL_DATA", "Debian", "dataset-fashion-mnist", "parallel-dl fetch fashion-mnist"):
        assert way in said
    said = refused(capfd, "train", "mlp", "--dataset", "cifar-10", "--data-dir", str(tmp_path))
    assert f"{tmp_path}: has none of the files" in said


@pytest.mark.skipif(
    not (places.DEBIAN / "fashion-mnist").is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_training_on_the_files_that_debian_has(capfd):
    assert main(["train", "mlp", "--dataset", "fashion-mnist", "--steps", "200", "--json"]) == 0
    run = json.loads(capfd.readouterr().out)
    assert run["dataset"] == "fashion-mnist"
    assert run["losses"][-1] < 1 < 2 < run["losses"][0]
    assert run["test_accuracy"] > 0.7
