"""A data set that cannot be loaded is refused in one line."""

import pytest

from parallel_dl.datasets import load
from parallel_dl.errors import InputError


def expect_error(*words, **arguments):
    with pytest.raises(InputError) as caught:
        load(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
