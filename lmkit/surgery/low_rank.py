"""Linear layers and embeddings replaced by products of two narrow matrices, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..functional.low_rank import largest_rank
from .arguments import check_whole
from .base import NothingMatchedError, replace_module
from .bottleneck import layer_width
from .low_rank_layers import LowRankEmbedding, LowRankLinear
from .sites import match_sites
from .token_tables import token_tables
from .tuning import rename_trainable

__all__ = [
    "LowRank",
    "check_rank",
    "check_replaceable",
    "low_rank_layers",
    "make_dense",
    "matrix_places",
    "matrix_shape",
    "put_factors",
    "token_table",
]


@dataclass(frozen=True)
class LowRank:
    r"""Replace linear layers, and tables of embeddings, by products $A B$ of given ranks.

    $A$ is $o \times r$ and $B$ is $r \times i$, with $r < o i / (o + i)$, so that they are fewer
    numbers than $W$; the bias stays. This changes the structure alone: the factors start at random.
    `lmkit.surgery.low_rank_choice.choose_ranks` computes ranks and factors from the weights that
    there are, and `put_factors` sets them.

    What wraps a layer (LoRA, adapters) stays, and the layer inside is replaced.

    Attributes:
        ranks: $r$ by dotted name; or of linear layers by a role or a pattern, as `match_sites`
            takes them.
        chosen: how the ranks came about, as plain data; nothing is computed from it.

    Raises:
        ValueError: a rank is no whole number of at least 1, or there is none; when called, a rank
            saves nothing, or a layer is no plain one, shares its weight, or is factorized already.
        NothingMatchedError: when called, a name matches nothing; names what is near.

    Example:
        >>> network = nn.ModuleList([nn.ModuleDict({"fc1": nn.Linear(4, 12)})])
        >>> LowRank({"ffn_input": 2})(network)
        >>> network[0]["fc1"]
        LowRankLinear(in_features=4, out_features=12, rank=2, bias=True)
    """

    ranks: Mapping[str, int]
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the attributes."""
        for word in ("ranks", "chosen"):
            if not isinstance(given := getattr(self, word), Mapping):
                raise ValueError(f"{word} must be a mapping of names, got {given!r}")
            object.__setattr__(self, word, dict(given))
        for name, rank in self.ranks.items():
            check_whole(f"ranks[{name!r}]", rank, 1)
        if not self.ranks:
            raise ValueError("ranks must name layers, e.g. {'ffn_input': 64}")

    def __call__(self, network: nn.Module) -> None:
        """Replace the layers; when all are there with these ranks, do nothing."""
        ranks: dict[str, int] = {}
        for target, rank in self.ranks.items():
            ranks |= dict.fromkeys(matrix_places(network, target), rank)
        there = low_rank_layers(network)
        if all(name in there and there[name].rank == rank for name, rank in ranks.items()):
            return
        for name, rank in ranks.items():
            check_replaceable(network, name)
            check_rank(name, matrix_shape(network.get_submodule(name)), rank)
        for name, rank in ranks.items():
            _replace(network, name, rank)


def matrix_places(network: nn.Module, target: str) -> list[str]:
    """Return the dotted names of the layers that a target means, inside whatever wraps them.

    Args:
        network: where to look.
        target: a dotted name; or a role, `"all"` or a pattern, as `match_sites` takes them.

    Raises:
        NothingMatchedError: it matches nothing; names what is near.
    """
    layers = dict(network.named_modules())
    sites = [target] if target in layers else list(match_sites(network, [target]))
    places = []
    for site in sites:
        layer: Any = layers[site]
        while hasattr(layer, "base_layer"):
            site, layer = f"{site}.base_layer", layer.base_layer
        places.append(site)
    return places


def token_table(network: nn.Module) -> str:
    """Return the dotted name of the table of the tokens.

    Raises:
        NothingMatchedError: the network has none.
    """
    if names := list(token_tables(network)):
        return names[0]
    raise NothingMatchedError(f"{type(network).__name__} names no embeddings of tokens")


def matrix_shape(layer: Any) -> tuple[int, int]:
    """Return $(o, i)$ of a linear layer, and $(V, D)$ of a table."""
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    inside, outside = layer_width(layer)
    return outside, inside


def check_rank(name: str, shape: tuple[int, int], rank: int) -> None:
    """Check that factors of a rank are fewer numbers than the matrix.

    Raises:
        ValueError: they are not; names the layer and the break-even.

    Example:
        >>> check_rank("query", (384, 384), 192)
        Traceback (most recent call last):
        ...
        ValueError: rank is 192, and query has 384 x 384 numbers: from the break-even
        384 * 384 / (384 + 384) = 192 on, factors save nothing; give it a rank of at most 191, or
        leave it out
    """
    rows, columns = shape
    most = largest_rank(rows, columns)
    if rank > most:
        even = rows * columns / (rows + columns)
        remedy = f"give it a rank of at most {most}, or leave it out" if most else "leave it out"
        raise ValueError(
            f"rank is {rank}, and {name} has {rows} x {columns} numbers: from the break-even "
            f"{rows} * {columns} / ({rows} + {columns}) = {even:.5g} on, factors save nothing; "
            f"{remedy}"
        )


def check_replaceable(network: nn.Module, name: str) -> None:
    """Check that a layer is a plain one, and alone has its weight.

    Raises:
        ValueError: it is not; says why.
    """
    layer: Any = network.get_submodule(name)
    if isinstance(layer, LowRankLinear | LowRankEmbedding):
        raise ValueError(
            f"{name} is a product of rank {layer.rank} already: factorize a dense network, or "
            "leave this layer out"
        )
    if type(layer) not in (nn.Linear, Conv1D, nn.Embedding):
        raise ValueError(
            f"{name} is a {type(layer).__name__}, and only plain linear layers and tables are "
            "factorized; leave it out"
        )
    if not layer.weight.is_floating_point():
        raise ValueError(f"{name} has a weight of {layer.weight.dtype}; load it in float32 first")
    if getattr(layer, "max_norm", None) is not None or getattr(layer, "sparse", False):
        raise ValueError(f"{name} renorms its rows or has sparse gradients; leave it out")
    names = [n for n, p in network.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(names) > 1:
        why = (
            "what shares it would lose its tie, which a config cannot say: leave embedding_rank "
            "out, or untie them first (tie_word_embeddings: false in the config)"
            if isinstance(layer, nn.Embedding)
            else "the others would keep the whole matrix: leave this layer out"
        )
        tied = " and ".join(names)
        raise ValueError(f"{name} cannot be factorized: {tied} are one weight, and {why}")


def low_rank_layers(network: nn.Module) -> dict[str, Any]:
    """Return the factorized layers and tables of a network by dotted name.

    Example:
        >>> low_rank_layers(nn.Linear(2, 2))
        {}
    """
    kinds = LowRankLinear | LowRankEmbedding
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def put_factors(network: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Set the factors of layers.

    Args:
        network: factorized; changed in place.
        factors: $A$ `[o, r]` and $B$ `[r, i]` by dotted name, of the table of the tokens `[V, r]`
            and `[r, D]`.
    """
    for name, (up, down) in factors.items():
        layer: Any = network.get_submodule(name)
        if isinstance(layer, LowRankEmbedding):
            layer.table.copy_(up)
            layer.up.copy_(down.T)
        else:
            layer.up.copy_(up)
            layer.down.copy_(down)


def make_dense(network: nn.Module) -> None:
    """Put plain layers with the products as their weights in the place of all factorized ones.

    Args:
        network: changed in place; without factorized layers it stays as it is.

    Example:
        >>> network = nn.Sequential(nn.Linear(9, 9))
        >>> LowRank({"0": 3})(network)
        >>> make_dense(network)
        >>> network
        Sequential(
          (0): Linear(in_features=9, out_features=9, bias=True)
        )
    """
    for name, layer in low_rank_layers(network).items():
        replace_module(network, name, layer.dense())
        rename_trainable(network, [f"{name}.{word}" for word in _matrices(layer)], _weight(name))


def _replace(network: nn.Module, name: str, rank: int) -> None:
    layer: Any = network.get_submodule(name)
    shape, weight = matrix_shape(layer), layer.weight
    how = {"device": weight.device, "dtype": weight.dtype}
    made: Any
    if isinstance(layer, nn.Embedding):
        made = LowRankEmbedding(*shape, rank, layer.padding_idx, **how)
    else:
        has_bias, turned = layer.bias is not None, isinstance(layer, Conv1D)
        made = LowRankLinear(shape[1], shape[0], rank, has_bias, turned, **how)
        made.bias = layer.bias
    for word in _matrices(made):
        getattr(made, word).requires_grad_(weight.requires_grad)
    replace_module(network, name, made)
    rename_trainable(network, [_weight(name)[0]], [f"{name}.{word}" for word in _matrices(made)])


def _matrices(layer: Any) -> Iterator[str]:
    return (word for word, parameter in layer.named_parameters() if parameter.dim() == 2)


def _weight(name: str) -> list[str]:
    return [f"{name}.weight"]
