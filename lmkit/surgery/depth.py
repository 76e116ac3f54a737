"""How deep in a network each parameter lies: embeddings, layers, head."""

from __future__ import annotations

import re

from torch import nn

__all__ = ["layer_stacks", "parameter_depths"]


def layer_stacks(network: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the stacks of layers of a network by name: its longest lists of one class.

    An encoder-decoder has two.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU(), nn.ReLU()]))
        >>> {name: len(stack) for name, stack in layer_stacks(network).items()}
        {'1': 2}
    """
    stacks = {
        name: list(module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
    }
    longest = max(map(len, stacks.values()), default=0)
    return {name: stack for name, stack in stacks.items() if len(stack) == longest}


def parameter_depths(network: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter: 0 is embeddings, 1 to n the layers, n + 1 the head.

    What a network registers before its layers belongs to the embeddings, what it registers behind
    them (a last normalization, a pooler) to the head.

    Args:
        network: with or without a head; one without layers is all head, at depth 1.

    Returns:
        The depth by the parameter's name, a tied one by its first.

    Example:
        >>> network = nn.Sequential(nn.Embedding(2, 2), nn.ModuleList([nn.Linear(2, 2)] * 1),
        ...     nn.Linear(2, 1))
        >>> parameter_depths(network)
        {'0.weight': 0, '1.0.weight': 1, '1.0.bias': 1, '2.weight': 2, '2.bias': 2}
    """
    stacks = layer_stacks(network)
    head = max((len(stack) for stack in stacks.values()), default=0) + 1
    inside = re.compile("|".join(rf"{re.escape(name)}\.(\d+)\." for name in stacks) or r"(?!)")
    depths: dict[str, int] = {}
    # Whatever comes before the first layer, and nothing if there is no layer.
    below = bool(stacks)
    for name, _ in network.named_parameters():
        match = inside.match(name)
        if match:
            below = False
            number = next(group for group in match.groups() if group is not None)
            depths[name] = int(number) + 1
        else:
            depths[name] = 0 if below else head
    return depths
