"""LoRA and its kin: low-rank matrices beside frozen ones, through peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .adapter import check_name
from .arguments import check_finite, check_whole
from .bottleneck import layer_width
from .composition import active_adapters, use_adapters
from .injection import bare_layer, inject, origins, place, require_peft
from .lora_variants import Magnitude, take_from_base
from .sites import match_sites
from .tuning import freeze_base

__all__ = ["VARIANTS", "LoRA"]

#: Kinds of LoRA, each with its paper.
VARIANTS: dict[str, str] = {
    "lora": "arXiv:2106.09685",
    "rslora": "arXiv:2312.03732",
    "dora": "arXiv:2402.09353",
    "pissa": "arXiv:2404.02948",
    "olora": "arXiv:2406.01775",
    "adalora": "arXiv:2303.10512",
}
_FROM_BASE = ("pissa", "olora")


@dataclass(frozen=True)
class LoRA:
    r"""Freeze a network, and add $s \, B A \, \mathrm{drop}(x)$ to its linear layers.

    $A$ is $r \times d_{in}$, $B$ is $d_{out} \times r$; a layer has $r (d_{in} + d_{out})$ weights
    that learn. By `variant`:

    - `lora`: $s = \alpha / r$, $B = 0$ at the start, so that no logit changes.
    - `rslora`: the same with $s = \alpha / \sqrt r$.
    - `dora`: $m \odot (W + s B A) / \|W + s B A\|$ in place of $W$, with the norms of the rows, and
      their lengths $m$ as further weights.
    - `pissa`, `olora`: $B A$ starts as the principal part of $W$ (of the exact singular value
      decomposition, of QR), and $W - s B A$ stays frozen in its place.
    - `adalora`: $\frac{\alpha}{r_0} P \Lambda Q$ of an initial rank $r_0$, $\Lambda = 0$ at the
      start; who trains it lowers the ranks, see `lmkit.callbacks.LoRACallback`.

    Adapters of several names stand side by side: what the active ones add is summed.

    Attributes:
        name: of the adapter; without a dot.
        targets: roles, `"all"` or patterns of names of linear layers, as `match_sites` takes them.
            Where one projection computes query, key and value, it is adapted as a whole.
        rank: $r$, at least 1; of `adalora` the rank that is left on average.
        alpha: $\alpha$, over 0.
        dropout: of the input of $A$, in `[0, 1)`.
        variant: of `VARIANTS`.
        initial_rank: $r_0$ of `adalora`, at least `rank`; 0 for half as much again.
        head: whether the head of the task learns.

    Raises:
        ImportError: when called, peft is not installed.
        ValueError: an attribute lies outside its range; when called, another adapter has the name,
            the variant cannot stand in a layer, or the rank is larger than a layer's smaller side.
        NothingMatchedError: when called, a target matches nothing; names what is near.

    Example:
        >>> network = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4)})])
        >>> LoRA(targets=["query"], rank=2)(network)
        >>> [(name, tuple(p.shape)) for name, p in network.named_parameters() if p.requires_grad]
        [('0.q_proj.lora_A.default.weight', (2, 4)), ('0.q_proj.lora_B.default.weight', (4, 2))]
    """

    name: str = "default"
    targets: Sequence[str] = ("query", "value")
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    variant: str = "lora"
    initial_rank: int = 0
    head: bool = True

    def __post_init__(self) -> None:
        """Check the attributes."""
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        check_name(self.name)
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}"
                + (
                    "; its fast decomposition is random, and a checkpoint could not repeat it"
                    if self.variant.startswith("pissa_")
                    else ""
                )
            )
        if not targets:
            raise ValueError("targets must name linear layers, e.g. ['query', 'value'] or ['all']")
        check_whole("rank", self.rank, 1)
        check_whole("initial_rank", self.initial_rank, 0)
        check_finite("alpha", self.alpha)
        check_finite("dropout", self.dropout)
        if self.alpha <= 0:
            raise ValueError(f"alpha must be over 0, got {self.alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.initial_rank and (self.variant != "adalora" or self.initial_rank < self.rank):
            raise ValueError(
                f"initial_rank is for variant='adalora', and at least rank={self.rank}; got "
                f"{self.initial_rank} with {self.variant!r}"
            )

    @property
    def ranks(self) -> int:
        """How many ranks the weights of a layer have."""
        if self.variant != "adalora":
            return self.rank
        return self.initial_rank or self.rank + (self.rank + 1) // 2

    def __call__(self, network: nn.Module) -> None:
        """Freeze all weights, and add the adapter; when it is there, do nothing."""
        require_peft()
        sites = match_sites(network, self.targets)
        there = origins(network, LoRA).get(self.name)
        if there == self:
            return
        if there:
            raise ValueError(
                f"there is a LoRA adapter {self.name!r} already, {there}; give this one another "
                "name"
            )
        places = [place(network, site) for site in sites]
        if self.variant in _FROM_BASE:
            self._check_bases(network, places)
        self._check_rank(network, places)
        active = active_adapters(network)
        freeze_base(network, self.head)
        layers = inject(network, self, self._config(), places)
        for layer in layers.values():
            if self.variant in _FROM_BASE:
                take_from_base(layer, self.name, self.variant)
            elif self.variant == "dora":
                layer.lora_variant[self.name] = Magnitude()
            elif self.variant == "adalora":
                # Peft makes this constant anew, and trainable, where the base is no float32.
                layer.ranknum[self.name].requires_grad_(False)
        use_adapters(network, {**active, self.name: 1.0})

    def _config(self) -> Any:
        from peft import AdaLoraConfig, LoraConfig

        common: dict[str, Any] = {
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
        }
        if self.variant == "adalora":
            # The schedule is not peft's here, but it asks for one.
            return AdaLoraConfig(init_r=self.ranks, target_r=self.rank, total_step=1, **common)
        return LoraConfig(
            r=self.rank,
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
            **common,
        )

    def _check_rank(self, network: nn.Module, places: list[str]) -> None:
        """Check that no layer gets more ranks than its weight can have."""
        most = {name: min(layer_width(network.get_submodule(name))) for name in places}
        name = min(most, key=lambda name: most[name])
        if self.rank > most[name]:
            inside, outside = layer_width(network.get_submodule(name))
            raise ValueError(
                f"rank is {self.rank}, and {name} turns {inside} numbers into {outside}, so that "
                f"more than {most[name]} ranks add nothing; give a rank of at most {most[name]}"
            )

    def _check_bases(self, network: nn.Module, places: list[str]) -> None:
        """Check that a part can be taken out of each weight, unseen by others."""
        users: dict[int, list[str]] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            users.setdefault(id(parameter), []).append(name)
        for name in places:
            layer: Any = network.get_submodule(name)
            weight: Any = bare_layer(layer).weight
            if not isinstance(weight, nn.Parameter):
                raise ValueError(
                    f"{self.variant} takes a part out of a layer's weight, and {name} is a "
                    f"{type(bare_layer(layer)).__name__}, which has no weight of its own; take "
                    "variant='lora'"
                )
            if len(shared := users[id(weight)]) > 1:
                raise ValueError(
                    f"{self.variant} takes a part out of a layer's weight, and "
                    f"{' and '.join(shared)} are one weight; take variant='lora'"
                )
            if not weight.is_floating_point() or self.rank > min(weight.shape):
                raise ValueError(
                    f"{self.variant} of rank {self.rank} needs a weight of floating-point numbers "
                    f"with as many rows and columns; {name} has {tuple(weight.shape)} of "
                    f"{weight.dtype}"
                )
            while hasattr(layer, "base_layer"):
                if hasattr(layer, "ia3_l") or getattr(layer, "lora_magnitude_vector", None):
                    raise ValueError(
                        f"{self.variant} takes a part out of a layer's weight, and at {name} (IA)³ "
                        f"or DoRA reads this weight: add the {self.variant} adapter first"
                    )
                layer = layer.base_layer
