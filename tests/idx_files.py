"""Writes IDX files, which the package only reads."""

import gzip
import struct
from pathlib import Path

import numpy as np

from parallel_dl.datasets.idx import TYPES


def write_idx(path, array):
    """`array`, of one of the six element types, as an IDX file; gzipped when the name ends in .gz."""
    path = Path(path)
    (code,) = [code for code, dtype in TYPES.items() if dtype == array.dtype.newbyteorder(">")]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = header + np.ascontiguousarray(array, dtype=TYPES[code]).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
