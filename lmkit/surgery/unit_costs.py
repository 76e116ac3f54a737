"""How many parameters go with each head and each neuron, found by removing one of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .blocks import find_blocks, stack_paths
from .structured_pruning import RemoveUnits
from .units import Units

__all__ = [
    "LayerParameters",
    "count_layer_parameters",
    "layer_parameters",
    "queries_per_unit",
    "without_weights",
]


@dataclass(frozen=True)
class LayerParameters:
    """The parameters of a network's layers, embeddings and head aside.

    Attributes:
        total: of all layers of all stacks.
        per_unit: how many go with one unit, by name of `Units`.
    """

    total: int
    per_unit: Mapping[str, int] = field(default_factory=dict)

    def left(self, units: Sequence[Units], kept: Mapping[str, int]) -> int:
        """Return how many are left if of some units only so many are kept.

        Args:
            units: all that there are.
            kept: how many of each are kept, by name; of those that are not named, all.
        """
        gone = ((each.count - kept.get(each.name, each.count), each.name) for each in units)
        return self.total - sum(count * self.per_unit[name] for count, name in gone)


def without_weights(network: nn.Module) -> Any:
    """Copy a network without its numbers, on torch's device `meta`, where all costs nothing.

    Example:
        >>> without_weights(nn.Linear(2, 3)).weight.device.type
        'meta'
    """
    tensors = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    return copy.deepcopy(network, memo)


def count_layer_parameters(network: nn.Module, units: Sequence[Units]) -> LayerParameters:
    """Count the parameters of the layers, and those that go with one unit of each group.

    All are tried on a copy without weights: what cannot be removed is told here, before a fit of
    hours. Units at the same place of alike layers of a stack have the same number.

    Args:
        network: not changed.
        units: of `find_units`.

    Raises:
        ValueError: a layer is wrapped, factorized or otherwise not to be cut.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from lmkit.surgery.units import find_units
        >>> network = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16))
        >>> list(count_layer_parameters(network, find_units(network)).per_unit.values())
        [140, 17]
    """
    tried = {each.name: list(range(each.count - 1)) for each in units if each.count > 1}
    if tried:
        RemoveUnits(tried)(without_weights(network))
    probe = without_weights(network)
    before = total = layer_parameters(probe)
    known: dict[Any, int] = {}
    for each in units:
        key = each.stack, _place(each), each.count
        if key not in known and each.name in tried:
            RemoveUnits({each.name: tried[each.name]})(probe)
            after = layer_parameters(probe)
            known[key], before = before - after, after
    # The last unit stays, and what goes with it is never asked for.
    per_unit = {e.name: known.get((e.stack, _place(e), e.count), 0) for e in units}
    return LayerParameters(total, per_unit)


def queries_per_unit(network: nn.Module) -> dict[str, int]:
    """Return how many heads of queries each unit has, by name of `Units`; more than 1 in groups."""
    return {block.reader: block.queries for block in find_blocks(network, ["heads"])}


def _place(units: Units) -> str:
    """Return the name of what reads units within its layer."""
    return units.name.partition(f".{units.layer}.")[2] or units.name


def layer_parameters(network: nn.Module) -> int:
    """Count the parameters of all layers of all stacks, those that are tied once.

    Raises:
        NothingMatchedError: it is not known where the layers are.
    """
    stacks = [network.get_submodule(path) for path in stack_paths(network).values()]
    return sum(p.numel() for p in {id(p): p for s in stacks for p in s.parameters()}.values())
