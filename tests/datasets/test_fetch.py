"""What is fetched is right or is not there; what broke off goes on where it ended."""

import gzip
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import HANG
from file_server import FileServer, closed_port
from idx_files import write_idx

from parallel_dl.datasets import fashion_mnist, load, places
from parallel_dl.datasets.download import DownloadError
from parallel_dl.datasets.fetch import fetch
from parallel_dl.errors import InputError

NAMES = list(fashion_mnist.FILES)
FIRST = NAMES[0]


def table(contents):
    return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Fashion-MNIST's four files, with 300 + 20 random images."""
    folder, random = tmp_path_factory.mktemp("source"), np.random.default_rng(5)
    for part, count in (("train", 300), ("t10k", 20)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", random.integers(0, 10, count, np.uint8))
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.fixture
def server(contents, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with FileServer(dict(contents)) as server:
        yield server


def in_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expect_error(*words, error=DownloadError, files, address, folder, **options):
    with pytest.raises(InputError) as caught:
        fetch(files, address, folder, **options)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_all_files_and_then_none(server, contents, tmp_path):
    folder, told = tmp_path / "new" / "folder", []
    assert fetch(table(contents), server.address + "/", folder, report=lambda *what: told.append(what)) == NAMES
    assert in_folder(folder) == contents
    assert server.asked == [(name, None) for name in NAMES]
    for name in NAMES:
        counts = [have for about, have in told if about == name]
        assert counts == sorted(counts)
        assert counts[-1] == len(contents[name])
    assert len(load("fashion-mnist", folder).x_train) == 300
    assert fetch(table(contents), server.address, folder) == []
    assert len(server.asked) == 4


def test_existing_wrong_file_is_replaced(server, contents, tmp_path):
    fetch(table(contents), server.address, tmp_path)
    damaged = bytearray(contents[FIRST])
    damaged[1000] ^= 1
    for content in (damaged, contents[FIRST][:-1], b""):
        (tmp_path / FIRST).write_bytes(content)
        assert fetch(table(contents), server.address, tmp_path) == [FIRST]
        assert in_folder(tmp_path) == contents


def test_half_a_file_goes_on_where_it_ends(server, contents, tmp_path):
    half = len(contents[FIRST]) // 2
    (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST][:half])
    told = []
    fetch(table(contents), server.address, tmp_path, report=lambda name, have: told.append(have))
    assert in_folder(tmp_path) == contents
    assert server.asked[0] == (FIRST, f"bytes={half}-")
    assert server.sent == sum(map(len, contents.values())) - half
    assert told[0] == half


def test_a_whole_partial_file_is_not_asked_for(server, contents, tmp_path):
    (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST])
    fetch(table(contents), server.address, tmp_path)
    assert in_folder(tmp_path) == contents
    assert [name for name, _ in server.asked] == NAMES[1:]


@pytest.mark.parametrize(
    ("ranges", "headers", "requests"),
    [
        (False, {}, 1),  # 200: the whole file
        (416, {}, 2),
        (204, {}, 2),
        (True, {"Content-Range": None}, 2),
        (True, {"Content-Range": "bytes 7-8/*"}, 2),
        (True, {"Content-Range": "nonsense"}, 2),
    ],
)
def test_a_server_that_cannot_go_on_starts_again(server, contents, tmp_path, ranges, headers, requests):
    server.ranges, server.headers = ranges, headers
    (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST][:5000])
    files = {FIRST: table(contents)[FIRST]}
    assert fetch(files, server.address, tmp_path) == [FIRST]
    assert in_folder(tmp_path) == {FIRST: contents[FIRST]}
    assert server.asked == [(FIRST, "bytes=5000-"), (FIRST, None)][:requests]


def test_a_partial_file_that_is_too_long_starts_again(server, contents, tmp_path):
    (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST] + b"more")
    fetch(table(contents), server.address, tmp_path)
    assert in_folder(tmp_path) == contents
    assert server.asked[0] == (FIRST, None)


def test_a_wrong_checksum_is_refused_and_the_next_try_starts_fresh(server, contents, tmp_path):
    wrong = bytearray(contents[FIRST])
    wrong[-100] ^= 1
    server.files[FIRST] = bytes(wrong)
    arguments = {"files": table(contents), "address": server.address, "folder": tmp_path}
    expect_error(f"{server.address}/{FIRST}", "wrong checksum", *arguments["files"][FIRST][1:], **arguments)
    assert in_folder(tmp_path) == {}
    (tmp_path / f"{FIRST}.part").write_bytes(b"x" * 5000)  # as if of another file
    server.files[FIRST] = contents[FIRST]
    expect_error("wrong checksum", **arguments)
    assert in_folder(tmp_path) == {}
    assert fetch(**arguments) == NAMES
    assert in_folder(tmp_path) == contents


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_of_another_size(server, contents, tmp_path, lengths):
    """Refused before it is read if its size is said, and never read beyond the size that is expected."""
    server.lengths = lengths
    server.files[FIRST] = contents[FIRST] + bytes(10_000_000)
    arguments = {"files": table(contents), "address": server.address, "folder": tmp_path}
    if lengths:
        expect_error(f"{server.address}/{FIRST}", f"has {len(server.files[FIRST])} bytes", **arguments)
        (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST][:5000])
        expect_error(f"has {len(server.files[FIRST])} bytes", f"expected {len(contents[FIRST])}", **arguments)
        assert in_folder(tmp_path) == {f"{FIRST}.part": contents[FIRST][:5000]}
    else:
        assert fetch(**arguments) == NAMES
    server.files[FIRST] = contents[FIRST][:-10]
    (tmp_path / FIRST).unlink(missing_ok=True)
    expect_error("bytes", **arguments)
    assert FIRST not in in_folder(tmp_path)


@pytest.mark.parametrize("lengths", [True, False])
def test_a_connection_that_breaks_off_is_gone_on_with(server, contents, tmp_path, lengths):
    server.cut, server.lengths = 60_000, lengths
    arguments = {"files": {FIRST: table(contents)[FIRST]}, "address": server.address, "folder": tmp_path}
    for tries in (1, 2):
        expect_error(f"{FIRST}: broke off after {60_000 * tries} of {len(contents[FIRST])} bytes", **arguments)
        assert in_folder(tmp_path) == {f"{FIRST}.part": contents[FIRST][: 60_000 * tries]}
    server.cut = None
    assert fetch(**arguments) == [FIRST]
    assert server.asked[1:] == [(FIRST, "bytes=60000-"), (FIRST, "bytes=120000-")]
    assert server.sent == len(contents[FIRST])


def test_a_server_that_falls_silent_is_given_up(server, contents, tmp_path):
    server.cut, server.gate = 60_000, threading.Event()
    arguments = {"files": table(contents), "address": server.address, "folder": tmp_path}
    expect_error("broke off after 60000 of", "timed out", seconds=0.3, **arguments)
    server.gate.set()
    assert in_folder(tmp_path) == {f"{FIRST}.part": contents[FIRST][:60_000]}


@pytest.mark.parametrize(
    ("status", "words"), [(404, "answers 404 Not Found"), (503, "answers 503 Service Unavailable"), (416, "416")]
)
def test_other_answers(server, contents, tmp_path, status, words):
    server.status = status
    url = f"{server.address}/{FIRST}"
    expect_error(url, words, files=table(contents), address=server.address, folder=tmp_path)
    assert in_folder(tmp_path) == {}
    (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST][:5000])
    expect_error(url, words, files=table(contents), address=server.address, folder=tmp_path)
    assert in_folder(tmp_path) == {f"{FIRST}.part": contents[FIRST][:5000]}


def test_a_redirection_is_followed(server, contents, tmp_path):
    server.files = {f"there/{name}": content for name, content in contents.items()}
    redirected = server.answer

    def answer(request):
        if "there" in request.path:
            redirected(request)
        else:
            request.send_response(302)
            request.send_header("Location", request.path.replace("/data/", "/data/there/"))
            request.end_headers()

    server.answer = answer
    (tmp_path / f"{FIRST}.part").write_bytes(contents[FIRST][:5000])
    assert fetch(table(contents), server.address, tmp_path) == NAMES
    assert server.asked[0] == (f"there/{FIRST}", "bytes=5000-")


def test_no_connection(contents, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with closed_port() as address:
        url = f"{address}/{FIRST}"
        expect_error(
            url, "cannot be reached (Connection refused)", files=table(contents), address=address, folder=tmp_path
        )
    for address in ("http://a b", "http://[1", "http://a:port", "http://127.0.0.1:99999"):
        expect_error(address, "cannot be reached", files=table(contents), address=address, folder=tmp_path)
    for address in ("", "ftp://a", "file:///etc", "nothing", "http://", "https:///a"):
        expect_error(repr(address), "http://", error=InputError, files={}, address=address, folder=tmp_path)
    assert in_folder(tmp_path) == {}


def test_a_folder_that_cannot_be_written(server, contents, tmp_path):
    arguments = {"error": InputError, "files": table(contents), "address": server.address}
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing", "a\0b"):
        expect_error(str(folder).replace("\0", "\\x00"), "cannot be written", folder=folder, **arguments)
    (tmp_path / FIRST).mkdir()
    expect_error(tmp_path / FIRST, "Is a directory", folder=tmp_path, **arguments)
    (tmp_path / FIRST).rmdir()
    os.mkfifo(tmp_path / FIRST)
    expect_error(tmp_path / FIRST, "is not a regular file", folder=tmp_path, **arguments)
    assert server.asked == []


def test_a_disk_that_is_full(server, contents, tmp_path):
    """A limit of the size of files stands for it: the same kind of error from the same call."""
    code = (
        "import json, resource, signal, sys\n"
        "from parallel_dl.datasets.fetch import fetch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: fetch(json.loads(sys.argv[1]), *sys.argv[2:])\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(table(contents)), server.address, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    assert run.stdout.startswith(f"InputError {tmp_path}")
    assert "File too large" in run.stdout
    assert run.stdout.count("\n") == 1


def start_process(*arguments):
    code = (
        "import json, sys; from parallel_dl.datasets.fetch import fetch; fetch(json.loads(sys.argv[1]), *sys.argv[2:])"
    )
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])


def wait_until(condition, seconds=HANG):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_half_way_and_gone_on_with(server, contents, tmp_path):
    server.cut, server.gate = 1_000, threading.Event()  # less than what Python buffers
    part = tmp_path / f"{FIRST}.part"
    process = start_process(json.dumps(table(contents)), server.address, tmp_path)
    try:
        wait_until(lambda: part.exists() and part.stat().st_size == 1_000)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(HANG)
    server.gate.set()
    assert in_folder(tmp_path) == {part.name: contents[FIRST][:1_000]}
    server.cut = server.gate = None
    assert fetch(table(contents), server.address, tmp_path) == NAMES
    assert in_folder(tmp_path) == contents
    assert server.asked[1] == (FIRST, "bytes=1000-")


def test_two_at_once_download_each_file_once(server, contents, tmp_path):
    server.cut, server.gate = 60_000, threading.Event()
    waits, results = [], []

    def run():
        results.append(fetch(table(contents), server.address, tmp_path, waiting=waits.append))

    both = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    both[0].start()
    wait_until(lambda: server.asked)
    both[1].start()
    wait_until(lambda: waits)
    assert (waits, len(server.asked)) == ([FIRST], 1)
    server.gate.set()
    for thread in both:
        thread.join(HANG)
        assert not thread.is_alive()
    assert in_folder(tmp_path) == contents
    assert sorted(name for new in results for name in new) == sorted(NAMES)
    assert sorted(name for name, _ in server.asked) == sorted(NAMES)


def test_one_that_waits_starts_fresh_when_the_first_was_sent_something_wrong(server, contents, tmp_path):
    server.files[FIRST] = bytes(len(contents[FIRST]))
    server.cut, server.gate = 60_000, threading.Event()
    arguments = {"files": table(contents), "address": server.address, "folder": tmp_path}
    waits, results = [], []

    def repair(name):
        waits.append(name)
        server.files = contents  # for whoever asks from now on
        server.gate.set()

    first = threading.Thread(target=lambda: expect_error("wrong checksum", **arguments), daemon=True)
    second = threading.Thread(target=lambda: results.append(fetch(**arguments, waiting=repair)), daemon=True)
    first.start()
    wait_until(lambda: (tmp_path / f"{FIRST}.part").exists() and (tmp_path / f"{FIRST}.part").stat().st_size)
    second.start()
    for thread in (first, second):
        thread.join(HANG)
    assert (waits, results) == ([FIRST], [NAMES])
    assert in_folder(tmp_path) == contents


def test_one_that_waits_takes_over_from_one_that_is_killed(server, contents, tmp_path):
    server.cut, server.gate = 60_000, threading.Event()
    process = start_process(json.dumps(table(contents)), server.address, tmp_path)
    waits, results = [], []
    part = tmp_path / f"{FIRST}.part"

    def run():
        results.append(fetch(table(contents), server.address, tmp_path, waiting=waits.append))

    second = threading.Thread(target=run, daemon=True)
    try:
        wait_until(lambda: part.exists() and part.stat().st_size == 60_000)
        second.start()
        wait_until(lambda: waits)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(HANG)
    server.gate.set()
    second.join(HANG)
    assert results == [NAMES]
    assert in_folder(tmp_path) == contents
    assert server.asked[:2] == [(FIRST, None), (FIRST, "bytes=60000-")]


# The official files

OFFICIAL_MD5 = {  # as Zalando's page has them
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
PACKED_AT = {"train": 1504176606, "t10k": 1504176627}  # 31 August 2017


def official():
    """The official files from Debian's: these are the same but for the name and the time in gzip's header."""
    files = {}
    for name in NAMES:
        debian = (places.DEBIAN / "fashion-mnist" / name).read_bytes()
        assert debian[:4] == b"\x1f\x8b\x08\x00"
        header = struct.pack("<4BI", 0x1F, 0x8B, 8, 8, PACKED_AT[name.partition("-")[0]]) + debian[8:10]
        files[name] = header + name.removesuffix(".gz").encode() + b"\0" + debian[10:]
    return files


@pytest.mark.skipif(
    not (places.DEBIAN / "fashion-mnist").is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_the_official_checksums_are_those_of_the_images_that_debian_has(server, tmp_path):
    server.files = official()
    assert {name: hashlib.md5(content).hexdigest() for name, content in server.files.items()} == OFFICIAL_MD5
    assert table(server.files) == fashion_mnist.FILES
    assert fetch(fashion_mnist.FILES, server.address, tmp_path) == NAMES
    for name in NAMES:
        debian = gzip.decompress((places.DEBIAN / "fashion-mnist" / name).read_bytes())
        assert gzip.decompress((tmp_path / name).read_bytes()) == debian
