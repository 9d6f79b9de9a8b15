"""The splits of a network for which none are given."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_dl import nn
from parallel_dl.splits.leaves import computes_in_leaves, default_between_leaves


def default_splits(network: nn.Module, input_shape: Sequence[int], ranks: int) -> dict[str, str]:
    """A way for every layer that can be split; none on one rank.

    A network with towers (convolutions of several groups, like AlexNet) is divided as in 2012: each tower on its own
    rank, or on several ranks by filters; fully connected layers by their output (Krizhevsky, Sutskever and Hinton 2012,
    section 3.5). Otherwise convolutions, which have few weights and large images, are split by image rows, and fully
    connected layers in pairs of output and input, which takes one all-reduce in each direction (Shoeybi et al. 2019,
    arXiv 1909.08053, section 3). Branches are assigned to ranks whole. In a network that computes in leaves
    (`parallel_dl.reproducible`), convolutions are split in such pairs, too, by filters and then channels, or all by
    filters if there are towers; Branches are split layer by layer.
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
