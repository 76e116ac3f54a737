"""How many numbers a network has: all, trained, other than zero, and in its tables of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .token_tables import token_tables

__all__ = ["ParameterCounts", "parameter_counts"]


class ParameterCounts(NamedTuple):
    """Numbers of a network; what is tied is counted once.

    Attributes:
        total: all of them.
        trainable: those that get a gradient.
        nonzero: those that are not zero, which is what pruning leaves.
        embedding: those in tables of tokens, a head that is tied to one among them.
    """

    total: int
    trainable: int
    nonzero: int
    embedding: int


@torch.no_grad()
def parameter_counts(network: nn.Module) -> ParameterCounts:
    """Count the numbers of a network.

    Args:
        network: any module; of one that has no network of transformers in it, all tables count as
            tables of tokens.

    Example:
        >>> network = nn.Sequential(nn.Embedding(3, 2, padding_idx=0), nn.Linear(2, 2, bias=False))
        >>> network[1] = network[1].requires_grad_(False)
        >>> parameter_counts(network)
        ParameterCounts(total=10, trainable=6, nonzero=8, embedding=6)
    """
    parameters = list(network.parameters())
    tables = {id(p): p for table in _tables(network) for p in table.parameters()}
    filled = [torch.count_nonzero(p) for p in parameters]
    # Added up where they are, so that a device is waited for once.
    nonzero = sum(part.to(filled[0].device) for part in filled) if filled else 0
    return ParameterCounts(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        int(nonzero),
        sum(p.numel() for p in tables.values()),
    )


def _tables(network: nn.Module) -> list[nn.Module]:
    named = any(isinstance(module, PreTrainedModel) for module in network.modules())
    found = token_tables(network).values() if named else network.modules()
    return [module for module in found if isinstance(module, nn.Embedding)]
