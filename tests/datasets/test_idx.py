"""IDX files come back as they were written, and every damage is one line that names the file."""

import gzip
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from idx_files import write_idx

from parallel_dl.datasets import read_idx
from parallel_dl.errors import InputError

TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
arrays = st.tuples(st.sampled_from("<>"), st.sampled_from(sorted(TYPES))).flatmap(
    lambda t: hnp.arrays(np.dtype(t[0] + t[1]), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


def expect_error(path, *words):
    with pytest.raises(InputError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path).replace("\0", "\\x00"), *words):
        assert word in message, message


@settings(deadline=None, max_examples=60)
@given(array=arrays, name=st.sampled_from(["a-ubyte", "a-ubyte.gz"]))
def test_round_trip(array, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_idx(path, array)
        back = read_idx(path)
        assert os.listdir(folder) == [name]
        assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.dtype.isnative
    assert back.flags.writeable
    assert back.tobytes() == array.astype(back.dtype).tobytes()  # bitwise: NaN payloads and -0.0 too


@pytest.mark.parametrize("short", TYPES)
def test_known_bytes(tmp_path, short):
    values, letters = [1, 2, 3, 4, 5, 100], {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}
    by_hand = bytes([0, 0, TYPES[short], 2]) + struct.pack(">II", 2, 3)
    by_hand += struct.pack(">6" + letters[short], *values)
    (tmp_path / "a").write_bytes(by_hand)
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), np.array(values, short).reshape(2, 3), strict=True)
    write_idx(tmp_path / "b", np.array(values, short).reshape(2, 3))
    assert (tmp_path / "b").read_bytes() == by_hand


def test_gzip_is_seen_by_content(tmp_path):
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    write_idx(tmp_path / "a.gz", array)
    write_idx(tmp_path / "b", array)
    (tmp_path / "a.gz").rename(tmp_path / "packed")
    (tmp_path / "b").rename(tmp_path / "plain.gz")
    for name in ("packed", "plain.gz"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), array, strict=True)


def test_larger_than_one_chunk(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3, 1000, 1001), dtype=np.uint8)
    for name in ("a", "a.gz"):
        write_idx(tmp_path / name, array)
        np.testing.assert_array_equal(read_idx(tmp_path / name), array, strict=True)


def test_strided_array_is_written_in_c_order(tmp_path):
    array = np.arange(24, dtype=np.int32).reshape(4, 6).T[::2]
    write_idx(tmp_path / "a", array)
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array, strict=True)


# Damage


@pytest.fixture
def whole():
    """A (2, 3) uint8 file: 12 bytes of header and 6 of elements."""
    return bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_truncated_and_trailing(tmp_path, whole, pack):
    path = tmp_path / "a"
    for length in range(18):
        path.write_bytes(pack(whole[:length]))
        expected = "at least 4 " if length < 4 else "at least 12 " if length < 12 else "expected 18 bytes"
        expect_error(path, "truncated", expected, f"found {length}")
    path.write_bytes(pack(whole + b"xyz"))
    found = ("3 trailing", "found 21") if pack is bytes else (": trailing bytes: ", "found 19 or more")
    expect_error(path, "expected 18 bytes", *found)


def test_wrong_magic(tmp_path):
    (tmp_path / "a").write_bytes(b"\x89PNG\r\n\x1a\n")
    expect_error(tmp_path / "a", "wrong magic 89 50 4e 47", "begins with 00 00")


@pytest.mark.parametrize("code", [0x00, 0x0A, 0x0F, 0xFF])
def test_unknown_type(tmp_path, whole, code):
    (tmp_path / "a").write_bytes(whole[:2] + bytes([code]) + whole[3:])
    expect_error(tmp_path / "a", f"unknown IDX element type 0x{code:02X}", "0x08 uint8", "0x0E float64")


def test_too_many_dimensions(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 65]) + b"\0\0\0\1" * 65 + b"x")
    expect_error(tmp_path / "a", "65 dimensions", "0 to 64")


def test_broken_gzip(tmp_path, whole):
    packed, path = gzip.compress(whole), tmp_path / "a.gz"
    path.write_bytes(packed[:-5])  # the end of the stream is missing
    expect_error(path, "broken gzip")
    path.write_bytes(packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:])  # the checksum is wrong
    expect_error(path, "broken gzip", "CRC")
    path.write_bytes(packed[:10] + b"\xff" * 8 + packed[18:])  # no deflate stream
    expect_error(path, "broken gzip")
    path.write_bytes(packed + b"garbage")
    expect_error(path, "broken gzip")
    path.write_bytes(packed[:2])
    expect_error(path, "broken gzip")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", [0x08, 0x0E])
def test_huge_declared_size_allocates_nothing(tmp_path, pack, code):
    path = tmp_path / "a"
    path.write_bytes(pack(bytes([0, 0, code, 2]) + b"\xff" * 8 + bytes(100)))
    tracemalloc.start()
    try:
        expect_error(path, "truncated", str(12 + (2**32 - 1) ** 2 * (8 if code == 0x0E else 1)), "found 112")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_wrong_length_is_seen_before_anything_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 2**26))
    os.truncate(path, 8 + 2**26 + 1)
    tracemalloc.start()
    try:
        expect_error(path, "1 trailing byte:", f"expected {8 + 2**26} bytes", f"found {9 + 2**26}")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_empty_but_impossible_shape(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 8 + bytes(4))
    expect_error(tmp_path / "a", "too large")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_random_damage_is_an_input_error_or_an_array(data):
    packed = data.draw(st.booleans())
    original = bytes([0, 0, 0x0B, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(12))
    content = bytearray(gzip.compress(original) if packed else original)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            assert isinstance(read_idx(file.name), np.ndarray)
        except InputError as error:
            said = str(error)
        else:
            return
        assert file.name in said
        assert "\n" not in said


# The file system


def test_missing_folder_and_pipe(tmp_path):
    expect_error(tmp_path / "nothing", "no such file", "IDX file")
    expect_error(tmp_path, "is a folder", "IDX file")
    os.mkfifo(tmp_path / "pipe")
    expect_error(tmp_path / "pipe", "not a regular file")
    expect_error(f"{tmp_path}/a\0b", "null byte")


def test_permission_denied(tmp_path):
    path = tmp_path / "a"
    write_idx(path, np.zeros(3, np.uint8))
    path.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        expect_error(path, "cannot be read (Permission denied)")
    finally:
        if as_root:
            os.seteuid(0)
