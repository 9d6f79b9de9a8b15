"""Only regular files of a plausible size are read; tables have limited nesting."""

import datetime
import os
import socket

import pytest

from parallel_dl.errors import MOST_OF_VALUE, InputError
from parallel_dl.files import (
    as_written,
    bytes_of_memory,
    listed,
    opened,
    read_table,
    read_text,
    require_memory,
    require_regular,
)


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.fixture
def not_regular(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    server = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(tmp_path)  # a socket's path is short
    server.bind("socket")
    os.chdir(before)
    yield [tmp_path / "pipe", tmp_path / "link", tmp_path / "socket", "/dev/zero", "/dev/null"]
    server.close()


@pytest.mark.parametrize("read", [require_regular, read_text, read_table])
def test_paths_that_are_not_files_are_refused(not_regular, tmp_path, read):
    for path in not_regular:
        assert refused(read, path, "a thing") == f"{path}: is not a regular file; expected a thing"
    assert refused(read, tmp_path, "a thing") == f"{tmp_path}: is a folder; expected a thing"
    assert refused(read, tmp_path / "no", "a thing") == f"{tmp_path / 'no'}: no such file; expected a thing"
    assert "cannot be read (embedded null byte)" in refused(read, "a\0b", "a thing")
    assert "name too long" in refused(read, "x" * 5000, "a thing")
    (tmp_path / "circle").symlink_to("circle")
    assert "symbolic links" in refused(read, tmp_path / "circle", "a thing")


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("read", [require_regular, read_text, read_table])
def test_files_too_large_are_refused(tmp_path, read):
    path = sparse(tmp_path / "sparse", 20_000_000_000)
    line = refused(read, path, "a thing")
    assert line.startswith(f"{path}: has 20,000,000,000 bytes; expected a thing, of at most ")


def test_a_file_without_a_size_that_goes_on():
    assert "has more than 10 bytes" in refused(read_text, "/proc/self/maps", "a thing", 10)


def test_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + "ä".encode())
    assert read_text(tmp_path / "a", "a thing") == "ä"
    (tmp_path / "a").write_bytes(b"ab\xff")
    assert "is not UTF-8 text (byte 2)" in refused(read_text, tmp_path / "a", "a thing")
    assert "cannot be listed" in refused(listed, tmp_path / "a", "a folder")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "dp = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a.toml", "dp = " + "{a=" * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("a.toml", ".".join("a" * 3000) + " = 1", "nested too deeply"),
        ("a.toml", "dp = " + "[" * 40 + "]" * 40, "at most 32 levels"),
        ("a.toml", "[" + ".".join("a" * 50) + "]\nb = 1", "at most 32 levels"),
        ("a.toml", "dp = 0x" + "f" * 3600, "'dp' = 0xfff"),
        ("a.toml", "dp = " + "9" * 5000, "is not TOML"),
        ("a.toml", f"dp = {2**63}", "'dp' = 9223372036854775808: expected 64-bit integers"),
        ("a.toml", f"a = [1, {-(2**63) - 1}]", "expected 64-bit integers"),
        ("a.toml", "a = ", "is not TOML"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a":' * 100_000, "nested too deeply"),
        ("a.json", '{"a": ' + "[" * 40 + "]" * 40 + "}", "at most 32 levels"),
        ("a.json", '{"w": ' + "9" * 5000 + "}", "is not JSON"),
        ("a.json", '{"w": 99999999999999999999}', "expected 64-bit integers"),
        ("a.json", "[1]", "holds [1]; expected a thing"),
        ("a.json", "true", "holds true; expected a thing"),
        ("a.json", "[null, false]", "holds [null, false]; expected a thing"),
        ("a.json", '"' + "x" * 500 + '"', "..."),
        ("a.json", "{", "is not JSON"),
    ],
)
def test_tables(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    line = refused(read_table, path, "a thing")
    assert line.startswith(f"{path}: ")
    assert said in line


def test_tables_that_are_right(tmp_path):
    (tmp_path / "a.toml").write_text(f"a = {2**63 - 1}\nb = {-(2**63)}\n[c]\nd = [[1], [true, 1.5]]")
    found = {"a": 2**63 - 1, "b": -(2**63), "c": {"d": [[1], [True, 1.5]]}}
    assert read_table(tmp_path / "a.toml", "a thing") == found
    (tmp_path / "a.json").write_text('{"a": 1, "b": {"c": null}}')
    assert read_table(tmp_path / "a.json", "a thing") == {"a": 1, "b": {"c": None}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "true"),
        (False, "false"),
        (None, "null"),
        ([True, None, "a"], '[true, null, "a"]'),
        ({"a": {"b": False}}, '{"a": {"b": false}}'),
        (datetime.date(1979, 5, 27), "1979-05-27"),
        ([datetime.time(7, 32)], '["07:32:00"]'),
        ("True", "'True'"),
        (2.5, "2.5"),
    ],
)
def test_a_value_is_repeated_as_its_file_has_it(value, said):
    assert as_written(value) == said


def test_a_long_value_is_cut():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert all(len(as_written(value)) <= MOST_OF_VALUE for value in ([True] * 999, deep, {"a": "x" * 999}))


def test_memory():
    require_memory("a", bytes_of_memory() // 2)
    assert "a: would take" in refused(require_memory, "a", bytes_of_memory() // 2 + 1)
    assert "more than 1000 EB of memory" in refused(require_memory, "a", 10**400)


def test_a_memory_error_while_reading_is_a_line(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="does not fit into memory"), opened(tmp_path / "a", "a thing"):
        raise MemoryError
