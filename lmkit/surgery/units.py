"""The units of a transformer that can be removed, and gates on them: heads, inner neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .blocks import KINDS, find_blocks, group_blocks
from .twins import check_blocks

__all__ = ["Units", "find_units", "gate_units", "gated"]


@dataclass(frozen=True)
class Units:
    """The heads of one attention, or the inner neurons of one feed-forward block.

    With grouped queries a unit is a key-value head and all queries that it serves.

    Attributes:
        kind: `"heads"` or `"ffn"`.
        name: of the first reader; stays the same as long as no layer is removed.
        readers: dotted names of the linear layers whose input the units are. Several where they
            must all keep the same units: the attentions of a stack of T5 share one table of
            relative positions.
        count: how many units there are.
        width: how many inputs of a reader belong to one unit.
        layer: number of the first reader's layer, from 0.
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, else `""`.
    """

    kind: str
    name: str
    readers: tuple[str, ...]
    count: int
    width: int
    layer: int
    stack: str


def find_units(network: nn.Module, kinds: Sequence[str] = KINDS) -> list[Units]:
    """Find what can be removed from a network of transformers.

    Args:
        network: of an architecture whose layers are known; these may be wrapped.
        kinds: `"heads"`, `"ffn"` or both.

    Returns:
        Units in the order of the network.

    Raises:
        NothingMatchedError: a layer has none of a kind that are known.
        ValueError: there is no such kind, or more depends on the number of units than is known.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> network = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16))
        >>> [(units.kind, units.count, units.width) for units in find_units(network)]
        [('heads', 2, 4), ('ffn', 16, 1)]
    """
    blocks = find_blocks(network, kinds)
    check_blocks(network, blocks)
    return [
        Units(
            kind=first.kind,
            name=first.reader,
            readers=tuple(block.reader for block in group),
            count=first.count,
            width=first.width,
            layer=first.layer,
            stack=first.stack,
        )
        for group in group_blocks(blocks)
        for first in group[:1]
    ]


def gate_units(
    network: nn.Module, units: Sequence[Units], gates: Mapping[str, Tensor]
) -> list[RemovableHandle]:
    r"""Multiply units by gates, in front of the layers that read them.

    A reader computes $W (g \odot x) + b$, in which each unit's gate stands for all its inputs. With
    a gate of 0 the unit is as good as removed: its biases and what they become behind an activation
    are gone too. Neither parameters nor the state dict change.

    Args:
        network: gets hooks.
        units: of `find_units`.
        gates: by name of units, `[count]`; any numbers, differentiable. They are read in each
            forward pass, so that they may be changed in place. Units without a gate stay as they
            are.

    Returns:
        Handles, whose `remove()` takes the gates away.

    Raises:
        ValueError: a name is unknown, or a gate has another shape.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> network = nn.Sequential(layer)
        >>> units = Units("heads", "0", ("0",), count=2, width=2, layer=0, stack="")
        >>> handles = gate_units(network, [units], {"0": torch.tensor([1.0, 0.0])})
        >>> gated = network(torch.eye(4)).squeeze(1)
        >>> torch.equal(gated, layer.weight[0] * torch.tensor([1.0, 1.0, 0.0, 0.0]))
        True
    """
    known = {each.name: each for each in units}
    for name, gate in gates.items():
        if name not in known:
            raise ValueError(f"gates name {name!r}, and the units are {', '.join(known)}")
        if gate.shape != (known[name].count,):
            raise ValueError(
                f"the gate of {name} must have the shape ({known[name].count},), got "
                f"{tuple(gate.shape)}"
            )
    return [
        network.get_submodule(reader).register_forward_pre_hook(_Gate(gate))
        for name, gate in gates.items()
        for reader in known[name].readers
    ]


@contextmanager
def gated(network: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Gate units inside the block, see `gate_units`.

    Args:
        network: of an architecture whose layers are known.
        gates: by name of units, `[count]`.

    Raises:
        NothingMatchedError: no layer has units that are known.
        ValueError: a name is unknown, or a gate has another shape.
    """
    handles = gate_units(network, find_units(network), gates) if gates else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Gate:
    def __init__(self, gate: Tensor) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        gate = self.gate.to(x.device, x.dtype)
        opened = x.unflatten(-1, (gate.shape[0], -1)) * gate.unsqueeze(-1)
        return (opened.flatten(-2), *args[1:])
