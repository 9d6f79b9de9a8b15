"""Winograd's minimal filtering: m x m outputs of a 3 x 3 kernel from (m+2)**2 multiplications per channel, not 9 m**2.

Y = A^T [(G g G^T) * (B^T d B)] A for a tile d of (m+2) x (m+2) pixels and a kernel g, the product * element by
element (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, equation 12). Over
channels, tiles and samples the products are (m+2)**2 matrix products. The transforms are linear maps of whole tiles, so
each is one matrix product, too, with a Kronecker product: vec(B^T d B) = (B (x) B)^T vec(d). The pullbacks are the same
maps transposed.

In float32 F(2x2, 3x3) is as exact as the other methods. F(4x4, 3x3) has larger constants: its relative error is about
1e-5. In float64 neither matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from parallel_dl.convolution.geometry import Geometry
from parallel_dl.convolution.rows import Array, Convolved

_BLOCK = 1 << 17  # values of all tiles that are transformed at a time: they stay in the cache

# F(2x2, 3x3): Lavin and Gray 2016, section 4.1
B2 = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
G2 = [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]
A2 = [[1, 1, 1, 0], [0, 1, -1, -1]]
# F(4x4, 3x3): section 4.2
B4 = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
G4 = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
A4 = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
TRANSFORMS = {2: (B2, G2, A2), 4: (B4, G4, A4)}


@cache
def transforms(m: int, dtype: np.dtype) -> tuple[Array, Array, Array]:
    """The transforms of whole tiles: of data ((m+2)^2, (m+2)^2), kernels ((m+2)^2, 9) and results (m^2, (m+2)^2)."""
    data, kernel, result = (np.kron(matrix, matrix).astype(dtype) for matrix in map(np.array, TRANSFORMS[m]))
    return data, kernel, result


def refusal(geometry: Geometry) -> str | None:
    """What it cannot do: other kernels than 3 x 3, strides, dilation."""
    both = geometry.vertical, geometry.horizontal
    wanted = {"kernel": 3, "stride": 1, "dilation": 1}
    for name, valid in wanted.items():
        values = tuple(getattr(axis, name) for axis in both)
        if values != (valid, valid):
            return f"{name} {values[0]} x {values[1]} (it needs {valid} x {valid})"
    return None


def tiles(m: int, geometry: Geometry) -> tuple[int, int]:
    """Tiles of m x m that cover the result: (down, across)."""
    return -(-geometry.vertical.out // m), -(-geometry.horizontal.out // m)


def convolve(x: Array, weight: Array, geometry: Geometry, m: int) -> Convolved:
    """F(m x m, 3 x 3) on all tiles; the last tiles may hang over the edge."""
    maps = _Maps(geometry, m, x.dtype)
    square, groups = maps.edge**2, geometry.groups
    out_channels, in_channels = geometry.out_channels, geometry.in_channels
    # kernels: (edge^2, groups, out, in); data: (edge^2, groups, in, tiles)
    kernels = np.matmul(maps.of_kernel, weight.reshape(-1, 9).T).reshape(
        square, groups, out_channels // groups, in_channels // groups
    )
    data = maps.data(x).reshape(square, groups, in_channels // groups, maps.count)
    value = maps.result(np.matmul(kernels, data).reshape(square, out_channels, maps.count))

    def prepare(g: Array) -> Array:
        """The gradient of the products: (edge^2, groups, out, tiles)."""
        return maps.result_transposed(g).reshape(square, groups, out_channels // groups, maps.count)

    def input_gradient(products: Array) -> Array:
        gradient = np.matmul(kernels.swapaxes(2, 3), products)
        return maps.data_transposed(gradient.reshape(square, in_channels, maps.count))

    def weight_gradient(products: Array, out: Array) -> None:
        gradient = np.matmul(products, data.swapaxes(2, 3)).reshape(square, out_channels * (in_channels // groups))
        np.matmul(gradient.T, maps.of_kernel, out=out.reshape(-1, 9))

    return Convolved(value, prepare, input_gradient, weight_gradient)


class _Maps:
    """The transforms of the images of a convolution, tile by tile, and the same transposed; images are as in `rows`.

    Transformed, they are (edge^2, channels, tiles), with edge = m + 2.
    """

    def __init__(self, geometry: Geometry, m: int, dtype: np.dtype) -> None:
        self.geometry, self.m, self.edge = geometry, m, m + 2
        self.of_data, self.of_kernel, self.of_result = transforms(m, dtype)
        self.down, self.across = tiles(m, geometry)
        self.samples = geometry.batch
        self.count = self.down * self.across * self.samples
        """tiles of one channel"""
        height, width = self.down * m, self.across * m
        self.padded_shape = (height + 2, geometry.in_channels, width + 2, self.samples)
        self.value_shape = (height, geometry.out_channels, width, self.samples)
        self.inside = geometry.vertical.inside, slice(None), geometry.horizontal.inside

    def _blocks(self, channels: int) -> Iterator[slice]:
        """Channels of which all tiles are transformed at a time."""
        step = max(1, _BLOCK // max(1, self.edge**2 * self.count))
        return (slice(first, min(first + step, channels)) for first in range(0, channels, step))

    def data(self, x: Array) -> Array:
        """Of the input."""
        m, edge, down, across = self.m, self.edge, self.down, self.across
        padded = np.zeros_like(x, shape=self.padded_shape)
        padded[self.inside] = x
        made = np.empty_like(x, shape=(edge**2, x.shape[1], self.count))
        for block in self._blocks(x.shape[1]):
            tile = _overlapping(padded[:, block], edge, m, down, across).reshape(edge**2, _width(block) * self.count)
            made[:, block] = np.matmul(self.of_data, tile).reshape(edge**2, _width(block), self.count)
        return made

    def data_transposed(self, gradient: Array) -> Array:
        """To the gradient of the input."""
        m, edge, down, across = self.m, self.edge, self.down, self.across
        padded = np.zeros_like(gradient, shape=self.padded_shape)
        for block in self._blocks(gradient.shape[1]):
            tile = np.matmul(self.of_data.T, gradient[:, block].reshape(edge**2, _width(block) * self.count))
            tile = tile.reshape(edge, edge, _width(block), down, across, self.samples)
            for a in range(edge):
                for b in range(edge):
                    where = padded[a : a + (down - 1) * m + 1 : m, block, b : b + (across - 1) * m + 1 : m]
                    where += tile[a, b].swapaxes(0, 1)
        return padded[self.inside]

    def result(self, products: Array) -> Array:
        """To the result, without what tiles hang over the edge."""
        m = self.m
        value = np.empty_like(products, shape=self.value_shape)
        for block in self._blocks(products.shape[1]):
            tile = np.matmul(self.of_result, products[:, block].reshape(self.edge**2, _width(block) * self.count))
            tile = tile.reshape(m, m, _width(block), self.down, self.across, self.samples)
            _side_by_side(value[:, block], m)[...] = tile
        return value[: self.geometry.vertical.out, :, : self.geometry.horizontal.out]

    def result_transposed(self, g: Array) -> Array:
        """Of the gradient of the result."""
        m = self.m
        if g.shape != self.value_shape:  # tiles hang over the edge: no gradient there
            whole = np.zeros_like(g, shape=self.value_shape)
            whole[: g.shape[0], :, : g.shape[2]] = g
            g = whole
        made = np.empty_like(g, shape=(self.edge**2, g.shape[1], self.count))
        for block in self._blocks(g.shape[1]):
            tile = np.ascontiguousarray(_side_by_side(g[:, block], m)).reshape(m * m, _width(block) * self.count)
            made[:, block] = np.matmul(self.of_result.T, tile).reshape(self.edge**2, _width(block), self.count)
        return made


def _width(block: slice) -> int:
    return block.stop - block.start


def _overlapping(padded: Array, edge: int, m: int, down: int, across: int) -> Array:
    """Rows (height, channels, width, samples) as overlapping tiles (edge, edge, channels, down, across, samples)."""
    _, channels, _, samples = padded.shape
    row, channel, column, sample = padded.strides
    shape = (edge, edge, channels, down, across, samples)
    return as_strided(padded, shape, (row, column, channel, m * row, m * column, sample), subok=True)


def _side_by_side(rows: Array, m: int) -> Array:
    """Rows (down m, channels, across m, samples) as tiles (m, m, channels, down, across, samples), a view."""
    height, channels, width, samples = rows.shape
    return rows.reshape(height // m, m, channels, width // m, m, samples).transpose(1, 4, 2, 0, 3, 5)


f2x2: Callable[[Array, Array, Geometry], Convolved] = partial(convolve, m=2)
f4x4: Callable[[Array, Array, Geometry], Convolved] = partial(convolve, m=4)
