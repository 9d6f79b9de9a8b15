"""Who owns which slice: the one place where something is divided among ranks, microbatches or tiles.

`size` things over `parts` owners, contiguous and in order; shares differ by at most one, the larger ones come first,
and an owner beyond the last thing has an empty share.

>>> shares(10, 4)
[3, 3, 2, 2]
>>> share(10, 4, 2)
slice(6, 8, None)
"""


def share(size: int, parts: int, index: int) -> slice:
    """The slice of `range(size)` that owner `index` of `parts` has."""
    if size < 0 or parts < 1 or not 0 <= index < parts:
        raise ValueError(f"share({size}, {parts}, {index}): needs size >= 0, parts >= 1 and 0 <= index < parts")
    quotient, remainder = divmod(size, parts)
    start = index * quotient + min(index, remainder)
    return slice(start, start + quotient + (index < remainder))


def shares(size: int, parts: int) -> list[int]:
    """How many of `size` things each of `parts` owners has; sums to `size`."""
    quotient, remainder = divmod(size, parts)
    return [quotient + (index < remainder) for index in range(parts)]
