"""Structured pruning: heads, inner neurons, layers and hidden dimensions are physically removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Block, Writer, find_blocks
from .cuts import Cutting, Slice, Slices
from .units import group_blocks

__all__ = ["RemoveUnits", "remove_units"]

# What modules of transformers call the number of heads, that of keys and values, and all widths.
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_GROUPS = ("num_key_value_heads",)
_ALL = ("all_head_size", "inner_dim", "split_size")


@dataclass(frozen=True)
class RemoveUnits:
    """Remove all units of a network but some.

    Attributes:
        kept: the indices that are kept, increasing, by name of `Units`; units that are not named
            stay whole.
        layers: which layers to keep, as `keep_layers` takes them; `None` for all. Names and
            numbers are those of before.
        hidden: which hidden dimensions to keep; `None` for all.
        chosen: how the choice came about, as plain data; nothing is computed from it.
        counts: how many units there were, by name; lets a network that was pruned otherwise be
            told apart.
    """

    kept: Mapping[str, Sequence[int]]
    layers: Sequence[int] | Mapping[str, Any] | None = None
    hidden: Sequence[int] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, network: nn.Module) -> None:
        """Remove the units; when they are gone, do nothing."""
        remove_units(network, self)


def remove_units(network: Any, surgery: RemoveUnits) -> Slices:
    """Remove units, and say where each parameter comes from.

    Args:
        network: changed in place.
        surgery: what to keep.

    Returns:
        By the name of each parameter what part it is of which old one, so that what an optimizer
        knows of the old ones can be cut alike; and the names of those that are gone.
    """
    cutting = Cutting(network)
    for group in group_blocks(find_blocks(network)):
        kept = surgery.kept.get(group[0].reader)
        if kept is None or len(kept) == group[0].count:
            continue
        for block in group:
            _cut(cutting, network, block, kept)
    before = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    origins = cutting.perform()
    now = dict(network.named_parameters(remove_duplicate=False))
    slices: dict[str, Slice] = {name: origins[id(parameter)] for name, parameter in now.items()}
    there = {origin.name for origin in slices.values()}
    return Slices(slices, [name for name in before if name not in there and name not in now])


def _cut(cutting: Cutting, network: Any, block: Block, kept: Sequence[int]) -> None:
    units = torch.tensor(list(kept))
    for writer in block.writers:
        cutting.outputs(writer.name, _rows(units, writer, block.count))
    cutting.inputs(block.reader, _rows(units, Writer(block.reader, block.width, 1), block.count))
    holder = network.get_submodule(block.holder)
    heads = len(kept) * block.queries
    if block.kind == "ffn":
        cutting.size(holder, "intermediate_size", len(kept))
        return
    sizes = {word: heads for word in _HEADS}
    sizes |= dict.fromkeys(_GROUPS, len(kept)) | dict.fromkeys(_ALL, len(kept) * block.width)
    for word, size in sizes.items():
        cutting.size(holder, word, size)
    table = getattr(holder, "relative_attention_bias", None)
    if table is not None:
        cutting.parameter(table.weight, 1, units)
        cutting.size(table, "embedding_dim", len(kept))


def _rows(units: Tensor, writer: Writer, count: int) -> Tensor:
    """Return the outputs that belong to units, in each part of a layer that holds several."""
    inside = torch.arange(writer.width)
    starts = torch.arange(writer.parts) * count * writer.width
    return (starts[:, None, None] + units[None, :, None] * writer.width + inside).flatten()
