"""Counter-based random streams: a value depends on what it is for, never on who draws it or in which order.

A parameter's values are keyed by (seed, its name in the whole network, tile of 256 x 256), a dropout mask by (seed,
step, layer name) and the element's position in the global batch. So every layout of the ranks starts from the same
network and drops the same units, and a rank draws only the tiles it owns. The generator is Philox 4x64 (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

import hashlib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from parallel_dl.errors import number_of

TILE = 256

Places = int | np.ndarray
"""Where samples are in the global batch: the place of the first of neighbours, or an array (samples,) of all places."""


class Position:
    """A network's position in training: what its dropout masks depend on besides seed and layer name.

    `step` is the number of the update; `first_sample` is the index of the batch's first sample in the global batch or,
    if samples are not contiguous, an array (samples,) with the index of each. While `step` is None, every forward pass
    in training mode counts as a new step.

    `calls` counts the calls in each place since `Module.set_position`, or since the network's last forward pass began.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.first_sample: Places = 0
        self.calls: dict[str, int] = {}


def _key(*parts: object) -> np.ndarray:
    """128 bits that identify the parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def parameter_values(
    seed: int,
    name: str,
    shape: tuple[int, ...],
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray],
    window: tuple[slice, slice] | None = None,
    dtype: Any = np.float64,
) -> np.ndarray:
    """The values of a parameter, or of a window of it, as `draw(generator, (rows, columns))` makes them in float64.

    The parameter is seen as a matrix (shape[0], everything else). `window` is a pair of slices of it: only the tiles
    it touches are drawn, one at a time, and the result is a matrix of the window's size; without it the result has
    `shape`.
    """
    rows, columns = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    row_window, column_window = window if window is not None else (slice(0, rows), slice(0, columns))
    first_row, last_row, _ = row_window.indices(rows)
    first_column, last_column, _ = column_window.indices(columns)
    values = np.empty((max(0, last_row - first_row), max(0, last_column - first_column)), dtype)
    key = _key("parameter", seed, name)
    for top in range(first_row // TILE * TILE, last_row, TILE):
        height = min(TILE, rows - top)
        for left in range(first_column // TILE * TILE, last_column, TILE):
            width = min(TILE, columns - left)
            counter = np.array([0, 0, top // TILE, left // TILE], np.uint64)
            tile = draw(np.random.Generator(np.random.Philox(key=key, counter=counter)), (height, width))
            # the part of the tile inside the window
            inside_rows = slice(max(first_row - top, 0), min(last_row - top, height))
            inside_columns = slice(max(first_column - left, 0), min(last_column - left, width))
            row, column = top + inside_rows.start - first_row, left + inside_columns.start - first_column
            part = tile[inside_rows, inside_columns]
            values[row : row + part.shape[0], column : column + part.shape[1]] = part
    return values.reshape(shape) if window is None else values


def keep_mask(seed: int, step: int, name: str, shape: tuple[int, ...], first_sample: Places, p: float) -> np.ndarray:
    """A boolean array of this shape (samples, ...): False with probability p, for the samples from `first_sample` on.

    Element e of the global batch uses the e-th 32-bit word of the stream of (seed, step, name). With an array
    (samples,) as `first_sample` row i is that of the sample at that place; ValueError for another number of places.
    """
    if isinstance(first_sample, np.ndarray):
        if first_sample.shape != shape[:1]:
            raise ValueError(f"places of shape {first_sample.shape} for {number_of(shape[0], 'sample')}")
        mask = np.empty(shape, bool)
        starts = np.flatnonzero(np.diff(first_sample, prepend=-2) != 1).tolist()  # of runs of neighbours
        for start, stop in pairwise([*starts, shape[0]]):
            run = (stop - start, *shape[1:])
            mask[start:stop] = keep_mask(seed, step, name, run, int(first_sample[start]), p)
        return mask
    width = math.prod(shape[1:])
    count = math.prod(shape)
    if not count:
        return np.ones(shape, bool)
    first = first_sample * width
    # one counter value gives four 64-bit numbers: eight 32-bit words
    block, skipped = divmod(first, 8)
    generator = np.random.Philox(key=_key("dropout", seed, step, name), counter=np.array([block, 0, 0, 0], np.uint64))
    words = generator.random_raw((skipped + count + 1) // 2).astype("<u8", copy=False).view("<u4")
    return (words[skipped : skipped + count] >= np.uint32(min(round(p * 2**32), 2**32 - 1))).reshape(shape)
