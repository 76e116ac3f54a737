"""Fusion of adapters by attention over what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .adapter import check_name
from .bottleneck import AdaptedLayer
from .norm_shift import Shifted
from .tuning import freeze_base

__all__ = ["AdapterFusion", "Fusion"]

# Of the numbers that queries and keys start from, small so that each adapter counts about the
# same, and of those that are added to the identity of the values.
_SPREAD, _NOISE = 0.02, 1e-4


class Fusion(nn.Module):
    r"""Mixes what adapters add, by attention: $\sum_t \alpha_t V z_t$.

    $\alpha = \mathrm{softmax}_t(Q y \cdot K z_t)$, with $y$ what the projection gives and $z_t$
    what adapter $t$ adds to it; each token has an attention of its own. $Q$ and $K$ are normal with
    a deviation of 0.02, $V$ is the identity and noise with one of 1e-4.

    Args:
        names: of the adapters.
        width: of the projection's result.
        constant: those of the names whose weights get no gradient from here; what they read does.

    Example:
        >>> fusion = Fusion(["a", "b"], width=4)
        >>> fusion(torch.ones(2, 4), [torch.ones(2, 4), torch.zeros(2, 4)]).shape
        torch.Size([2, 4])
    """

    def __init__(self, names: Sequence[str], width: int, constant: Sequence[str] = ()) -> None:
        super().__init__()
        self.names, self.constant = tuple(names), tuple(constant)
        self.query = nn.Parameter(torch.randn(width, width) * _SPREAD)
        self.key = nn.Parameter(torch.randn(width, width) * _SPREAD)
        self.value = nn.Parameter(torch.eye(width) + torch.randn(width, width) * _NOISE)
        # A module, so that a hook can look at the attention: [..., number of adapters].
        self.attention = nn.Softmax(dim=-1)

    def forward(self, output: Tensor, added: Sequence[Tensor]) -> Tensor:
        """Return the mixture, `[..., width]`.

        Args:
            output: $y$, float `[..., width]`.
            added: $z_t$ of each adapter, float `[..., width]`.
        """
        stacked = torch.stack(list(added), dim=-2)
        # Qy . Kz = K'Qy . z, and V is linear: the cost of the matrices is that of one adapter.
        asked = functional.linear(output, self.query) @ self.key
        attention: Tensor = self.attention((stacked * asked.unsqueeze(-2)).sum(-1))
        mixed = (attention.unsqueeze(-1) * stacked).sum(-2)
        return functional.linear(mixed, self.value)


@dataclass(frozen=True)
class AdapterFusion:
    r"""Freeze a network and its adapters, and learn how to mix them (arXiv:2005.00247).

    At each adapted layer $y + \sum_t \alpha_t V z_t$ takes the place of $y + \sum_t z_t$, see
    `Fusion`. The fusion is active from then on and its adapters by themselves are not; `use` of
    their names switches back. Normalizations that the adapters move are moved by the mean of them.

    Attributes:
        names: of the adapters, at least one. Where a layer has only some of them, these are mixed.
        name: of the fusion, under which it is switched; without a dot.
        head: whether the head of the task learns.

    Raises:
        ValueError: there are no names, or one twice; when called, there is no adapter of a name.

    Example:
        >>> from lmkit.surgery.adapter import Adapter
        >>> network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(4, 4)})])
        >>> for name in ("a", "b"):
        ...     Adapter(name, "pfeiffer", size=2)(network)
        >>> AdapterFusion(["a", "b"])(network)
        >>> sum(p.numel() for p in network.parameters() if p.requires_grad) == 3 * 4**2
        True
    """

    names: Sequence[str]
    name: str = "fusion"
    head: bool = True

    def __post_init__(self) -> None:
        """Check the names."""
        object.__setattr__(self, "names", tuple(self.names))
        check_name(self.name)
        if not self.names or len({self.name, *self.names}) < len(self.names) + 1:
            raise ValueError(
                "names must be those of at least one adapter, each once, and not the fusion's own "
                f"name {self.name!r}; got {list(self.names)}"
            )

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights, and add the fusion; when it is there, do nothing."""
        layers = [m for m in network.modules() if isinstance(m, AdaptedLayer)]
        there = {name: None for layer in layers for name in layer.adapters}
        if missing := [name for name in self.names if name not in there]:
            raise ValueError(
                f"the network has no bottleneck adapters {missing} to fuse; it has "
                f"{list(there) or 'none'}: add them first, e.g. with AdapterCallback"
            )
        if self._is_there(layers):
            return
        freeze_base(network, self.head)
        for layer in layers:
            if parts := self._parts(layer.adapters):
                like = next(layer.adapters[parts[0]].parameters())
                fusion = Fusion(parts, layer.out_features).to(like.device, like.dtype)
                layer.fusions[self.name] = fusion.train(layer.training)
                layer.origins[self.name] = self
                self._switch(layer, parts)
        for shifted in (m for m in network.modules() if isinstance(m, Shifted)):
            if parts := self._parts(shifted.adapters):
                shifted.fusions[self.name] = parts
                self._switch(shifted, parts)

    def _is_there(self, layers: list[AdaptedLayer]) -> bool:
        there = [layer.origins[self.name] for layer in layers if self.name in layer.adapter_names]
        if other := [origin for origin in there if origin != self]:
            raise ValueError(
                f"there is an adapter {self.name!r} already, {other[0]}; give the fusion another "
                "name"
            )
        return bool(there)

    def _parts(self, adapters: nn.ModuleDict) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in adapters)

    def _switch(self, layer: AdaptedLayer | Shifted, parts: tuple[str, ...]) -> None:
        for name in parts:
            layer.adapters[name].requires_grad_(False)
        others = {n: w for n, w in layer.active_adapters.items() if n not in parts}
        layer.use({**others, self.name: 1.0})
