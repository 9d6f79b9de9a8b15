"""The four ways to convolve beside PyTorch: time, multiplications, error. python -m benchmarks.convolution

A row per layer and method, float32, one BLAS thread: milliseconds of forward and both gradients, the ratio to PyTorch's
better memory format (all take turns), multiplications of a forward pass relative to the definition's, and the largest
error of the result and of the gradients, relative to the largest value, against float64.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

import numpy as np

from benchmarks.turns import medians
from parallel_dl.autograd import Tensor, ops
from parallel_dl.convolution import METHODS, Geometry, choose, multiplications, to_rows


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution: batch, channels in and out, image, kernel, and the rest of its arguments."""

    batch: int
    in_channels: int
    out_channels: int
    image: int
    kernel: int
    padding: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        more = "".join(f", {name} {getattr(self, name)}" for name in ("stride", "groups") if getattr(self, name) > 1)
        size = f"{self.kernel}x{self.kernel} on {self.image}x{self.image}"
        return f"{self.in_channels}-{self.out_channels}, {size}{more}, batch {self.batch}"

    @property
    def arguments(self) -> dict[str, int]:
        """As PyTorch and we call them."""
        return {"padding": self.padding, "stride": self.stride, "groups": self.groups}

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, weight and a gradient of the result, in float64."""
        random = np.random.default_rng(0)
        x = random.standard_normal((self.batch, self.in_channels, self.image, self.image))
        weight = random.standard_normal((self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel))
        return x, weight, random.standard_normal(self.geometry().out_shape)

    def geometry(self) -> Geometry:
        """All its sizes."""
        x_shape = (self.batch, self.in_channels, self.image, self.image)
        weight_shape = (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)
        return Geometry.of(x_shape, weight_shape, self.stride, self.padding, 1, self.groups)


LAYERS = (
    Layer(64, 1, 6, 28, 5, 2),
    Layer(64, 6, 16, 14, 5, 0),
    Layer(32, 3, 64, 32, 3, 1),
    Layer(32, 8, 8, 16, 3, 1),
    Layer(32, 16, 16, 16, 3, 1),
    Layer(32, 16, 16, 8, 3, 1),
    Layer(32, 32, 32, 16, 3, 1),
    Layer(32, 64, 192, 16, 3, 1),
    Layer(32, 192, 384, 8, 3, 1),
    Layer(32, 256, 256, 8, 3, 1),
    Layer(32, 256, 256, 4, 3, 1),
    Layer(8, 384, 384, 13, 3, 1, groups=2),
    Layer(8, 96, 256, 27, 5, 2, groups=2),
    Layer(8, 3, 96, 224, 11, 2, stride=4),
)


def _run(layer: Layer, method: str, arrays: tuple) -> list[np.ndarray]:
    """The result and the gradients of x and weight."""
    x, weight = (Tensor(array, requires_grad=True) for array in arrays[:2])
    y = ops.conv2d(x, weight, **layer.arguments, method=method)
    y.backward(arrays[2])
    return [y.data, x.grad, weight.grad]


def _torch_calls(layer: Layer, arrays: tuple) -> dict[str, Callable[[], object]]:
    import torch

    torch.set_num_threads(1)

    def call(memory_format) -> Callable[[], object]:
        x, weight, g = (torch.from_numpy(array).contiguous(memory_format=memory_format) for array in arrays)
        x.requires_grad_()
        weight.requires_grad_()

        def step() -> None:
            x.grad = weight.grad = None
            torch.nn.functional.conv2d(x, weight, **layer.arguments).backward(g)

        return step

    return {"torch": call(torch.contiguous_format), "torch, channels last": call(torch.channels_last)}


def _in_rows(array: np.ndarray) -> np.ndarray:
    """The same images in the memory order in which a layer before would have left them."""
    return to_rows(array).transpose(3, 1, 0, 2)


def measure(layer: Layer) -> list[dict]:
    """A row per method that can do the layer."""
    geometry = layer.geometry()
    exact = layer.arrays()
    arrays = tuple(array.astype(np.float32) for array in exact)
    ours = (_in_rows(arrays[0]), arrays[1], _in_rows(arrays[2]))
    able = [name for name in METHODS if METHODS[name].refusal(geometry) is None]
    calls: dict[str, Callable[[], object]] = {name: lambda name=name: _run(layer, name, ours) for name in able}
    others = _torch_calls(layer, arrays) if importlib.util.find_spec("torch") is not None else {}
    table = medians({**calls, **others}, repeats=5)
    reference = _run(layer, "im2col", exact)
    definition = sum(multiplications("direct", geometry).values())
    rows = []
    for name in able:
        errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(_run(layer, name, ours), reference)]
        counted = multiplications(name, geometry)
        row = {
            "method": name + (" (auto)" if name == choose(geometry, np.float32) else ""),
            "ms": min(times[name] for times in table) * 1e3,
            "products": counted["products"] / definition,
            "transforms": counted["transforms"] / definition,
            "error": max(errors),
        }
        if others:
            row["/ torch"] = min(times[name] / min(times[other] for other in others) for times in table)
        rows.append(row)
    return rows


def main() -> None:
    """Prints a table per layer."""
    if importlib.util.find_spec("torch") is None:
        print("no comparison with torch: it is not installed (pip install 'parallel_dl[bench]')")
    print("time of forward and both gradients; products and transforms: multiplications / those of the definition")
    for layer in LAYERS:
        print(f"{layer}: {sum(multiplications('direct', layer.geometry()).values()) / 1e6:.1f} million multiplications")
        for row in measure(layer):
            ratio = f"{row['/ torch']:6.2f} / torch" if "/ torch" in row else ""
            print(
                f"  {row['method']:19}{row['ms']:9.2f} ms {ratio}   products {row['products']:5.2f}, "
                f"transforms {row['transforms']:6.2f}, error {row['error']:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
