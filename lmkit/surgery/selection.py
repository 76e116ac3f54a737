"""Training of chosen weights only: biases, norms, embeddings, upper layers, named modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from torch import nn

from .base import NothingMatchedError, match_modules
from .depth import layer_stacks
from .tuning import freeze_base

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Freeze a network, but for weights that are chosen; the choices add up.

    With `biases` alone this is BitFit (arXiv:2106.10199).

    Attributes:
        patterns: of module names, as `match_modules` takes them; all their weights learn. With
            `biases` only the biases of these.
        layers: how many layers from the top learn, in each stack of layers.
        norms: whether the scales and biases of normalizations learn.
        embeddings: whether the embeddings of tokens, positions and types learn.
        biases: whether the biases learn.
        head: whether the head of the task learns.

    Raises:
        NothingMatchedError: when called, a choice finds nothing; names what is near.
        ValueError: when called, there are fewer layers.
    """

    patterns: tuple[str, ...] = ()
    layers: int = 0
    norms: bool = False
    embeddings: bool = False
    biases: bool = False
    head: bool = True

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights but the chosen ones."""
        chosen = list(self._chosen(network))
        freeze_base(network, self.head)
        for parameter in chosen:
            parameter.requires_grad_(True)

    def _chosen(self, network: nn.Module) -> Iterator[nn.Parameter]:
        matched = list(match_modules(network, self.patterns).values()) if self.patterns else []
        if self.biases:
            yield from _biases(matched or [network], network)
        else:
            yield from chain.from_iterable(module.parameters() for module in matched)
        if self.layers:
            yield from _upper(network, self.layers)
        if self.norms:
            norms = [m for m in network.modules() if "norm" in type(m).__name__.lower()]
            yield from _of(norms, "normalization")
        if self.embeddings:
            tables = [m for m in _body(network).modules() if isinstance(m, nn.Embedding)]
            yield from _of(tables, "embedding")


def _biases(modules: list[nn.Module], network: nn.Module) -> Iterator[nn.Parameter]:
    # The bias over a vocabulary belongs to its head.
    output = cast(Any, network).get_output_embeddings() if hasattr(network, "base_model") else None
    tied = getattr(output, "bias", None)
    found = [
        parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if name.rsplit(".", 1)[-1] == "bias" and parameter is not tied
    ]
    if not found:
        raise NothingMatchedError(
            f"{type(network).__name__} has no biases to train there; take an architecture that has "
            "them, such as bert, or another technique, such as LoRA"
        )
    yield from found


def _upper(network: nn.Module, count: int) -> Iterator[nn.Parameter]:
    stacks = layer_stacks(network)
    for name, stack in stacks.items():
        if count > len(stack):
            raise ValueError(f"layers is {count}, and {name} has {len(stack)}")
        yield from chain.from_iterable(layer.parameters() for layer in stack[-count:])
    if not stacks:
        raise NothingMatchedError(f"{type(network).__name__} has no layers to choose from")


def _of(modules: Sequence[nn.Module], kind: str) -> Iterator[nn.Parameter]:
    if not modules:
        raise NothingMatchedError(f"the network has no {kind}")
    yield from chain.from_iterable(module.parameters() for module in modules)


def _body(network: nn.Module) -> nn.Module:
    return cast(nn.Module, getattr(network, "base_model", network))
