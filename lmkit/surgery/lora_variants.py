"""Kinds of LoRA that are more than a sum: how their layers compute, and where they start."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .injection import bare_layer

__all__ = ["FromBase", "Magnitude", "Start", "Triplet", "take_from_base", "triplets"]


class Triplet(NamedTuple):
    r"""The weights of one AdaLoRA layer, $P \Lambda Q$.

    Attributes:
        left: $P$, `[out, r]`.
        values: the diagonal of $\Lambda$, `[r, 1]`.
        right: $Q$, `[r, in]`.
    """

    left: nn.Parameter
    values: nn.Parameter
    right: nn.Parameter


def triplets(network: nn.Module, name: str) -> dict[str, Triplet]:
    """Return the weights of an AdaLoRA adapter by the names of its layers.

    Example:
        >>> triplets(nn.Linear(2, 2), "default")
        {}
    """
    layers: dict[str, Any] = dict(network.named_modules())
    return {
        path: Triplet(layer.lora_B[name], layer.lora_E[name], layer.lora_A[name])
        for path, layer in layers.items()
        if name in getattr(layer, "lora_E", ())
    }


class Magnitude:
    r"""DoRA as a sum: adds $w \, (m \odot \frac{W + sBA}{\|W + sBA\|} - W) \, x$.

    Peft's own scales what the adapters before it have added, so that with two adapters the result
    depends on their order, and has no weight $w$. Peft calls this in its place.

    Attributes:
        weight: $w$.
    """

    always = False

    def __init__(self) -> None:
        self.weight = 1.0

    def forward(
        self, module: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """Add to `result`, `[..., out]`, for `x` of `[..., in]`."""
        dropout = module.lora_dropout[active_adapter]
        silent = isinstance(dropout, nn.Identity) or not module.training
        base = bare_layer(module)
        # What the base layer gave need not be computed anew if it is what `result` still is.
        first = module.active_adapters[0] == active_adapter and module.base_layer is base
        added = module.lora_magnitude_vector[active_adapter](
            x if silent else dropout(x),
            lora_A=module.lora_A[active_adapter],
            lora_B=module.lora_B[active_adapter],
            scaling=module.scaling[active_adapter],
            base_layer=base,
            base_result=result if silent and first else None,
            adapter_name=active_adapter,
        )
        return cast(Tensor, result + (added if self.weight == 1 else self.weight * added))


class FromBase:
    r"""PiSSA and OLoRA: the base's weight is the residual $W - s B_0 A_0$ of the original $W$.

    Adds $w \, s B A x + (1 - w) \, s B_0 A_0 x$, so that with weight 0 the layer is the original
    one, and with weight 1 costs no more than LoRA.

    Attributes:
        weight: $w$.
    """

    always = True  # computes something when it is off

    def __init__(self) -> None:
        self.weight = 1.0

    def forward(
        self, module: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """Add to `result`, `[..., out]`, for `x` of `[..., in]`."""
        scale = module.scaling[active_adapter]
        if self.weight:
            narrow = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
            result = result + module.lora_B[active_adapter](narrow) * (scale * self.weight)
        if self.weight != 1:
            result = result + module.starts[active_adapter](x) * (scale * (1 - self.weight))
        return result


class Start(nn.Module):
    """Remembers where a pair of factors started; never trained.

    Args:
        down: $A_0$, `[r, in]`.
        up: $B_0$, `[out, r]`.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    def forward(self, x: Tensor) -> Tensor:
        """Return $B_0 A_0 x$, `[..., out]`."""
        down, up = cast(Tensor, self.down), cast(Tensor, self.up)
        return nn.functional.linear(nn.functional.linear(x, down), up)


@torch.no_grad()
def take_from_base(layer: Any, name: str, kind: str) -> None:
    r"""Start an adapter from a part of the base's weight, and leave the rest as the base.

    - `pissa`: $A = \sqrt{\Sigma_r / s} \, V_r^\top$ and $B = U_r \sqrt{\Sigma_r / s}$ of the exact
      singular value decomposition (arXiv:2404.02948).
    - `olora`: $A = R_r$ and $B = Q_r$ of the QR decomposition (arXiv:2406.01775).

    Signs that a decomposition leaves open cancel in $B A$, so that the residual $W - s B A$ is the
    same on each machine within rounding.

    Args:
        layer: of peft, with the adapter.
        name: of the adapter.
        kind: `"pissa"` or `"olora"`.
    """
    base: Any = bare_layer(layer)
    turned = isinstance(base, Conv1D)
    weight = base.weight.detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    weight = weight.T if turned else weight
    rank, scale = layer.r[name], layer.scaling[name]
    if kind == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        roots = (values[:rank] / scale).sqrt()
        up, down = left[:, :rank] * roots, roots[:, None] * right[:rank]
    else:
        left, right = torch.linalg.qr(weight)
        up, down = left[:, :rank], right[:rank]
    rest = weight - scale * up @ down
    base.weight.data = (rest.T if turned else rest).contiguous().to(base.weight.dtype)
    own_down, own_up = layer.lora_A[name].weight, layer.lora_B[name].weight
    own_down.copy_(down)
    own_up.copy_(up)
    if not hasattr(layer, "starts"):
        layer.starts = nn.ModuleDict()
    layer.starts[name] = Start(own_down.detach().clone(), own_up.detach().clone())
    layer.starts.train(layer.training)
    layer.lora_variant[name] = FromBase()
