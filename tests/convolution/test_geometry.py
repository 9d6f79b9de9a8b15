"""Where a tap of the kernel meets the image, and which sizes are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_dl.convolution import Geometry
from parallel_dl.convolution.geometry import Axis
from parallel_dl.errors import InputError

SMALL = st.integers(0, 6)


@given(
    st.integers(1, 20), st.integers(1, 5), st.integers(1, 6), SMALL, SMALL, st.integers(1, 4), SMALL, st.integers(1, 9)
)
def test_taps_against_a_search(length, kernel, stride, before, after, dilation, first, rows):
    axis = Axis(length, kernel, stride, before, after, dilation)
    if axis.out < 1:
        return
    for k in range(kernel):
        for part, chosen in ((axis.tap(k), range(axis.out)), (axis.tap(k, first, rows), range(first, first + rows))):
            found = [(i, i * stride + k * dilation - before) for i in chosen if i < axis.out]
            found = [(i, row) for i, row in found if 0 <= row < length]
            result, image = part
            assert list(zip(range(*result.indices(axis.out)), range(*image.indices(length)), strict=True)) == found


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "sizes", "message"),
    [
        ((2, 3, 4, 4), (8, 3, 5, 5), {}, "a kernel of 5 x 5 is larger than the padded image of 4 x 4"),
        ((2, 3, 4, 4), (8, 3, 5, 5), {}, "with this padding images from 5 x 5 on would fit"),
        ((2, 3, 4, 9), (8, 3, 3, 3), {"dilation": 3}, "a kernel of 7 x 7 (dilated by 3 x 3) is larger"),
        ((2, 3, 1, 9), (8, 3, 5, 5), {"padding": 1}, "images from 3 x 3 on would fit"),
        ((2, 1, 4, 4), (8, 3, 3, 3), {}, "needs 3 channels, got 1"),
        (
            (2, 6, 4, 4),
            (8, 6, 3, 3),
            {"groups": 4},
            "groups 4: must divide 6 input and 8 output channels; expected one of 1",
        ),
        ((2, 6, 4), (8, 6, 3, 3), {}, "four axes (samples, channels, height, width), not 3"),
    ],
)
def test_what_does_not_fit(x_shape, weight_shape, sizes, message):
    with pytest.raises(InputError) as error:
        Geometry.of(x_shape, weight_shape, **sizes)
    assert message in str(error.value)
