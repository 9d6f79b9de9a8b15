"""The IDX format, in which MNIST and its relatives are distributed: a tiny header, then one big-endian array.

    byte 0, 1   zero
    byte 2      element type: 0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64
    byte 3      number of dimensions d
    4 d bytes   the sizes, unsigned 32-bit
    the rest    the elements in C order

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section on file formats.
"""

import gzip
import math
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np

from parallel_dl.errors import InputError, number_of
from parallel_dl.files import one_line, opened, require_memory

SHORT_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
TYPES = {code: np.dtype(f">{short}") for code, short in SHORT_TYPES.items()}
VALID_TYPES = ", ".join(f"0x{code:02X} {dtype.name}" for code, dtype in TYPES.items())
MOST_DIMENSIONS = 64  # NumPy's limit; the format's is 255
CHUNK = 1 << 20
SLACK = 1 << 16  # bytes of gzip's own headers
MOST_PER_BYTE = 1040  # bytes that come out of one byte of gzip


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, plain or gzipped (judged by its content, not its name).

    Returns a new array of the shape and type that the header declares, in native byte order.

    Raises InputError, naming the file: missing, unreadable or a folder; wrong magic; unknown element type; truncated or
    with trailing bytes (with the expected and the found number of bytes); broken gzip; more than fits in memory. Memory
    is allocated for the bytes present, never for a declared size; nothing is decompressed beyond it.
    """
    with opened(path, "an IDX file, plain or gzipped") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        length = os.fstat(file.fileno()).st_size
        file.seek(0)
        try:
            return _read_array(gzip.GzipFile(fileobj=file) if compressed else file, path, length, compressed)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: broken gzip ({one_line(error)}); expected a whole gzipped IDX file") from error


def _read_array(
    stream: BinaryIO | gzip.GzipFile, path: str | os.PathLike[str], length: int, compressed: bool
) -> np.ndarray:
    """Header, then elements. `length` is that of the file in bytes."""
    magic = _read(stream, 4)
    if any(magic[:2]):
        raise InputError(f"{path}: wrong magic {magic.hex(' ')}; an IDX file begins with 00 00")
    if len(magic) < 4:
        raise InputError(f"{path}: truncated: expected at least 4 bytes of header, found {len(magic)}")
    code, dimensions = magic[2:]
    if code not in TYPES:
        raise InputError(f"{path}: unknown IDX element type 0x{code:02X}; expected one of {VALID_TYPES}")
    if dimensions > MOST_DIMENSIONS:
        raise InputError(f"{path}: {dimensions} dimensions; expected 0 to {MOST_DIMENSIONS}")
    sizes = _read(stream, 4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise InputError(
            f"{path}: truncated: expected at least {4 + 4 * dimensions} bytes of header for "
            f"{number_of(dimensions, 'dimension')}, found {4 + len(sizes)}"
        )
    shape, dtype = struct.unpack(f">{dimensions}I", sizes), TYPES[code]

    header, body = 4 + 4 * dimensions, math.prod(shape) * dtype.itemsize
    declared = f"expected {header + body} bytes for shape {shape} of {dtype.name}"
    if compressed and length > 2 * (header + body) + SLACK:  # even noise is hardly longer when it is compressed
        raise InputError(f"{path}: {length} bytes of gzip: {declared}, uncompressed")
    if compressed or length == header + body:
        require_memory(f"{path}: shape {shape} of {dtype.name}", min(body, MOST_PER_BYTE * length))
        elements = _read(stream, body)
        length = header + len(elements) + len(stream.read(1))  # reading to the end also checks the gzip checksum
    else:
        elements = bytearray()
    if length != header + body:
        more = length - header - body
        what = "truncated" if more < 0 else "trailing bytes" if compressed else number_of(more, "trailing byte")
        raise InputError(f"{path}: {what}: {declared}, found {length}{' or more' if compressed and more > 0 else ''}")
    try:
        return np.frombuffer(elements, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    except ValueError as error:  # no element, but sizes whose product is beyond NumPy
        raise InputError(f"{path}: shape {shape} is too large for an array ({one_line(error)})") from error


def _read(stream: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Up to `count` bytes, fewer at the end of the stream; grows with what arrives, whatever `count` promises."""
    data = bytearray()
    while len(data) < count and (chunk := stream.read(min(CHUNK, count - len(data)))):
        data += chunk
    return data
