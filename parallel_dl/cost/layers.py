"""Work and depth of one layer's forward pass: as the layer declares them (`nn.Operations`), or an estimate.

A layer's method `operations(input_shape)` gives them for one sample; a user's own layer may give just the number of
operations. Without the method, the estimate is one operation per weight and sample, or per input value if there are no
weights; it is used to cut stages.
"""

from __future__ import annotations

import math
from typing import Any

from parallel_dl import nn
from parallel_dl.errors import InputError
from parallel_dl.nn.shapes import says


def operations(passed: nn.LayerShape) -> nn.Operations:
    """The operations of this layer for one sample; InputError for an invalid number of operations.

    If only their number is known, all values of the result are assumed to be sums of the same number of terms.
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
