"""Training of chosen weights only: biases, norms, embeddings, upper layers, named modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from torch import nn

from .arguments import check_whole
from .base import NothingMatchedError, match_modules
from .depth import layer_stacks
from .norm_shift import find_norms
from .tuning import freeze_base, head_parameters, trainable_at_first

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Freeze a network, but for weights that are chosen; the choices add up.

    With `biases` alone this is BitFit (arXiv:2106.10199). Only what could be trained before is
    chosen: no weight that the architecture keeps frozen because no loss reaches it, and nothing
    that another surgery has added.

    Attributes:
        patterns: of module names, as `match_modules` takes them; all their weights learn. With
            `biases` only the biases of these.
        layers: how many layers from the top learn, in each stack of layers; at least 0.
        norms: whether the scales and biases of normalizations learn.
        embeddings: whether the embeddings of tokens, positions and types learn.
        biases: whether the biases learn.
        head: whether the head of the task learns.

    Raises:
        ValueError: `layers` is below 0; when called, there are fewer layers.
        NothingMatchedError: when called, a choice finds nothing; names what is near.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> Selection(biases=True)(network)
        >>> [name for name, p in network.named_parameters() if p.requires_grad]
        ['0.bias', '1.bias']
    """

    patterns: Sequence[str] = ()
    layers: int = 0
    norms: bool = False
    embeddings: bool = False
    biases: bool = False
    head: bool = True

    def __post_init__(self) -> None:
        """Check the attributes."""
        given = self.patterns
        object.__setattr__(self, "patterns", (given,) if isinstance(given, str) else tuple(given))
        check_whole("layers", self.layers, 0)

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights but the chosen ones; done again, nothing changes."""
        known = {id(parameter) for parameter in trainable_at_first(network).values()}
        chosen = [parameter for parameter in self._chosen(network) if id(parameter) in known]
        if not chosen and self != Selection(head=self.head):
            raise NothingMatchedError(f"{self} chooses only weights that cannot be trained here")
        freeze_base(network, self.head)
        for parameter in chosen:
            parameter.requires_grad_(True)

    def _chosen(self, network: nn.Module) -> Iterator[nn.Parameter]:
        matched = [module for p in self.patterns for module in _matched(network, p)]
        if self.biases:
            yield from _biases(matched or [network], network)
        else:
            yield from _weights(matched)
        if self.layers:
            yield from _upper(network, self.layers)
        if self.norms:
            yield from _weights(find_norms(network).values())
        if self.embeddings:
            body = cast(nn.Module, getattr(network, "base_model", network))
            tables = [m for m in body.modules() if isinstance(m, nn.Embedding)]
            if not tables:
                raise NothingMatchedError(f"{type(network).__name__} has no embeddings")
            yield from _weights(tables)


def _matched(network: nn.Module, pattern: str) -> list[nn.Module]:
    found = match_modules(network, [pattern])
    if not any(True for _ in _weights(found.values())):
        raise NothingMatchedError(
            f"{pattern!r} matches {', '.join(list(found)[:3])}, which have no weights; name "
            "modules that have"
        )
    return list(found.values())


def _biases(modules: list[nn.Module], network: nn.Module) -> Iterator[nn.Parameter]:
    # The bias over a vocabulary belongs to its head, and a head alone is no reason to go on.
    output = cast(Any, network).get_output_embeddings() if hasattr(network, "base_model") else None
    others = {id(getattr(output, "bias", None)), *map(id, head_parameters(network).values())}
    found = [
        parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if name.rsplit(".", 1)[-1] == "bias" and id(parameter) not in others
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
            raise ValueError(
                f"layers is {count}, and {name} has {len(stack)}: give at most {len(stack)}"
            )
        yield from _weights(stack[-count:])
    if not stacks:
        raise NothingMatchedError(f"{type(network).__name__} has no layers to choose from")


def _weights(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    return chain.from_iterable(module.parameters() for module in modules)
