"""What attention adapters get where they are mixed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .adapter_fusion import Fusion
from .bottleneck import AdaptedLayer

__all__ = ["FusionAttention"]


class FusionAttention:
    r"""Watches the passes of a network for the attention $\alpha$ that its adapters get.

    Example:
        >>> from lmkit.surgery.adapter import Adapter
        >>> from lmkit.surgery.adapter_fusion import AdapterFusion
        >>> network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(4, 4)})])
        >>> for name in ("a", "b"):
        ...     Adapter(name, "pfeiffer", size=2)(network)
        >>> AdapterFusion(["a", "b"])(network)
        >>> watch = FusionAttention()
        >>> watch.begin(network, ["fusion"])
        >>> _ = network[0]["fc2"](torch.ones(1, 4))
        >>> {name: round(mean.item(), 2) for name, mean in watch.end()["fusion"].items()}
        {'a': 0.5, 'b': 0.5}
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, dict[str, list[Tensor]]] = {}

    def begin(self, network: nn.Module, mixtures: Iterable[str]) -> None:
        """Watch from now on.

        Args:
            network: with adapted layers.
            mixtures: names of fusions; layers that have none are not watched.
        """
        mixtures = list(mixtures)
        for layer in (m for m in network.modules() if isinstance(m, AdaptedLayer)):
            for name in (name for name in mixtures if name in layer.fusions):
                fusion = cast(Fusion, layer.fusions[name])
                hook = partial(self._see, name, fusion.names)
                self._handles.append(fusion.attention.register_forward_hook(hook))

    def end(self) -> dict[str, dict[str, Tensor]]:
        """Watch no more, and return what was seen.

        Returns:
            For each mixture that had a pass the mean attention of each adapter, over passes, layers
            and positions (padding included): scalars in `[0, 1]` whose sum is 1 where all layers
            have all adapters.
        """
        for handle in self._handles:
            handle.remove()
        seen, self._handles, self._seen = self._seen, [], {}
        return {
            mixture: {name: torch.stack(means).mean() for name, means in adapters.items()}
            for mixture, adapters in seen.items()
        }

    def _see(
        self,
        mixture: str,
        names: tuple[str, ...],
        module: nn.Module,
        inputs: object,
        weights: Tensor,
    ) -> None:
        means = weights.detach().float().flatten(0, -2).mean(0)
        adapters = self._seen.setdefault(mixture, {})
        for name, mean in zip(names, means, strict=True):
            adapters.setdefault(name, []).append(mean)
