"""The splits of a network for which none are given."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_dl import nn
from parallel_dl.splits.leaves import computes_in_leaves, default_between_leaves


def default_splits(network: nn.Module, input_shape: Sequence[int], ranks: int) -> dict[str, str]:
    """A way for every layer that can be split; none at all on one rank.

    A network with towers (convolutions of several groups, like AlexNet) is divided as in 2012: each tower on a rank of
    its own, or on several by filters; fully connected layers by their output (Krizhevsky, Sutskever and Hinton 2012,
    section 3.5). Otherwise convolutions, with few weights and large images, are divided by image rows, and fully
    connected layers in pairs, output and then input, which takes one all-reduce in either direction (Shoeybi et al.
    2019, arXiv 1909.08053, section 3). Branches are given to ranks as wholes. A network that computes in leaves
    (`parallel_dl.reproducible`) has convolutions in such pairs, too, by filters and then channels, or all by filters
    where there are towers; Branches are divided layer by layer.
    """
    if ranks == 1:
        return {}
    layers = list(nn.layer_shapes(network, input_shape))
    towers = max((p.layer.groups for p in layers if isinstance(p.layer, nn.Conv2d)), default=1)
    if computes_in_leaves(layers):
        return default_between_leaves(layers, towers)
    branches = [p.name for p in layers if isinstance(p.layer, nn.Branches)]
    splits: dict[str, str] = {}
    pair = "output"
    for passed in layers:
        layer, name = passed.layer, passed.name
        if any(name.startswith(f"{outer}.") for outer in branches):
            continue
        if isinstance(layer, nn.Branches):
            splits[name] = "towers"
        elif isinstance(layer, nn.Conv2d):
            by_tower = "towers" if layer.groups >= ranks and layer.groups > 1 else "filters"
            splits[name] = by_tower if towers > 1 else "rows"
        elif isinstance(layer, nn.Linear) and len(passed.input) == 1:
            splits[name] = "output" if towers > 1 else pair
            pair = "input" if pair == "output" else "output"
    return splits
