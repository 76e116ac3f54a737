"""Which weights of a network can be set to zero one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import match_modules
from .injection import bare_layer
from .sites import ROLES, base_name, match_sites

__all__ = ["check_apart", "check_prunable", "prunable_layers"]


def prunable_layers(network: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """Find layers whose weight is a matrix, by roles, by `"all"`, or by patterns of names.

    Args:
        network: where to look.
        targets: as `match_sites` takes them; a pattern may match embeddings too.

    Returns:
        Layers, inside whatever wraps them, by the names that their weights had before they were
        wrapped; one that is tied once, by its first name; never empty.

    Raises:
        NothingMatchedError: a target matches nothing; names it and what is near.

    Example:
        >>> layer = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
        >>> list(prunable_layers(nn.ModuleList([layer]), ["query"]))
        ['0.q_proj.weight']
    """
    found: dict[str, nn.Module] = {}
    for target in targets:
        is_role = target == "all" or target in ROLES
        matched = {} if is_role else match_modules(network, [target])
        embeddings = {n: m for n, m in matched.items() if isinstance(m, nn.Embedding)}
        if not embeddings or any(_is_linear(module) for module in matched.values()):
            found |= match_sites(network, [target])
        found |= embeddings
    layers: dict[str, nn.Module] = {}
    known: dict[int, Any] = {}
    for name, module in found.items():
        layer: Any = bare_layer(module)
        weight = layer.weight  # held, for a computed one's number would be another's soon
        if id(weight) not in known:
            known[id(weight)] = weight
            layers[base_name(f"{name}.weight")] = layer
    return layers


def check_prunable(
    layers: Mapping[str, Any], criterion: str, groups: tuple[int, int] | None = None
) -> None:
    """Check that the weights can be pruned as they are to be.

    Args:
        layers: of `prunable_layers`.
        criterion: of `functional.pruning.CRITERIA`.
        groups: N and M of a pattern.

    Raises:
        ValueError: a weight is computed from others, quantized or no matrix, its number of inputs
            is no multiple of M, or the criterion reads inputs, and an embedding has none.
    """
    for name, layer in layers.items():
        if not isinstance(layer.weight, nn.Parameter):
            raise ValueError(
                f"{name} is computed by a {type(layer).__name__} from weights of its own, and its "
                "zeros would not stay: leave it out of the targets, or prune what is not factorized"
            )
        if not layer.weight.is_floating_point() or layer.weight.dim() != 2:
            raise ValueError(
                f"{name} is {layer.weight.dtype} of the shape {tuple(layer.weight.shape)}, and "
                "only matrices of floating-point numbers can be pruned; load the base without "
                "quantization"
            )
        width = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
        if groups is not None and width % groups[1]:
            raise ValueError(
                f"{name} has {width} inputs, which is no multiple of the {groups[1]} of the "
                f"pattern '{groups[0]}:{groups[1]}': leave it out of the targets, or choose another"
            )
        if criterion == "wanda" and isinstance(layer, nn.Embedding):
            raise ValueError(
                f"{name} is an embedding, which reads no inputs that the criterion 'wanda' could "
                "measure: leave it out of the targets, or choose another criterion"
            )


def check_apart(layers: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Check that two choices of layers have no weight in common.

    Raises:
        ValueError: they have; names one.
    """
    own = {id(layer.weight): name for name, layer in layers.items()}
    both = [own[id(m.weight)] for m in others.values() if id(m.weight) in own]
    if both:
        raise ValueError(
            f"two callbacks would prune {len(both)} of the same weights, e.g. {both[0]}: name each "
            "in the targets of one of them"
        )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) or hasattr(module, "base_layer")
