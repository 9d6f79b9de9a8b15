"""Who owns which slice: the only place that divides anything among ranks, microbatches or tiles.

`size` things over `parts` owners, contiguous and in order; shares differ by at most one, the larger ones come first,
and an owner beyond the last thing has an empty share.

>>> shares(10, 4)
[3, 3, 2, 2]
>>> share(10, 4, 2)
slice(6, 8, None)

With `leaves`, a multiple of `parts`, the things are first cut into this many leaves, and each owner has the same number
of neighbouring leaves: a boundary between owners, if there are two, is also one if there are four.

>>> shares(10, 4, leaves=8), shares(10, 2, leaves=8)
([4, 2, 2, 2], [6, 4])
"""

LEAVES = 8  # into how many everything is cut for results that are the same bits in every layout


def share(size: int, parts: int, index: int, leaves: int | None = None) -> slice:
    """The slice of `range(size)` of owner `index` of `parts`; ValueError for invalid arguments."""
    if size < 0 or parts < 1 or not 0 <= index < parts:
        raise ValueError(f"share({size}, {parts}, {index}): needs size >= 0, parts >= 1 and 0 <= index < parts")
    per_part, rest = divmod(leaves or parts, parts)
    if rest:
        raise ValueError(f"{leaves} leaves do not go evenly to {parts} owners")
    quotient, remainder = divmod(size, leaves or parts)
    first, last = index * per_part, (index + 1) * per_part
    return slice(first * quotient + min(first, remainder), last * quotient + min(last, remainder))


def shares(size: int, parts: int, leaves: int | None = None) -> list[int]:
    """The number of `size` things that each of `parts` owners has; these add up to `size`."""
    if leaves is not None:
        own = [share(size, parts, index, leaves) for index in range(parts)]
        return [part.stop - part.start for part in own]
    quotient, remainder = divmod(size, parts)
    return [quotient + (index < remainder) for index in range(parts)]
