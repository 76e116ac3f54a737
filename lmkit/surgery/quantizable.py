"""Which layers of a network can be quantized, with all that share their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import NothingMatchedError, match_modules
from .fake_quantized_layers import (
    FakeQuantizedConv1D,
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
)
from .low_rank_layers import LowRankEmbedding, LowRankLinear
from .quantized_layers import QuantizedEmbedding, QuantizedLinear
from .sites import ROLES, base_name, find_sites, match_sites

__all__ = ["left_out", "quantizable_layers"]

# A subclass may compute something else with its weight, so these and no others.
_LINEAR = (nn.Linear, Conv1D, FakeQuantizedLinear, FakeQuantizedConv1D, QuantizedLinear)
_TABLES = (nn.Embedding, FakeQuantizedEmbedding, QuantizedEmbedding)


def quantizable_layers(
    network: nn.Module,
    targets: Sequence[str],
    exclude: Sequence[str] = (),
    embeddings: bool = True,
) -> dict[str, nn.Module]:
    """Find the layers to be quantized, inside whatever wraps them.

    What shares its weight with one of them is one of them too.

    Args:
        network: where to look.
        targets: roles, `"all"` or patterns of names of linear layers, as `match_sites` takes them;
            may be empty if there are tables.
        exclude: roles, names or patterns of what is left out: layers, parts with all layers in
            them, and what shares their weights.
        embeddings: whether the tables of the tokens are among them. One that its architecture
            scales, or factorizes, is left out.

    Returns:
        Linear layers and tables by dotted name, in the order of the network; never empty.

    Raises:
        NothingMatchedError: a target, or something that is excluded, matches nothing; names what is
            near. Or all is excluded.
        ValueError: a target is no plain layer, or shares its weight with something that is none.

    Example:
        >>> layer = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "k_proj": nn.Linear(2, 2)})
        >>> list(quantizable_layers(nn.ModuleList([layer]), ["*_proj"], exclude=["key"]))
        ['0.q_proj']
    """
    modules = dict(network.named_modules())
    shared = _shared(modules)
    # By name, the target that asks for it.
    chosen: dict[str, str] = {}
    for name in _places(modules, match_sites(network, targets) if targets else {}):
        chosen |= {each: chosen.get(each, name) for each in shared[name]}
    for name in _token_tables(network, modules) if embeddings else ():
        if all(_is_plain(modules[each]) for each in shared[name]):
            chosen |= {each: chosen.get(each, name) for each in shared[name]}
    if not chosen:
        raise NothingMatchedError(
            "there is nothing to quantize: targets name no layer, and no table of the tokens was "
            "found"
        )
    gone = left_out(network, exclude)
    gone |= {each for name in gone & chosen.keys() for each in shared[name]}
    _check_exclude(network, exclude, set(chosen))
    left = {name: module for name, module in modules.items() if name in chosen.keys() - gone}
    if not left:
        raise NothingMatchedError(f"exclude={list(exclude)} leaves nothing to quantize")
    for name, module in left.items():
        _check(name, module, chosen[name])
    return left


def left_out(network: nn.Module, exclude: Sequence[str]) -> set[str]:
    """Return the names of all layers that are named, or stand in a part that is.

    Args:
        network: where to look.
        exclude: roles, names or patterns.

    Raises:
        NothingMatchedError: one matches nothing; names what is near.

    Example:
        >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
        >>> sorted(left_out(network, ["0"]))
        ['0', '0.0', '0.1']
    """
    found: set[str] = set()
    for pattern in exclude:
        plain = {base_name(name): name for name, _ in network.named_modules()}
        if pattern in ROLES:
            parts = list(find_sites(network, [pattern]))
        elif pattern in plain:
            parts = [pattern]
        else:
            parts = list(match_modules(network, [pattern]))
        for part in map(base_name, parts):
            found |= {
                name
                for name, _ in network.named_modules()
                if base_name(name) == part or base_name(name).startswith(f"{part}.")
            }
    return found


def _places(modules: Mapping[str, Any], sites: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the layers inside what wraps them."""
    for name in sites:
        while hasattr(modules[name], "base_layer"):
            name = f"{name}.base_layer"
        yield name


def _shared(modules: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the names of all modules that hold the weight of a module, by its name."""
    users: dict[int, set[str]] = {}
    for name, module in modules.items():
        # A weight that is computed anew each time is nobody else's.
        weight = module._parameters.get("weight", module)
        users.setdefault(id(weight), set()).add(name)
    return {name: names for names in users.values() for name in names}


def _token_tables(network: nn.Module, modules: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the tables of the tokens; of an encoder-decoder there may be several."""
    known: Any = network
    first = known.get_input_embeddings() if hasattr(known, "get_input_embeddings") else None
    if not isinstance(first, nn.Embedding):
        return
    sizes = first.num_embeddings, first.embedding_dim
    for name, module in modules.items():
        same = isinstance(module, nn.Embedding) and (
            (module.num_embeddings, module.embedding_dim) == sizes
        )
        if same and _is_plain(module):
            yield name


def _is_plain(module: Any) -> bool:
    if type(module) in _TABLES:
        return module.max_norm is None and not module.sparse
    return type(module) in _LINEAR


def _check(name: str, layer: Any, target: str) -> None:
    """Check that a layer can be quantized.

    Raises:
        ValueError: it cannot; says why.
    """
    if isinstance(layer, LowRankLinear | LowRankEmbedding):
        raise ValueError(
            f"{name} is a product of rank {layer.rank}, whose factors are not quantized: leave it "
            "out (exclude), or export it as ONNX with quantize='int8', where both are"
        )
    if not _is_plain(layer):
        also = "" if name == target else f", which shares the weight of {target},"
        raise ValueError(
            f"{name}{also} is a {type(layer).__name__}, and only plain linear layers and tables "
            "are quantized: leave it out (exclude)"
        )
    if not layer.weight.is_floating_point() and not hasattr(layer, "scheme"):
        raise ValueError(
            f"{name} has a weight of {layer.weight.dtype}: load it in floating-point numbers"
        )


def _check_exclude(network: nn.Module, exclude: Sequence[str], chosen: set[str]) -> None:
    for pattern in exclude:
        if not left_out(network, [pattern]) & chosen:
            raise NothingMatchedError(
                f"exclude names {pattern!r}, in which there is no layer that would be quantized: "
                "leave it out"
            )
