"""(IA)³: learned factors for keys, values and the inside of feed-forward blocks, through peft."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .adapter import check_name
from .composition import active_adapters, use_adapters
from .injection import inject, origins, place, require_peft
from .sites import match_sites
from .tuning import freeze_base

__all__ = ["IA3"]


@dataclass(frozen=True)
class IA3:
    r"""Freeze a network, and multiply what flows through it by learned vectors.

    $l_k \odot k$ and $l_v \odot v$ in attention, and $W (l_{ff} \odot x)$ in the last projection of
    each feed-forward block (Liu et al. 2022, arXiv:2205.05638, section 3.3). All vectors start at
    one, so that no logit changes. Of several active adapters the vectors are multiplied.

    Attributes:
        name: of the adapter; without a dot.
        targets: roles or patterns of linear layers whose results are multiplied, as `match_sites`
            takes them. Where one projection computes query, key and value, the query is
            multiplied too.
        inputs: the same of layers whose inputs are.
        head: whether the head of the task learns.

    Raises:
        ImportError: when called, peft is not installed.
        ValueError: nothing is named; when called, a layer is named twice, or another adapter has
            the name.
        NothingMatchedError: when called, a target matches nothing; names what is near.

    Example:
        >>> layer = nn.ModuleDict({"k_proj": nn.Linear(4, 6), "fc2": nn.Linear(8, 4)})
        >>> IA3(targets=["key"])(nn.ModuleList([layer]))
        >>> [(name, tuple(p.shape)) for name, p in layer.named_parameters() if p.requires_grad]
        [('k_proj.ia3_l.default', (6, 1)), ('fc2.ia3_l.default', (1, 8))]
    """

    name: str = "default"
    targets: Sequence[str] = ("key", "value")
    inputs: Sequence[str] = ("ffn_output",)
    head: bool = True

    def __post_init__(self) -> None:
        """Check the attributes."""
        for word in ("targets", "inputs"):
            given = getattr(self, word)
            object.__setattr__(self, word, (given,) if isinstance(given, str) else tuple(given))
        check_name(self.name)
        if not (self.targets or self.inputs):
            raise ValueError("IA3 needs layers: targets whose results, or inputs, are multiplied")

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights, and add the adapter; when it is there, do nothing."""
        require_peft()
        from peft import IA3Config

        results = match_sites(network, self.targets) if self.targets else {}
        inputs = match_sites(network, self.inputs) if self.inputs else {}
        there = origins(network, IA3).get(self.name)
        if there == self:
            return
        if there:
            raise ValueError(
                f"there is an (IA)³ adapter {self.name!r} already, {there}; give this one another "
                "name"
            )
        if both := [name for name in results if name in inputs]:
            raise ValueError(
                f"targets and inputs of IA3 both name {', '.join(both[:3])}: a layer's result is "
                "multiplied, or its input"
            )
        fed = [place(network, name) for name in inputs]
        places = [place(network, name) for name in results] + fed
        for name in places:
            layer: Any = network.get_submodule(name)
            if hasattr(layer, "ia3_l") and layer.is_feedforward != (name in fed):
                raise ValueError(
                    f"{name} has (IA)³ adapters that multiply its "
                    f"{'input' if layer.is_feedforward else 'result'}; a further one must do so too"
                )
        active = active_adapters(network)
        freeze_base(network, self.head)
        # Two expressions: peft takes the ends of names as well, and here they have to be the same.
        config = IA3Config(feedforward_modules="|".join(map(re.escape, fed)) or "(?!)")
        inject(network, self, config, places)
        use_adapters(network, {**active, self.name: 1.0})
