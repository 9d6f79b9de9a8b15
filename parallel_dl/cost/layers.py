"""Work and depth of one layer's forward pass: what the layer says (`nn.Operations`), or an estimate.

A layer's method `operations(input_shape)` gives them for one sample; a layer of the user's own may give the number of
operations alone. Without the method each of its weights is taken to be used once per sample, or each value of the
input, if it has none: an estimate, by which stages are cut.
"""

from __future__ import annotations

import math
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import says


def operations(passed: nn.LayerShape) -> nn.Operations:
    """What this layer does with one sample; InputError for a number of operations that is none.

    Where only their number is known, every value of the result is taken to be a sum of as many terms as any other.
    """
    layer: Any = passed.layer
    if says(layer, "operations"):
        said = layer.operations(passed.input)
        if isinstance(said, nn.Operations):
            return said
        if isinstance(said, bool) or not isinstance(said, int) or said < 0:
            raise InputError(
                f"{type(layer).__name__}.operations({passed.input}) gives {said!r}; "
                "expected a whole number, at least 0, or an nn.Operations"
            )
    else:
        said = layer.parameter_count() or math.prod(passed.input)
    return nn.Operations(said, (-(-said // max(1, math.prod(passed.output))),))
