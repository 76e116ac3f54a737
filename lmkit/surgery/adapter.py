"""Bottleneck adapters behind the projections of each layer, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from typing import Any, cast

import torch
from torch import nn

from .arguments import check_finite, check_whole
from .bottleneck import ACTIVATIONS, AdaptedLayer, Bottleneck, Handover, adapt, layer_width
from .norm_shift import Shift, find_norms, shift
from .sites import find_sites, match_sites
from .tuning import freeze_base

__all__ = ["KINDS", "Adapter", "check_name"]

#: The projections behind which each kind of adapter stands.
KINDS: dict[str, tuple[str, ...]] = {
    "houlsby": ("attention_output", "ffn_output"),
    "pfeiffer": ("ffn_output",),
    "parallel": ("ffn_output",),
    "compacter": ("attention_output", "ffn_output"),
}


@dataclass(frozen=True)
class Adapter:
    r"""Freeze a network, and add $s \, (W_u \sigma(W_d y + b_d) + b_u)$ to its projections.

    $y$ is what a projection gives, before dropout, residual and normalization; `parallel` adapters
    read the input of the feed-forward block instead. $W_u$ starts at zero, so no logit changes.
    Adapters of several names stand side by side: what the active ones add is summed.

    Attributes:
        name: of the adapter; without a dot.
        kind: of `KINDS`: `houlsby` (arXiv:1902.00751), `pfeiffer` (arXiv:2005.00247), `parallel`
            (arXiv:2110.04366) or `compacter` (arXiv:2106.04647).
        size: of the bottleneck.
        activation: of `ACTIVATIONS`.
        scale: $s$.
        dropout: of the bottleneck's activations, in `[0, 1)`.
        norms: whether the adapter moves the scales and biases of all normalizations of the body;
            `None` for those of `houlsby` alone.
        divisions: of `compacter`, the number of its Kronecker products; divides all widths.
        rank: of `compacter`, of the factors of each product.
        targets: roles or patterns of projections, as `match_sites` takes them, in place of the
            kind's own; of `parallel` two, first and last projection of the feed-forward block.
        head: whether the head of the task learns.

    Raises:
        ValueError: an attribute lies outside its range; when called, another adapter has the name,
            `divisions` does not divide a width, or `targets` name a part of the head.
        NothingMatchedError: when called, the network has no such projections; names what it has.

    Example:
        >>> network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(4, 4)})])
        >>> Adapter(kind="pfeiffer", size=2)(network)
        >>> [name for name, p in network.named_parameters() if p.requires_grad][0]
        '0.fc2.adapters.default.down'
    """

    name: str = "default"
    kind: str = "houlsby"
    size: int = 64
    activation: str = "gelu"
    scale: float = 1.0
    dropout: float = 0.0
    norms: bool | None = None
    divisions: int = 4
    rank: int = 1
    targets: Sequence[str] = ()
    head: bool = True

    def __post_init__(self) -> None:
        """Check the attributes."""
        object.__setattr__(self, "targets", tuple(self.targets))
        check_name(self.name)
        for word, known in (("kind", KINDS), ("activation", ACTIVATIONS)):
            if getattr(self, word) not in known:
                raise ValueError(
                    f"{word} must be one of {', '.join(known)}, got {getattr(self, word)!r}"
                )
        for word in ("size", "divisions", "rank"):
            check_whole(word, getattr(self, word), 1)
        for word in ("scale", "dropout"):
            check_finite(word, getattr(self, word))
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.kind == "parallel" and len(self.targets) not in (0, 2):
            raise ValueError(
                "targets of parallel adapters are two: first and last projection of the "
                f"feed-forward block; got {list(self.targets)}"
            )

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights, and add the adapter; when it is there, do nothing."""
        sites = self._sites(network)
        first = self._first_projections(network, sites)
        norms = find_norms(network) if self._moves_norms else {}
        if self._is_there(sites):
            return
        freeze_base(network, self.head)
        rule = self._rule() if self.kind == "compacter" else None
        for name, layer in sites.items():
            adapted = adapt(network, name)
            if name in first:
                _connect(adapt(network, first[name]), adapted)
            adapter = self._bottleneck(adapted, rule)
            _place(adapter, layer)
            adapted.adapters[self.name] = adapter.train(adapted.training)
            adapted.origins[self.name] = self
            adapted.use({**adapted.active_adapters, self.name: 1.0})
        for name in norms:
            shifted = shift(network, name)
            shifted.adapters[self.name] = Shift(shifted.base_layer).train(shifted.training)
            shifted.use({**shifted.active_adapters, self.name: 1.0})

    @property
    def _moves_norms(self) -> bool:
        return self.kind == "houlsby" if self.norms is None else self.norms

    def _sites(self, network: nn.Module) -> dict[str, nn.Module]:
        if self.targets:
            wanted = self.targets[1:] if self.kind == "parallel" else self.targets
            sites = match_sites(network, wanted)
            _check_no_head(network, sites)
        else:
            sites = find_sites(network, KINDS[self.kind])
        if self.kind == "compacter":
            widths = {self.size, *(layer_width(layer)[1] for layer in sites.values())}
            if odd := sorted(width for width in widths if width % self.divisions):
                raise ValueError(
                    f"divisions is {self.divisions}, which does not divide the widths {odd} of "
                    "adapter and network; give another size or number of divisions"
                )
        return sites

    def _first_projections(self, network: nn.Module, sites: dict[str, nn.Module]) -> dict[str, str]:
        """Name the first projection of the feed-forward block that each site is the last of."""
        if self.kind != "parallel":
            return {}
        entries = match_sites(network, self.targets[:1] or ("ffn_input",))
        first = {name: max(entries, key=partial(_in_common, name)) for name in sites}
        if len(set(first.values())) < len(first) or not set(first.values()).isdisjoint(sites):
            raise ValueError(
                f"the feed-forward blocks begin in {', '.join(entries)} and end in "
                f"{', '.join(sites)}: to each end there must be a beginning of its own"
            )
        return first

    def _is_there(self, sites: dict[str, nn.Module]) -> bool:
        there = [origin for layer in sites.values() if (origin := _origin(layer, self.name))]
        if other := [origin for origin in there if origin != self]:
            raise ValueError(
                f"there is an adapter {self.name!r} already, {_told(other[0], self)}: give this "
                "one the same settings or another name"
            )
        return len(there) == len(sites)

    def _rule(self) -> nn.Parameter:
        # So that a sum of n products has the variance of its second factors.
        return nn.Parameter(torch.randn([self.divisions] * 3) / self.divisions**0.5)

    def _bottleneck(self, adapted: AdaptedLayer, rule: nn.Parameter | None) -> Bottleneck:
        parallel = self.kind == "parallel"
        outside = adapted.out_features
        return Bottleneck(
            cast(Handover, adapted.takes).width if parallel else outside,
            outside,
            self.size,
            self.activation,
            self.scale,
            self.dropout,
            reads_input=parallel,
            rule=rule,
            rank=self.rank,
        )


def check_name(name: str) -> None:
    """Check that a name can stand in the keys of a state dict.

    Raises:
        ValueError: it is empty, has a dot, or is an attribute that every module has.
    """
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            "name must be a word without a dot that torch has no other use for (such as train or "
            f"type), got {name!r}"
        )


def _check_no_head(network: nn.Module, sites: dict[str, nn.Module]) -> None:
    """Check that all sites stand in the base model: behind a head an adapter moves its scores."""
    base = getattr(network, "base_model", network)
    inside = set(base.modules())
    outside = [name for name, layer in sites.items() if layer not in inside]
    if base is not network and outside:
        raise ValueError(
            f"targets name {', '.join(outside[:3])} of the head, and adapters stand behind "
            "projections of layers; name such ones, and leave the head to head=True"
        )


def _in_common(name: str, other: str) -> int:
    """Count the parts that two dotted names begin with."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _origin(layer: Any, name: str) -> Any:
    while hasattr(layer, "base_layer"):
        if isinstance(layer, AdaptedLayer):
            return layer.origins.get(name)
        layer = layer.base_layer
    return None


def _told(there: Any, asked: Adapter) -> str:
    """Say in which settings what is there differs from what is asked for."""
    if not isinstance(there, Adapter):
        return f"{there}"
    each = ((word, getattr(there, word), getattr(asked, word)) for word in asdict(asked))
    return "; ".join(f"{word} {had!r}, not {wants!r}" for word, had, wants in each if had != wants)


def _connect(entry: AdaptedLayer, end: AdaptedLayer) -> None:
    entry.gives = end.takes = entry.gives or Handover(entry.in_features)


def _place(adapter: Bottleneck, layer: Any) -> None:
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    weight: torch.Tensor = layer.weight
    # A base in eight or four bits has none that could be trained.
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    adapter.to(weight.device, dtype)
